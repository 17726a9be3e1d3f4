# SPDX-License-Identifier: Apache-2.0
"""One encoder layer in bfloat16 on a GPU, padded to padded (CoRa, MLSys 2022, section 7.2; spec section 14, G3).

As for the peers, what depends on the lengths alone (index, masks, layout) is made beforehand: a model makes it once for
all its layers. `edgeops, from the mask` makes it in every call. Packing and unpacking are inside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.ragged.attention import OURS, PADDED
from bench.ragged.attention_gpu import gpu_cases
from bench.ragged.encoder_layer import (
    FEED,
    HEAD_DIM,
    HEADS,
    MODEL,
    attend_padded,
    layer_flops,
    make_layer,
    padded_input,
    padded_layer,
    reference,
    run_rows,
)
from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged import RaggedLayout, pack, unpack
from edgeops.ragged.convert import convert, encode_packed

FROM_MASK, HYBRID = "edgeops, from the mask", "packed linear + padded attention"
BATCHES = (32, 64, 128)


def hybrid_layer(layer: nn.TransformerEncoderLayer, x: Tensor, keep: Tensor) -> Callable[[], Tensor]:
    """The scheme of FasterTransformer: linear layers on packed rows, attention on padded ones."""
    index = keep.view(-1).nonzero().squeeze(1)
    batch, length = keep.shape
    on_padded = attend_padded(batch, keep[:, None, None, :])

    def attend(qkv: Tensor) -> Tensor:
        full = qkv.new_zeros(batch * length, 3, HEADS, HEAD_DIM).index_copy_(0, index, qkv)
        return on_padded(full).index_select(0, index)

    def run() -> Tensor:
        rows = run_rows(layer, x.view(-1, MODEL).index_select(0, index), attend)
        return x.new_zeros(batch * length, MODEL).index_copy_(0, index, rows).view(x.shape)

    return run


def packed_layer(converted: nn.Module, x: Tensor, layout: RaggedLayout) -> Callable[[], Tensor]:
    """Ours with a layout that is there: pack, the converted layer, unpack."""

    def run() -> Tensor:
        rows, _ = encode_packed(converted, pack(x, layout), layout=layout)
        return unpack(rows, layout)

    return run


def waits_in_a_call(run: Callable[[], Any], calls: int = 3) -> int:
    """How often the host waits for the GPU, or reads from it, in `calls` calls, seen by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    def waits(work: Callable[[], Any]) -> int:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            work()
        return sum(e.count for e in seen.key_averages() if "Synchronize" in e.key or "Memcpy DtoH" in e.key)

    def several() -> None:
        for _ in range(calls):
            run()

    several()
    torch.cuda.synchronize()
    # the profiler waits for the GPU too, once at its end
    return waits(several) - waits(lambda: None)


def parts(
    case: Case, device: torch.device
) -> tuple[nn.TransformerEncoderLayer, nn.Module, RaggedLayout, Tensor, Tensor]:
    """Layer, converted layer, layout, padded input and the mask of its tokens."""
    layer = make_layer(device).to(torch.bfloat16)
    layout = RaggedLayout.from_lengths(case.lengths, device=device)
    x, keep = padded_input(layout, device)
    return layer, convert(copy.deepcopy(layer)), layout, x.to(torch.bfloat16), keep


def _build(case: Case, device: torch.device) -> Built:
    layer, converted, layout, x, keep = parts(case, device)
    padding = ~keep

    def rows_of(out: Tensor) -> Tensor:
        return out[:, : keep.shape[1]][keep]

    return Built(
        candidates={
            OURS: Candidate(packed_layer(converted, x, layout), view=rows_of),
            FROM_MASK: Candidate(lambda: converted(x, src_key_padding_mask=padding), view=rows_of),
            PADDED: Candidate(padded_layer(layer, x, keep), view=rows_of),
            HYBRID: Candidate(hybrid_layer(layer, x, keep), view=rows_of),
        },
        expected=lambda: reference(layer, x[keep], layout),
        # two normalised rows of up to about 4.5, rounded to 2^-9 at every step
        tolerance=0.1,
        dtype="bfloat16",
        shapes={"B": len(case.lengths), "T": layout.total, "L": layout.max_len, "M": MODEL, "H": HEADS, "FF": FEED},
        flops=layer_flops(case.lengths),
    )


def _cases(suite: str) -> list[Case]:
    sizes = BATCHES[:1] if suite == "smoke" else BATCHES
    return [case for size in sizes for case in gpu_cases(suite, size)]


WORKLOADS = (
    Workload(
        name="encoder_layer_gpu",
        ops=("ragged_attention", "ragged_pack", "ragged_unpack", "add_layer_norm"),
        summary="one encoder layer in bfloat16 on a GPU, padded to padded, on eight length lists and three batch sizes",
        ours=OURS,
        baseline=PADDED,
        cases=_cases,
        build=_build,
    ),
)
