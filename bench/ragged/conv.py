# SPDX-License-Identifier: Apache-2.0
"""Convolution along packed sequences, 256 channels, 3 taps, first batch of 32, forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ragged.attention import list_cases
from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged import ragged_conv1d
from edgeops.ragged._reference_conv import ragged_conv1d_fwd_reference
from edgeops.ragged.layout import RaggedLayout

OURS = "edgeops"
LOOP = "conv1d per sequence"
_CHANNELS, _TAPS = 256, 3


def _build(case: Case, device: torch.device) -> Built:
    layout = RaggedLayout.from_lengths(case.lengths, device=device)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(layout.total, _CHANNELS, generator=generator).to(device)
    weight = (torch.randn(_CHANNELS, _CHANNELS, _TAPS, generator=generator) / 16).to(device)
    bias = torch.randn(_CHANNELS, generator=generator).to(device)
    offsets, keep = layout.offsets, layout.key_padding_mask()
    padded = torch.zeros(*keep.shape, _CHANNELS, device=device)
    padded[keep] = rows
    columns = padded.transpose(1, 2).contiguous()

    def loop() -> Tensor:
        parts = rows.split(case.lengths)
        return torch.cat([F.conv1d(part.T[None], weight, bias, padding="same")[0].T for part in parts])

    return Built(
        candidates={
            OURS: Candidate(lambda: ragged_conv1d(rows, offsets, weight, bias)),
            LOOP: Candidate(loop),
            "conv1d, padded": Candidate(
                lambda: F.conv1d(columns, weight, bias, padding="same"),
                view=lambda y: y.transpose(1, 2)[keep],
                note="padded and transposed beforehand",
            ),
        },
        expected=lambda: ragged_conv1d_fwd_reference(
            rows.double(), offsets, weight.double(), bias.double(), 1, 1, 1, 1
        ),
        tolerance=1e-4,
        shapes={"B": layout.num_sequences, "T": layout.total, "L": layout.max_len, "C": _CHANNELS, "K": _TAPS},
        flops=2.0 * layout.total * _CHANNELS * _CHANNELS * _TAPS,
    )


WORKLOADS = (
    Workload(
        name="ragged_conv1d",
        ops=("ragged_conv1d",),
        summary="convolution of each sequence, 256 channels, 3 taps",
        ours=OURS,
        baseline=LOOP,
        cases=list_cases,
        build=_build,
    ),
)
