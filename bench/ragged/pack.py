# SPDX-License-Identifier: Apache-2.0
"""Padded to packed and back, forward: what unpadding costs at both ends of a model (512 wide, first batch of 32)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.ragged.attention import list_cases
from bench.ragged.encoder_layer import MODEL, padded_input
from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged import pack, unpack
from edgeops.ragged.layout import RaggedLayout

OURS = "edgeops"


def _case(case: Case, device: torch.device) -> tuple[RaggedLayout, Tensor, Tensor, Tensor]:
    """Layout, padded input, token mask, and the flat index of each token."""
    layout = RaggedLayout.from_lengths(case.lengths, device=device)
    x, keep = padded_input(layout, device)
    return layout, x, keep, keep.view(-1).nonzero().squeeze(1)


def _shapes(layout: RaggedLayout) -> dict[str, int]:
    return {"B": layout.num_sequences, "T": layout.total, "L": layout.max_len, "C": MODEL}


def _build_pack(case: Case, device: torch.device) -> Built:
    layout, x, keep, index = _case(case, device)
    return Built(
        candidates={
            OURS: Candidate(lambda: pack(x, layout)),
            "index_select": Candidate(lambda: x.view(-1, MODEL).index_select(0, index), note="index made beforehand"),
            "x[mask]": Candidate(lambda: x[keep]),
        },
        expected=lambda: x[keep],
        tolerance=0.0,
        shapes=_shapes(layout),
        bytes=2.0 * layout.total * MODEL * 4,
    )


def _build_unpack(case: Case, device: torch.device) -> Built:
    layout, x, _, index = _case(case, device)
    values = pack(x, layout)
    lengths, rows = list(case.lengths), layout.num_sequences * layout.max_len

    def copy_rows() -> Tensor:
        return values.new_zeros(rows, MODEL).index_copy_(0, index, values).view(x.shape)

    return Built(
        candidates={
            OURS: Candidate(lambda: unpack(values, layout)),
            "zeros + index_copy": Candidate(copy_rows, note="index made beforehand"),
            "pad_sequence": Candidate(lambda: torch.nn.utils.rnn.pad_sequence(values.split(lengths), batch_first=True)),
        },
        expected=lambda: x,
        tolerance=0.0,
        shapes=_shapes(layout),
        bytes=float(layout.total + rows) * MODEL * 4,
    )


WORKLOADS = (
    Workload(
        name="pack",
        ops=("ragged_pack",),
        summary="padded [B, L, 512] to packed rows",
        ours=OURS,
        baseline="index_select",
        cases=list_cases,
        build=_build_pack,
    ),
    Workload(
        name="unpack",
        ops=("ragged_unpack",),
        summary="packed rows to padded [B, L, 512]",
        ours=OURS,
        baseline="zeros + index_copy",
        cases=list_cases,
        build=_build_unpack,
    ),
)
