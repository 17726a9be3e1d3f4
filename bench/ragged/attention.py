# SPDX-License-Identifier: Apache-2.0
"""Attention core, forward, on the eight length lists (CoRa, MLSys 2022, section 7; here batch 32, 8 heads of 64).

Peers, each with the input in the form its user would have: padded SDPA gets padded q, k and v and the cheapest valid
form of mask, found by trying; the loop of SDPA gets packed q, k and v, as ours does, and returns packed rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.inputs import LISTS, batch
from bench.registry import Built, Candidate, Case, Workload
from edgeops import perf
from edgeops.ragged import ragged_attention
from edgeops.ragged._reference import ragged_attention_fwd_reference
from edgeops.ragged.layout import RaggedLayout

HEADS, HEAD_DIM = 8, 64
OURS, LOOP, PADDED, NESTED, FLASH = "edgeops", "sdpa loop", "padded sdpa", "njt sdpa", "torch varlen_attn"


@dataclass(frozen=True)
class Packed:
    """Packed q, k and v `[T, H, D]` and their layout."""

    q: Tensor
    k: Tensor
    v: Tensor
    layout: RaggedLayout

    @property
    def lengths(self) -> list[int]:
        """Tokens per sequence."""
        return list(self.layout.lengths)


def packed_input(
    lengths: Sequence[int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    heads: int = HEADS,
    dim: int = HEAD_DIM,
) -> Packed:
    """Unit-normal q, k and v, seeded."""
    layout = RaggedLayout.from_lengths(lengths, device=device)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(layout.total, heads, dim, generator=generator).to(device, dtype) for _ in range(3))
    return Packed(q, k, v, layout)


def fastest(forms: dict[str, Callable[[], Any]], clock: str, rounds: int = 3) -> str:
    """The form of a peer that runs fastest on this input."""
    seen = perf.interleave(forms, rounds=rounds, warmup=0, clock=clock, min_block_s=2e-3)
    return min(seen, key=lambda name: seen[name].median)


def clock_for(device: torch.device) -> str:
    """The clock to tune with on a device."""
    return "cuda" if device.type == "cuda" else perf.default_clock(torch.get_num_threads())


def sdpa_loop(data: Packed, causal: bool = False) -> Callable[[], Tensor]:
    """One SDPA call per sequence on views of the packed rows, joined again into packed rows `[1, T, H, D]`."""
    lengths = data.lengths

    def run() -> Tensor:
        parts = [x.transpose(0, 1).unsqueeze(0).split(lengths, dim=2) for x in (data.q, data.k, data.v)]
        # SDPA's result is laid out [1, L, H, D] in memory: joining that form copies whole rows.
        out = [F.scaled_dot_product_attention(*qkv, is_causal=causal).transpose(1, 2) for qkv in zip(*parts)]
        return torch.cat(out, dim=1)

    return run


def padded_parts(data: Packed) -> tuple[list[Tensor], Tensor]:
    """Padded `[B, H, L, D]` q, k, v and the `[B, 1, 1, L]` mask that is true on tokens."""
    lengths = data.lengths
    parts = [
        torch.nn.utils.rnn.pad_sequence(x.split(lengths), batch_first=True).transpose(1, 2).contiguous()
        for x in (data.q, data.k, data.v)
    ]
    return parts, data.layout.key_padding_mask()[:, None, None, :]


def padded_sdpa(data: Packed) -> Candidate:
    """SDPA on padded input with a key mask in its fastest form: boolean or additive, broadcast or written out."""
    (q, k, v), keep = padded_parts(data)
    size = q.shape[2]
    additive = torch.zeros(keep.shape, dtype=q.dtype, device=q.device).masked_fill(~keep, -torch.inf)
    masks = {"boolean [B,1,1,L]": keep, "additive [B,1,1,L]": additive}
    if size <= 128:
        masks["additive [B,1,L,L]"] = additive.expand(-1, 1, size, size).contiguous()
        masks["boolean [B,1,L,L]"] = keep.expand(-1, 1, size, size).contiguous()

    def call(mask: Tensor) -> Callable[[], Tensor]:
        return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    forms = {name: call(mask) for name, mask in masks.items()}
    best = fastest(forms, clock_for(q.device))
    keep_rows = data.layout.key_padding_mask()
    return Candidate(forms[best], view=lambda out: out.transpose(1, 2)[keep_rows], note=f"mask {best}")


def nested_sdpa(data: Packed) -> Candidate:
    """SDPA on jagged nested tensors."""
    offsets = data.layout.offsets
    parts = [torch.nested.nested_tensor_from_jagged(x, offsets).transpose(1, 2) for x in (data.q, data.k, data.v)]
    return Candidate(
        lambda: F.scaled_dot_product_attention(*parts), view=lambda out: out.transpose(1, 2).values(), default=False
    )


def reference(data: Packed) -> Tensor:
    """The readable twin in float64, packed with heads first like the loop's result."""
    layout = data.layout
    out, _ = ragged_attention_fwd_reference(
        data.q.double(), data.k.double(), data.v.double(), layout.offsets, layout.offsets, scale=data.q.shape[2] ** -0.5
    )
    return out


