# SPDX-License-Identifier: Apache-2.0
"""Normalisation of each column over the tokens of each sequence, 256 wide, first batch of 32, forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ragged.attention import list_cases
from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged import ragged_instance_norm
from edgeops.ragged._reference_norm import ragged_instance_norm_fwd_reference
from edgeops.ragged.layout import RaggedLayout

OURS = "edgeops"
LOOP = "instance_norm per sequence"
_COLUMNS = 256


def _build(case: Case, device: torch.device) -> Built:
    layout = RaggedLayout.from_lengths(case.lengths, device=device)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(layout.total, _COLUMNS, generator=generator).to(device)
    weight, bias = torch.randn(2, _COLUMNS, generator=generator).to(device)
    offsets, ids = layout.offsets, layout.sequence_ids
    lengths = torch.tensor(case.lengths, device=device)

    def loop() -> Tensor:
        parts = rows.split(case.lengths)
        return torch.cat([F.instance_norm(p.T[None], weight=weight, bias=bias)[0].T for p in parts])

    def formula() -> Tensor:
        mean = torch.segment_reduce(rows, "mean", lengths=lengths, axis=0)
        gap = rows - mean[ids]
        variance = torch.segment_reduce(gap * gap, "mean", lengths=lengths, axis=0)
        return gap * torch.rsqrt(variance + 1e-5)[ids] * weight + bias

    return Built(
        candidates={
            OURS: Candidate(lambda: ragged_instance_norm(rows, offsets, weight, bias)),
            LOOP: Candidate(loop),
            "segment_reduce formula": Candidate(formula, note="sequence ids made beforehand"),
        },
        expected=lambda: ragged_instance_norm_fwd_reference(
            rows.double(), offsets, weight.double(), bias.double(), 1e-5
        )[0],
        tolerance=1e-3,
        shapes={"B": layout.num_sequences, "T": layout.total, "L": layout.max_len, "C": _COLUMNS},
        bytes=2.0 * layout.total * _COLUMNS * 4,
    )


WORKLOADS = (
    Workload(
        name="ragged_instance_norm",
        ops=("ragged_instance_norm",),
        summary="normalisation over the rows of each sequence, 256 columns",
        ours=OURS,
        baseline=LOOP,
        cases=list_cases,
        build=_build,
    ),
)
