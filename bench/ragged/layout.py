# SPDX-License-Identifier: Apache-2.0
"""Building the layout of a batch, against one encoder layer on the same batch (CoRa, MLSys 2022, section 7.4).

The layout is made from the padding mask, which is what a model is given, with all that the forward pass reads from it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from bench.ragged.attention import list_cases
from bench.ragged.encoder_layer import make_layer, padded_input
from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged.convert import convert
from edgeops.ragged.layout import RaggedLayout

OURS, FROM_LENGTHS, LAYER = "edgeops, from mask", "edgeops, from lengths", "one encoder layer, edgeops"


def _used(layout: RaggedLayout) -> Tensor:
    """Touch what the ops read, because some of it is made when first asked for."""
    assert layout.cu_seqlens is not None
    return layout.offsets


def _build(case: Case, device: torch.device) -> Built:
    lengths = list(case.lengths)
    layout = RaggedLayout.from_lengths(lengths, device=device)
    x, keep = padded_input(layout, device)
    padding = ~keep
    layer = convert(copy.deepcopy(make_layer(device)))
    return Built(
        candidates={
            OURS: Candidate(lambda: _used(RaggedLayout.from_padding_mask(keep))),
            FROM_LENGTHS: Candidate(lambda: _used(RaggedLayout.from_lengths(lengths))),
            LAYER: Candidate(lambda: layer(x, src_key_padding_mask=padding), gate=False),
        },
        expected=lambda: torch.tensor([0, *lengths]).cumsum(0),
        tolerance=0.0,
        shapes={"B": layout.num_sequences, "T": layout.total, "L": layout.max_len},
        dtype="int64",
    )


WORKLOADS = (
    Workload(
        name="ragged_layout",
        ops=(),
        summary="building a layout, against one encoder layer on the same batch",
        ours=OURS,
        baseline=LAYER,
        cases=list_cases,
        build=_build,
    ),
)
