# SPDX-License-Identifier: Apache-2.0
"""Attention on a GPU: float32 both ways, bias and causal against FlashAttention, order of issue (spec section 14, G).

The cases are those of the CPU, in the suite "gpu". The small "smoke" cases run on a CPU too, where a peer that only a
GPU has is left out, so that every line here but the launches is tested anywhere.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.inputs import LISTS
from bench.ragged.attention import (
    HEAD_DIM,
    HEADS,
    OURS,
    PADDED,
    Packed,
    clock_for,
    fastest,
    list_cases,
    packed_input,
    pair_flops,
    reference,
)
from bench.registry import Built, Candidate, Case, Unavailable, Workload
from edgeops.ragged import RaggedLayout, ragged_attention
from edgeops.ragged._reference import ragged_attention_bwd_reference, ragged_attention_fwd_reference

TF32 = "edgeops, three tf32 products"
PLAIN, FLASH = "edgeops without", "torch flash"
LONGEST, IN_ORDER, SHORTEST = "longest first", "in order", "shortest first"
SCALE = HEAD_DIM**-0.5


def gpu_cases(suite: str, size: int = 32, lists: Sequence[str] = LISTS) -> list[Case]:
    """The lists in the suite "gpu", tiny ones in "smoke", nothing in a suite for CPUs."""
    return [] if suite == "full" else list_cases(suite, size, lists)


def _shapes(case: Case, data: Packed) -> dict[str, Any]:
    pairs = sum(n * n for n in case.lengths)
    lengths = data.layout
    return {"B": len(case.lengths), "T": lengths.total, "L": lengths.max_len, "pairs": pairs, "H": HEADS, "D": HEAD_DIM}


def padded_parts(data: Packed) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
    """Padded `[B, H, L, D]` q, k, v, their key mask in two forms, and the `[B, L]` mask of tokens."""
    lengths, keep = data.lengths, data.layout.key_padding_mask()
    parts = [
        torch.nn.utils.rnn.pad_sequence(x.split(lengths), batch_first=True).transpose(1, 2).contiguous()
        for x in (data.q, data.k, data.v)
    ]
    mask = keep[:, None, None, :]
    additive = torch.zeros(mask.shape, dtype=data.q.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
    return parts, {"boolean": mask, "additive": additive}, keep


def efficient(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Only SDPA's memory-efficient kernel, the one that takes float32 and a mask on a GPU."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    manager: contextlib.AbstractContextManager[Any] = sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION)
    return manager


@contextlib.contextmanager
def tf32_allowed() -> Any:
    """torch's switch for float32 products on "tf32", as some users have it."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _attend(data: Packed) -> Tensor:
    cu, longest = data.layout.cu_seqlens, data.layout.max_len
    out: Tensor = ragged_attention(data.q, data.k, data.v, cu, cu, longest, longest)
    return out


