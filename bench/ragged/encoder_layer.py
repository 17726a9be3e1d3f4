# SPDX-License-Identifier: Apache-2.0
"""One transformer encoder layer, forward, padded input to padded output (CoRa, MLSys 2022, section 7.2).

512 wide, 8 heads of 64, feed-forward 2048, GELU, post-norm. Packing and unpacking are inside every packed candidate,
and the sorted micro-batch cuts, runs and puts back; its size is tuned per case by trying powers of two. In favour of
these peers their index, masks and sorting order are made beforehand; ours makes its layout from the mask every time.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.inputs import LISTS
from bench.ragged.attention import clock_for, fastest, list_cases
from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged._reference import ragged_attention_fwd_reference
from edgeops.ragged.convert import convert
from edgeops.ragged.layout import RaggedLayout

MODEL, HEADS, FEED = 512, 8, 2048
HEAD_DIM = MODEL // HEADS
OURS, LOOP, PADDED, FAST, MICRO = "edgeops", "packed + sdpa loop", "padded sdpa", "nn fast path", "sorted micro-batch"

Attend = Callable[[Tensor], Tensor]
"""Fused projections `[rows, 3, H, D]` to attention output `[rows, H * D]`."""


def make_layer(device: torch.device) -> nn.TransformerEncoderLayer:
    """The layer of the paper, seeded, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(MODEL, HEADS, FEED, dropout=0.0, activation="gelu", batch_first=True)
    return layer.to(device).eval()


def run_rows(layer: nn.TransformerEncoderLayer, x: Tensor, attend: Attend) -> Tensor:
    """The post-norm layer on rows `[rows, M]`; everything but attention is independent of the sequence."""
    attn = layer.self_attn
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).view(-1, 3, HEADS, HEAD_DIM)
    x = layer.norm1(x + attn.out_proj(attend(qkv)))
    return layer.norm2(x + layer.linear2(F.gelu(layer.linear1(x))))


