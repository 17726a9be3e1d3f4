# SPDX-License-Identifier: Apache-2.0
"""Softmax over the tokens of each sequence, 12 columns wide (one for each head), first batch of 32, forward."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.ragged.attention import list_cases
from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged import ragged_softmax
from edgeops.ragged._reference_softmax import ragged_softmax_fwd_reference
from edgeops.ragged.layout import RaggedLayout

OURS = "edgeops"
PADDED = "softmax, padded with mask"
_COLUMNS = 12


def _build(case: Case, device: torch.device) -> Built:
    layout = RaggedLayout.from_lengths(case.lengths, device=device)
    rows = torch.randn(layout.total, _COLUMNS, generator=torch.Generator().manual_seed(0)).to(device)
    offsets, ids = layout.offsets, layout.sequence_ids
    keep = layout.key_padding_mask()
    padded = torch.zeros(*keep.shape, _COLUMNS, device=device)
    padded[keep] = rows
    hidden = ~keep[:, :, None]
    lengths = torch.tensor(case.lengths, device=device)

    def formula() -> Tensor:
        top = torch.segment_reduce(rows, "max", lengths=lengths, axis=0)
        e = (rows - top[ids]).exp()
        return e / torch.segment_reduce(e, "sum", lengths=lengths, axis=0)[ids]

    def loop() -> Tensor:
        return torch.cat([part.softmax(0) for part in rows.split(case.lengths)])

    return Built(
        candidates={
            OURS: Candidate(lambda: ragged_softmax(rows, offsets)),
            PADDED: Candidate(lambda: padded.masked_fill(hidden, -torch.inf).softmax(1), view=lambda y: y[keep]),
            "segment_reduce formula": Candidate(formula, note="sequence ids made beforehand"),
            "softmax per sequence": Candidate(loop),
        },
        expected=lambda: ragged_softmax_fwd_reference(rows.double(), offsets, False),
        tolerance=1e-6,
        shapes={"B": layout.num_sequences, "T": layout.total, "L": layout.max_len, "C": _COLUMNS},
        bytes=2.0 * layout.total * _COLUMNS * 4,
    )


WORKLOADS = (
    Workload(
        name="ragged_softmax",
        ops=("ragged_softmax",),
        summary="softmax over the rows of each sequence, 12 columns",
        ours=OURS,
        baseline=PADDED,
        cases=list_cases,
        build=_build,
    ),
)
