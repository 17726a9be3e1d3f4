# SPDX-License-Identifier: Apache-2.0
"""Mean over the tokens of each sequence, forward (512 wide, first batch of 32): the last step of a sentence encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.ragged.attention import list_cases
from bench.ragged.encoder_layer import MODEL, padded_input
from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged import ragged_pool
from edgeops.ragged._reference import ragged_pool_fwd_reference
from edgeops.ragged.layout import RaggedLayout

OURS = "edgeops"


def _build(case: Case, device: torch.device) -> Built:
    layout = RaggedLayout.from_lengths(case.lengths, device=device)
    padded, keep = padded_input(layout, device)
    rows = padded[keep]
    offsets, ids = layout.offsets, layout.sequence_ids
    lengths = torch.tensor(case.lengths, device=device)
    weights = keep[:, :, None].to(padded.dtype)

    def index_add() -> Tensor:
        return rows.new_zeros(len(case.lengths), MODEL).index_add_(0, ids, rows) / lengths[:, None]

    return Built(
        candidates={
            OURS: Candidate(lambda: ragged_pool(rows, offsets, "mean")),
            "masked mean, padded": Candidate(lambda: (padded * weights).sum(1) / weights.sum(1)),
            "segment_reduce": Candidate(lambda: torch.segment_reduce(rows, "mean", lengths=lengths, axis=0)),
            "index_add": Candidate(index_add, note="sequence ids made beforehand"),
        },
        expected=lambda: ragged_pool_fwd_reference(rows.double(), offsets, 1),
        tolerance=1e-5,
        shapes={"B": layout.num_sequences, "T": layout.total, "L": layout.max_len, "C": MODEL},
        bytes=float(layout.total + layout.num_sequences) * MODEL * 4,
    )


WORKLOADS = (
    Workload(
        name="ragged_pool",
        ops=("ragged_pool",),
        summary="mean of each sequence of packed rows, 512 wide",
        ours=OURS,
        baseline="masked mean, padded",
        cases=list_cases,
        build=_build,
    ),
)