def _in_tf32(run: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        with tf32_allowed():
            return run()

    return call


def _build_forward(case: Case, device: torch.device) -> Built:
    data = packed_input(case.lengths, device)
    (q, k, v), masks, keep = padded_parts(data)

    def padded(mask: Tensor) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with efficient(device):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        return run

    forms = {name: padded(mask) for name, mask in masks.items()}
    best = fastest(forms, clock_for(device))
    run = functools.partial(_attend, data)
    return Built(
        candidates={
            OURS: Candidate(run),
            TF32: Candidate(_in_tf32(run)),
            PADDED: Candidate(forms[best], view=lambda out: out.transpose(1, 2)[keep], note=f"mask {best}"),
        },
        expected=lambda: reference(data),
        tolerance=2e-5,
        shapes=_shapes(case, data),
        flops=pair_flops(case.lengths, HEADS, HEAD_DIM),
    )


def _with_grad(run: Callable[[], Any]) -> Callable[[], Any]:
    """A call that records gradients although the runner works in inference mode."""

    def call() -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            return run()

    return call


def _build_train(case: Case, device: torch.device) -> Built:
    with torch.inference_mode(False), torch.enable_grad():
        data = packed_input(case.lengths, device)
        (q, k, v), masks, keep = padded_parts(data)
        generator = torch.Generator().manual_seed(1)
        upstream = torch.randn(data.q.shape, generator=generator).to(device)
        upstream_padded = torch.nn.utils.rnn.pad_sequence(upstream.split(data.lengths), batch_first=True)
        upstream_padded = upstream_padded.transpose(1, 2)
        leaves = [x.requires_grad_() for x in (data.q, data.k, data.v)]
        leaves_padded = [x.requires_grad_() for x in (q, k, v)]

    def ours() -> list[Tensor]:
        out = _attend(data)
        return [out, *torch.autograd.grad(out, leaves, upstream)]

    def padded(mask: Tensor) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with efficient(device):
                out = F.scaled_dot_product_attention(*leaves_padded, attn_mask=mask)
                return [out, *torch.autograd.grad(out, leaves_padded, upstream_padded)]

        return _with_grad(run)

    def expected() -> Tensor:
        cu = data.layout.offsets
        wide = [x.detach().double() for x in leaves]
        out, lse = ragged_attention_fwd_reference(*wide, cu, cu, scale=SCALE)
        grads = ragged_attention_bwd_reference(upstream.double(), None, *wide, out, lse, cu, cu, scale=SCALE)
        return torch.stack([out, *grads[:3]])

    forms = {name: padded(mask) for name, mask in masks.items()}
    best = fastest(forms, clock_for(device))
    return Built(
        candidates={
            OURS: Candidate(_with_grad(ours), view=lambda found: torch.stack(found).detach()),
            TF32: Candidate(_in_tf32(_with_grad(ours)), view=lambda found: torch.stack(found).detach()),
            PADDED: Candidate(
                forms[best],
                view=lambda found: torch.stack([x.detach().transpose(1, 2)[keep] for x in found]),
                note=f"mask {best}",
            ),
        },
        expected=expected,
        tolerance=1e-4,
        shapes=_shapes(case, data),
        flops=3.5 * pair_flops(case.lengths, HEADS, HEAD_DIM),
    )


def _kernel(data: Packed, bias: Tensor | None, causal: bool) -> Callable[[], Tensor]:
    """The kernel op itself, which never hands over to FlashAttention."""
    op, cu = torch.ops.edgeops._ragged_attention_fwd, data.layout.cu_seqlens
    return lambda: op(data.q, data.k, data.v, cu, cu, bias, SCALE, causal, -1, -1)[0]


def _flash(data: Packed, causal: bool) -> Callable[[], Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    cu, longest = data.layout.cu_seqlens, data.layout.max_len
    window = (-1, 0) if causal else (-1, -1)
    return lambda: varlen_attn(data.q, data.k, data.v, cu, cu, longest, longest, window_size=window)


def _build_against_flash(case: Case, device: torch.device, causal: bool) -> Built:
    """Ours with a bias for every pair of positions, or causal; FlashAttention has no bias and works without."""
    data = packed_input(case.lengths, device, torch.bfloat16)
    longest = data.layout.max_len
    bias = None
    if not causal:
        generator = torch.Generator().manual_seed(2)
        bias = torch.randn(1, HEADS, longest, longest, generator=generator).to(device, torch.bfloat16)

    def expected() -> Tensor:
        cu = data.layout.offsets
        wide = None if bias is None else bias.double()
        tensors = (data.q.double(), data.k.double(), data.v.double())
        return ragged_attention_fwd_reference(*tensors, cu, cu, wide, SCALE, causal)[0]

    candidates = {
        OURS: Candidate(_kernel(data, bias, causal)),
        PLAIN: Candidate(_kernel(data, None, False), gate=False),
    }
    if device.type == "cuda":
        candidates[FLASH] = Candidate(_flash(data, causal), gate=causal)
    return Built(
        candidates=candidates,
        expected=expected,
        tolerance=2e-2,
        dtype="bfloat16",
        shapes=_shapes(case, data) | {"causal": causal},
        flops=pair_flops(case.lengths, HEADS, HEAD_DIM),
    )


def tile_orders(layout: RaggedLayout, causal: bool, config: Any, device: torch.device) -> dict[str, Tensor]:
    """The same tiles of query rows in three orders of issue."""
    from edgeops.triton_kernels.ragged.attention import attention_tile_map

    first = attention_tile_map(layout.lengths, layout.lengths, config, causal=causal, device=device)
    in_order = torch.tensor(sorted(first.tolist()), dtype=first.dtype, device=device).reshape(-1, 2)
    return {LONGEST: first, IN_ORDER: in_order, SHORTEST: first.flip(0).contiguous()}


def _build_order(case: Case, device: torch.device) -> Built:
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise Unavailable("needs a GPU: the order of issue is a matter of the Triton kernel")
    from edgeops.triton_kernels.ragged.attention import ragged_attention_fwd
    from edgeops.triton_kernels.ragged.attention_config import architecture, attention_config

    data = packed_input(case.lengths, device)
    causal, cu = bool(case.params.get("causal")), data.layout.cu_seqlens
    config = attention_config(torch.float32, HEAD_DIM, HEAD_DIM, arch=architecture(device))

    def run(tiles: Tensor) -> Callable[[], Tensor]:
        rest = (cu, cu, None, SCALE, causal, -1, -1)
        return lambda: ragged_attention_fwd(data.q, data.k, data.v, *rest, tile_map=tiles)[0]

    def expected() -> Tensor:
        tensors = (data.q.double(), data.k.double(), data.v.double())
        offsets = data.layout.offsets
        return ragged_attention_fwd_reference(*tensors, offsets, offsets, None, SCALE, causal)[0]

    orders = tile_orders(data.layout, causal, config, device)
    return Built(
        candidates={name: Candidate(run(tiles)) for name, tiles in orders.items()},
        expected=expected,
        tolerance=2e-5,
        shapes=_shapes(case, data) | {"causal": causal},
        flops=pair_flops(case.lengths, HEADS, HEAD_DIM),
    )


def _order_cases(suite: str) -> list[Case]:
    lists = gpu_cases(suite, 32, ("SQuAD", "RACE", "Wiki512"))
    triangular = [
        Case(f"{c.name.partition('/')[0]} causal/{len(c.lengths)}", c.source, c.lengths, {"causal": True}, c.synthetic)
        for c in lists
    ]
    if suite == "gpu":
        rows = (4096, *[256] * 31)
        triangular.append(Case("one long causal/32", "one of 4096 and 31 of 256, made up", rows, {"causal": True}))
    return lists + triangular


def _workload(name: str, summary: str, baseline: str, build: Callable[[Case, torch.device], Built]) -> Workload:
    return Workload(name, ("ragged_attention",), summary, OURS, baseline, gpu_cases, build)


WORKLOADS = (
    _workload("attention_gpu_fp32", "float32 attention on a GPU, forward", PADDED, _build_forward),
    _workload("attention_gpu_fp32_train", "float32 attention on a GPU, forward and backward", PADDED, _build_train),
    _workload(
        "attention_gpu_bias",
        "bfloat16 attention with a bias on a GPU, forward",
        PLAIN,
        functools.partial(_build_against_flash, causal=False),
    ),
    _workload(
        "attention_gpu_causal",
        "bfloat16 causal attention on a GPU, our kernel, forward",
        PLAIN,
        functools.partial(_build_against_flash, causal=True),
    ),
    Workload(
        name="attention_gpu_order",
        ops=("ragged_attention",),
        summary="order in which the tiles of query rows are issued, float32 on a GPU",
        ours=LONGEST,
        baseline=IN_ORDER,
        cases=_order_cases,
        build=_build_order,
    ),
)