def pair_flops(lengths: Sequence[int], heads: int, dim: int) -> float:
    """`4 * H * D * sum l^2`: two products of one multiply and one add each; the softmax is not counted."""
    return 4.0 * heads * dim * sum(n * n for n in lengths)


def ours(data: Packed) -> Callable[[], Tensor]:
    """`edgeops.ragged.ragged_attention` on the packed rows."""
    layout, (q, k, v) = data.layout, (data.q, data.k, data.v)
    cu, longest = layout.cu_seqlens, layout.max_len
    return lambda: ragged_attention(q, k, v, cu, cu, longest, longest)


def flash_varlen(data: Packed) -> Candidate:
    """PyTorch's own `varlen_attn`, which is FlashAttention: CUDA and half precision only."""
    from torch.nn.attention.varlen import varlen_attn

    layout = data.layout
    cu, longest = layout.cu_seqlens, layout.max_len
    return Candidate(lambda: varlen_attn(data.q, data.k, data.v, cu, cu, longest, longest))


def _build(case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> Built:
    data = packed_input(case.lengths, device, dtype)
    candidates = {
        OURS: Candidate(ours(data)),
        LOOP: Candidate(sdpa_loop(data), view=lambda out: out[0]),
        PADDED: padded_sdpa(data),
        NESTED: nested_sdpa(data),
    }
    half = dtype != torch.float32
    if half and device.type == "cuda":
        candidates[FLASH] = flash_varlen(data)
    return Built(
        candidates=candidates,
        expected=lambda: reference(data),
        # a bfloat16 result is rounded to 2^-9 of values up to about 4
        tolerance=2e-2 if half else 2e-5 if device.type == "cuda" else 5e-6,
        dtype=str(dtype).removeprefix("torch."),
        shapes={"B": len(case.lengths), "T": data.layout.total, "L": data.layout.max_len, "H": HEADS, "D": HEAD_DIM},
        flops=pair_flops(case.lengths, HEADS, HEAD_DIM),
        bytes=4.0 * data.layout.total * HEADS * HEAD_DIM * dtype.itemsize,
    )


def list_cases(suite: str, size: int = 32, lists: Sequence[str] = LISTS) -> list[Case]:
    """The first batch of each list; `smoke` keeps four sequences of the two shortest lists."""
    if suite == "smoke":
        lists, size = ("CoLA", "MRPC"), 4
    made = []
    for name in lists:
        found = batch(name, size)
        made.append(Case(f"{name}/{size}", found.source, found.values, synthetic=found.synthetic))
    return made


WORKLOADS = (
    Workload(
        name="ragged_attention",
        ops=("ragged_attention", "ragged_attention_lse"),
        summary="attention core, forward, on eight length lists",
        ours=OURS,
        baseline=LOOP,
        cases=list_cases,
        build=_build,
    ),
    Workload(
        name="ragged_attention_bf16",
        ops=("ragged_attention",),
        summary="attention core in bfloat16, forward, on eight length lists",
        ours=OURS,
        baseline=LOOP,
        cases=list_cases,
        build=functools.partial(_build, dtype=torch.bfloat16),
    ),
)
