# SPDX-License-Identifier: Apache-2.0
"""Attention core, forward and backward, on the eight length lists; and causal attention against unmasked.

Every candidate computes the gradients of q, k and v for a given gradient of the output, through torch's autograd, from
input in the form its user would have (see `attention.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.inputs import LISTS
from bench.ragged.attention import (
    HEAD_DIM,
    HEADS,
    LOOP,
    OURS,
    PADDED,
    Packed,
    clock_for,
    fastest,
    list_cases,
    packed_input,
    padded_parts,
    pair_flops,
)
from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged import ragged_attention
from edgeops.ragged._reference import ragged_attention_bwd_reference, ragged_attention_fwd_reference

UNMASKED, CAUSAL, CAUSAL_LOOP = "edgeops, unmasked", "edgeops, causal", "sdpa loop, causal"

Gradients = tuple[Tensor, ...]


def _with_grad(run: Callable[[], Gradients]) -> Callable[[], Gradients]:
    """The runner times without gradients; a training step needs them."""

    def call() -> Gradients:
        with torch.inference_mode(False), torch.enable_grad():
            return run()

    return call


def _gradient(data: Packed) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(data.q.shape, generator=generator).to(data.q.device, data.q.dtype)


def ours(data: Packed, grad: Tensor) -> Callable[[], Gradients]:
    """`edgeops.ragged.ragged_attention` on packed rows."""
    cu, longest = data.layout.cu_seqlens, data.layout.max_len
    leaves = [x.detach().requires_grad_() for x in (data.q, data.k, data.v)]
    return _with_grad(lambda: torch.autograd.grad(ragged_attention(*leaves, cu, cu, longest, longest), leaves, grad))


def sdpa_loop(data: Packed, grad: Tensor) -> Callable[[], Gradients]:
    """One SDPA call per sequence on views of the packed rows; autograd joins the gradients."""
    lengths = data.lengths
    leaves = [x.detach().requires_grad_() for x in (data.q, data.k, data.v)]

    def run() -> Gradients:
        parts = [x.transpose(0, 1).unsqueeze(0).split(lengths, dim=2) for x in leaves]
        out = [F.scaled_dot_product_attention(*qkv).transpose(1, 2) for qkv in zip(*parts)]
        return torch.autograd.grad(torch.cat(out, dim=1), leaves, grad.unsqueeze(0))

    return _with_grad(run)


def padded_sdpa(data: Packed, grad: Tensor) -> Candidate:
    """SDPA on padded input with a key mask, boolean or additive, whichever is faster."""
    parts, keep = padded_parts(data)
    leaves = [x.requires_grad_() for x in parts]
    rows = data.layout.key_padding_mask()
    padded_grad = torch.zeros_like(leaves[0]).transpose(1, 2)
    padded_grad[rows] = grad
    padded_grad = padded_grad.transpose(1, 2)
    masks = {
        "boolean": keep,
        "additive": torch.zeros(keep.shape, device=keep.device).masked_fill(~keep, -torch.inf),
    }

    def call(mask: Tensor) -> Callable[[], Gradients]:
        return _with_grad(
            lambda: torch.autograd.grad(F.scaled_dot_product_attention(*leaves, attn_mask=mask), leaves, padded_grad)
        )

    forms = {name: call(mask) for name, mask in masks.items()}
    best = fastest(forms, clock_for(grad.device))

    def view(grads: Gradients) -> Tensor:
        return torch.stack([g.transpose(1, 2)[rows] for g in grads])

    return Candidate(forms[best], view=view, note=f"mask {best}")


@torch.inference_mode(False)
def _build(case: Case, device: torch.device) -> Built:
    data = packed_input(case.lengths, device)
    grad = _gradient(data)

    def expected() -> Tensor:
        cu, scale = data.layout.offsets, HEAD_DIM**-0.5
        exact = [x.double() for x in (data.q, data.k, data.v)]
        results = ragged_attention_fwd_reference(*exact, cu, cu, scale=scale)
        grads = ragged_attention_bwd_reference(grad.double(), None, *exact, *results, cu, cu, scale=scale)
        return torch.stack(grads[:3])

    return Built(
        candidates={
            OURS: Candidate(ours(data, grad), view=torch.stack),
            LOOP: Candidate(sdpa_loop(data, grad), view=torch.stack),
            PADDED: padded_sdpa(data, grad),
        },
        expected=expected,
        tolerance=2e-5,
        shapes={"B": len(case.lengths), "T": data.layout.total, "L": data.layout.max_len, "H": HEADS, "D": HEAD_DIM},
        flops=3.5 * pair_flops(case.lengths, HEADS, HEAD_DIM),  # scores are computed again: 2 + 5 products
    )


def _causal_cases(suite: str) -> list[Case]:
    return list_cases(suite, 32, LISTS if suite == "smoke" else ("MNLI", "RACE"))


def _build_causal(case: Case, device: torch.device) -> Built:
    data = packed_input(case.lengths, device)
    cu, longest = data.layout.cu_seqlens, data.layout.max_len
    q, k, v = data.q, data.k, data.v

    def loop() -> Tensor:
        parts: Sequence[Sequence[Tensor]] = [
            x.transpose(0, 1).unsqueeze(0).split(data.lengths, dim=2) for x in (q, k, v)
        ]
        out = [F.scaled_dot_product_attention(*one, is_causal=True).transpose(1, 2) for one in zip(*parts)]
        return torch.cat(out, dim=1)

    def expected() -> Tensor:
        exact = [x.double() for x in (q, k, v)]
        return ragged_attention_fwd_reference(*exact, cu, cu, scale=HEAD_DIM**-0.5, causal=True)[0]

    return Built(
        candidates={
            CAUSAL: Candidate(lambda: ragged_attention(q, k, v, cu, cu, longest, longest, causal=True)),
            UNMASKED: Candidate(lambda: ragged_attention(q, k, v, cu, cu, longest, longest), gate=False),
            CAUSAL_LOOP: Candidate(loop, view=lambda out: out[0]),
        },
        expected=expected,
        tolerance=2e-5,
        shapes={"B": len(case.lengths), "T": data.layout.total, "L": longest, "H": HEADS, "D": HEAD_DIM},
        flops=2.0 * HEADS * HEAD_DIM * sum(n * (n + 1) for n in case.lengths),
    )


WORKLOADS = (
    Workload(
        name="ragged_attention_train",
        ops=("ragged_attention",),
        summary="attention core, forward and backward, on eight length lists",
        ours=OURS,
        baseline=LOOP,
        cases=list_cases,
        build=_build,
    ),
    Workload(
        name="ragged_attention_causal",
        ops=("ragged_attention",),
        summary="causal attention against unmasked attention of the same lengths, forward",
        ours=CAUSAL,
        baseline=UNMASKED,
        cases=_causal_cases,
        build=_build_causal,
    ),
)
