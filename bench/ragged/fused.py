# SPDX-License-Identifier: Apache-2.0
"""The two fused position-wise steps of an encoder layer on packed rows, forward.

bias + GELU on the 2048 feed-forward columns, and bias + residual + LayerNorm on the 512 model columns. The baselines
get the same unfused input; "bias inside the product" is what a plain `nn.Linear` leaves to do: the strongest peer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bench.ragged.attention import list_cases
from bench.ragged.encoder_layer import FEED, MODEL
from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged import add_layer_norm, bias_gelu
from edgeops.ragged._reference import add_layer_norm_fwd_reference, bias_gelu_fwd_reference

OURS = "edgeops"


def _normal(*shape: int, seed: int, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _build_bias_gelu(case: Case, device: torch.device) -> Built:
    total = sum(case.lengths)
    x, bias = _normal(total, FEED, seed=0, device=device), _normal(FEED, seed=1, device=device)
    with_bias = x + bias
    return Built(
        candidates={
            OURS: Candidate(lambda: bias_gelu(x, bias)),
            "gelu(x + bias)": Candidate(lambda: F.gelu(x + bias)),
            "gelu, bias inside the product": Candidate(lambda: F.gelu(with_bias)),
        },
        expected=lambda: bias_gelu_fwd_reference(x.double(), bias.double(), False),
        tolerance=2e-6,
        shapes={"T": total, "C": FEED},
        bytes=2.0 * total * FEED * 4,
    )


def _build_add_layer_norm(case: Case, device: torch.device) -> Built:
    total = sum(case.lengths)
    x, residual = (_normal(total, MODEL, seed=seed, device=device) for seed in (0, 1))
    x_bias, weight, bias = (_normal(MODEL, seed=seed, device=device) for seed in (2, 3, 4))
    with_bias = x + x_bias
    return Built(
        candidates={
            OURS: Candidate(lambda: add_layer_norm(x, residual, weight, bias, 1e-5, x_bias)),
            "layer_norm(x + bias + residual)": Candidate(
                lambda: F.layer_norm(x + x_bias + residual, (MODEL,), weight, bias)
            ),
            "layer_norm, bias inside the product": Candidate(
                lambda: F.layer_norm(with_bias + residual, (MODEL,), weight, bias)
            ),
        },
        expected=lambda: add_layer_norm_fwd_reference(
            x.double(), x_bias.double(), residual.double(), weight.double(), bias.double(), 1e-5
        )[0],
        tolerance=2e-5,
        shapes={"T": total, "C": MODEL},
        bytes=3.0 * total * MODEL * 4,
    )


WORKLOADS = (
    Workload(
        name="bias_gelu",
        ops=("bias_gelu",),
        summary="GELU of x + bias on packed rows, 2048 wide",
        ours=OURS,
        baseline="gelu(x + bias)",
        cases=list_cases,
        build=_build_bias_gelu,
    ),
    Workload(
        name="add_layer_norm",
        ops=("add_layer_norm",),
        summary="LayerNorm of x + bias + residual on packed rows, 512 wide",
        ours=OURS,
        baseline="layer_norm(x + bias + residual)",
        cases=list_cases,
        build=_build_add_layer_norm,
    ),
)
