# SPDX-License-Identifier: Apache-2.0
"""Backward of the fused position-wise steps and of pooling, the forward graph kept: gradients of all their inputs.

The peers are torch's own backward of the same composition; "bias inside the product" leaves out the bias gradient's
share of a plain `nn.Linear`, which is one more pass over the rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ragged.attention import list_cases
from bench.ragged.encoder_layer import FEED, MODEL
from bench.ragged.training import backward_of, flat, with_gradients
from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged import _reference as twin
from edgeops.ragged import add_layer_norm, bias_gelu, ragged_pool
from edgeops.ragged.layout import RaggedLayout

OURS = "edgeops"


def _leaf(*shape: int, seed: int, device: torch.device) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device).requires_grad_()


def _build_bias_gelu(case: Case, device: torch.device) -> Built:
    total = sum(case.lengths)
    x, bias = _leaf(total, FEED, seed=0, device=device), _leaf(FEED, seed=1, device=device)
    grad = _leaf(total, FEED, seed=2, device=device).detach()
    leaves = (x, bias)
    with_bias = (x + bias).detach().requires_grad_()

    def expected() -> Tensor:
        return flat(twin.bias_gelu_bwd_reference(grad.double(), x.detach().double(), bias.detach().double(), False))

    return Built(
        candidates={
            OURS: Candidate(backward_of(lambda: bias_gelu(x, bias), leaves, grad), view=flat),
            "gelu(x + bias)": Candidate(backward_of(lambda: F.gelu(x + bias), leaves, grad), view=flat),
            "gelu, bias inside the product": Candidate(
                backward_of(lambda: F.gelu(with_bias), (with_bias,), grad), gate=False, note="without the bias gradient"
            ),
        },
        expected=expected,
        tolerance=5e-4,
        shapes={"T": total, "C": FEED},
        bytes=3.0 * total * FEED * 4,
    )


def _build_add_layer_norm(case: Case, device: torch.device) -> Built:
    total = sum(case.lengths)
    x, residual = (_leaf(total, MODEL, seed=seed, device=device) for seed in (0, 1))
    weight, bias, x_bias = (_leaf(MODEL, seed=seed, device=device) for seed in (2, 3, 4))
    grad = _leaf(total, MODEL, seed=5, device=device).detach()
    leaves = (x, residual, weight, bias, x_bias)
    with_bias = (x + x_bias).detach().requires_grad_()

    def expected() -> Tensor:
        wide = [one.detach().double() for one in (x, x_bias, residual, weight, bias)]
        _, mean, rstd = twin.add_layer_norm_fwd_reference(*wide, 1e-5)
        dsum, *rest = twin.add_layer_norm_bwd_reference(grad.double(), *wide[:3], mean, rstd, wide[3])
        return flat([dsum, dsum, *rest])

    def plain() -> Tensor:
        return F.layer_norm(x + x_bias + residual, (MODEL,), weight, bias)

    def inside() -> Tensor:
        return F.layer_norm(with_bias + residual, (MODEL,), weight, bias)

    return Built(
        candidates={
            OURS: Candidate(
                backward_of(lambda: add_layer_norm(x, residual, weight, bias, 1e-5, x_bias), leaves, grad), view=flat
            ),
            "layer_norm(x + bias + residual)": Candidate(backward_of(plain, leaves, grad), view=flat),
            "layer_norm, bias inside the product": Candidate(
                backward_of(inside, (with_bias, residual, weight, bias), grad),
                gate=False,
                note="without the bias gradient",
            ),
        },
        expected=expected,
        tolerance=2e-3,
        shapes={"T": total, "C": MODEL},
        bytes=4.0 * total * MODEL * 4,
    )


def _build_pool(case: Case, device: torch.device) -> Built:
    layout = RaggedLayout.from_lengths(case.lengths, device=device)
    rows = _leaf(layout.total, MODEL, seed=0, device=device)
    grad = _leaf(layout.num_sequences, MODEL, seed=1, device=device).detach()
    offsets, ids = layout.offsets, layout.sequence_ids
    lengths = torch.tensor(case.lengths, device=device)

    def index_add() -> Tensor:
        return rows.new_zeros(len(case.lengths), MODEL).index_add(0, ids, rows) / lengths[:, None]

    def expected() -> Tensor:
        nothing = grad.double()
        return flat([twin.ragged_pool_bwd_reference(grad.double(), rows.detach().double(), nothing, offsets, 1)])

    return Built(
        candidates={
            OURS: Candidate(backward_of(lambda: ragged_pool(rows, offsets, "mean"), (rows,), grad), view=flat),
            "segment_reduce": Candidate(
                backward_of(lambda: torch.segment_reduce(rows, "mean", lengths=lengths, axis=0), (rows,), grad),
                view=flat,
            ),
            "index_add": Candidate(
                backward_of(index_add, (rows,), grad), view=flat, note="sequence ids made beforehand"
            ),
        },
        expected=expected,
        tolerance=1e-5,
        shapes={"B": layout.num_sequences, "T": layout.total, "C": MODEL},
        bytes=float(layout.total + layout.num_sequences) * MODEL * 4,
    )


WORKLOADS = (
    Workload(
        name="bias_gelu_backward",
        ops=("bias_gelu",),
        summary="backward of GELU of x + bias on packed rows, 2048 wide",
        ours=OURS,
        baseline="gelu(x + bias)",
        cases=list_cases,
        build=with_gradients(_build_bias_gelu),
    ),
    Workload(
        name="add_layer_norm_backward",
        ops=("add_layer_norm",),
        summary="backward of LayerNorm of x + bias + residual on packed rows, 512 wide",
        ours=OURS,
        baseline="layer_norm(x + bias + residual)",
        cases=list_cases,
        build=with_gradients(_build_add_layer_norm),
    ),
    Workload(
        name="ragged_pool_backward",
        ops=("ragged_pool",),
        summary="backward of the mean of each sequence of packed rows, 512 wide",
        ours=OURS,
        baseline="index_add",
        cases=list_cases,
        build=with_gradients(_build_pool),
    ),
)