def attend_padded(batch: int, mask: Tensor | None) -> Attend:
    """SDPA over `batch` padded sequences with an optional key mask `[B, 1, 1, L]`."""

    def attend(qkv: Tensor) -> Tensor:
        q, k, v = qkv.view(batch, -1, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(-1, MODEL)

    return attend


def attend_loop(lengths: list[int]) -> Attend:
    """One SDPA call per sequence on views of the packed projections."""

    def attend(qkv: Tensor) -> Tensor:
        q, k, v = (part.split(lengths, dim=2) for part in qkv.permute(1, 2, 0, 3).unsqueeze(1))
        out = [F.scaled_dot_product_attention(*one).transpose(1, 2) for one in zip(q, k, v)]
        return torch.cat(out, dim=1).view(-1, MODEL)

    return attend


def padded_layer(layer: nn.TransformerEncoderLayer, x: Tensor, keep: Tensor) -> Callable[[], Tensor]:
    """The plain padded layer with SDPA."""
    attend = attend_padded(x.shape[0], keep[:, None, None, :])
    return lambda: run_rows(layer, x.view(-1, MODEL), attend).view(x.shape)


def packed_layer(
    layer: nn.TransformerEncoderLayer, x: Tensor, keep: Tensor, lengths: list[int]
) -> Callable[[], Tensor]:
    """Rows of real tokens only: gather, layer with a loop of SDPA, scatter."""
    index = keep.view(-1).nonzero().squeeze(1)
    attend = attend_loop(lengths)

    def run() -> Tensor:
        rows = run_rows(layer, x.view(-1, MODEL).index_select(0, index), attend)
        return x.new_zeros(x.shape[0] * x.shape[1], MODEL).index_copy_(0, index, rows).view(x.shape)

    return run


def micro_batches(
    layer: nn.TransformerEncoderLayer, x: Tensor, keep: Tensor, lengths: list[int], size: int
) -> Callable[[], Tensor]:
    """Sorted by length, cut into micro-batches, each padded to its own longest; rows put back at their place."""
    order = torch.tensor(sorted(range(len(lengths)), key=lambda b: -lengths[b]), device=x.device)
    pieces = []
    for index in order.split(size):
        longest = max(lengths[b] for b in index.tolist())
        mask = keep[index, :longest]
        same = bool(mask.all())
        pieces.append((index, longest, attend_padded(len(index), None if same else mask[:, None, None, :])))

    def run() -> Tensor:
        out = x.new_zeros(x.shape)
        for index, longest, attend in pieces:
            part = x[:, :longest].index_select(0, index)
            out[index, :longest] = run_rows(layer, part.view(-1, MODEL), attend).view(part.shape)
        return out

    return run


def best_micro_batch(
    layer: nn.TransformerEncoderLayer, x: Tensor, keep: Tensor, lengths: list[int]
) -> tuple[Callable[[], Tensor], str]:
    """The micro-batch size that runs fastest, of the powers of two below the batch."""
    sizes = [size for size in (1, 2, 4, 8, 16) if size < len(lengths)] or [1]
    forms = {str(size): micro_batches(layer, x, keep, lengths, size) for size in sizes}
    best = fastest(forms, clock_for(x.device), rounds=2)
    return forms[best], f"micro-batch {best}"


def reference(layer: nn.TransformerEncoderLayer, rows: Tensor, layout: RaggedLayout) -> Tensor:
    """The layer in float64 on packed rows with the readable attention twin."""

    def attend(qkv: Tensor) -> Tensor:
        offsets = layout.offsets
        out, _ = ragged_attention_fwd_reference(*qkv.unbind(1), offsets, offsets, scale=HEAD_DIM**-0.5)
        return out.reshape(-1, MODEL)

    return run_rows(copy.deepcopy(layer).double(), rows.double(), attend)


def layer_flops(lengths: tuple[int, ...]) -> float:
    """Matrix products only: `2 T (4 M^2 + 2 M FF) + 4 M sum l^2`, multiply and add counted apart."""
    return 2.0 * sum(lengths) * (4 * MODEL**2 + 2 * MODEL * FEED) + 4.0 * MODEL * sum(n * n for n in lengths)


def padded_input(layout: RaggedLayout, device: torch.device) -> tuple[Tensor, Tensor]:
    """Unit-normal `[B, L, M]` with zeros in the padding, and the `[B, L]` mask that is true on tokens."""
    keep = layout.key_padding_mask().to(device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*keep.shape, MODEL, generator=generator).to(device)
    return x * keep[:, :, None], keep


def _build(case: Case, device: torch.device) -> Built:
    layer = make_layer(device)
    layout = RaggedLayout.from_lengths(case.lengths, device=device)
    x, keep = padded_input(layout, device)
    padding, lengths = ~keep, list(case.lengths)
    stack = nn.TransformerEncoder(layer, 1, enable_nested_tensor=True).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the fast path says once that nested tensors are a prototype
        stack(x, src_key_padding_mask=padding)
    converted = convert(copy.deepcopy(layer))
    micro, note = best_micro_batch(layer, x, keep, lengths)

    def rows_of(out: Tensor) -> Tensor:
        return out[:, : keep.shape[1]][keep]

    return Built(
        candidates={
            OURS: Candidate(lambda: converted(x, src_key_padding_mask=padding), view=rows_of),
            LOOP: Candidate(packed_layer(layer, x, keep, lengths), view=rows_of),
            PADDED: Candidate(padded_layer(layer, x, keep), view=rows_of),
            FAST: Candidate(lambda: stack(x, src_key_padding_mask=padding), view=rows_of),
            MICRO: Candidate(micro, view=rows_of, note=note),
        },
        expected=lambda: reference(layer, x[keep], layout),
        tolerance=2e-5,
        shapes={"B": len(lengths), "T": layout.total, "L": layout.max_len, "M": MODEL, "H": HEADS, "FF": FEED},
        flops=layer_flops(case.lengths),
    )


WORKLOADS = (
    Workload(
        name="encoder_layer",
        ops=("ragged_attention", "ragged_pack", "ragged_unpack", "add_layer_norm"),
        summary="one encoder layer (512, 8x64, 2048), padded to padded, on eight length lists",
        ours=OURS,
        baseline=LOOP,
        cases=lambda suite: list_cases(suite, 32, LISTS),
        build=_build,
    ),
)
