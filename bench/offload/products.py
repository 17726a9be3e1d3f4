# SPDX-License-Identifier: Apache-2.0
"""Products with a sparse projector beside dense and `torch.sparse` products, and the fused update of a weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.registry import Built, Candidate, Case, Workload
from edgeops.offload import Pair, SparseProjector

OURS = "edgeops"
DENSE = "dense product"
SPARSE = "torch.sparse product"
_LAYER = "a square layer of width 1024 with 512 tokens, d = 256, r = 4"
_MINILM = "the wide layer of a MiniLM encoder with 1000 tokens, d = 96, r = 4"


def cases(suite: str) -> Sequence[Case]:
    """The shapes: weight `[m, n]`, T tokens, subspace d, r entries a row."""
    small = {"m": 48, "n": 64, "T": 40, "d": 16, "r": 4}
    if suite == "smoke":
        return [Case("small", "made up", params=small)]
    return [
        Case("1024", _LAYER, params={"m": 1024, "n": 1024, "T": 512, "d": 256, "r": 4}),
        Case("MiniLM", _MINILM, params={"m": 384, "n": 1536, "T": 1000, "d": 96, "r": 4}),
    ]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(rows: int, case: Case, seed: int, device: torch.device) -> SparseProjector:
    """A projector of the case's d and r."""
    g = torch.Generator().manual_seed(seed)
    return SparseProjector.draw(rows, case.params["d"], case.params["r"], generator=g).to(device)


def _project(case: Case, device: torch.device) -> Built:
    n, tokens, d = case.params["n"], case.params["T"], case.params["d"]
    p, x = drawn(n, case, 1, device), normal(tokens, n).to(device)
    dense = p.dense()
    sparse = dense.T.to_sparse()
    return Built(
        candidates={
            OURS: Candidate(lambda: p.project(x.T)),
            DENSE: Candidate(lambda: dense.T @ x.T),
            SPARSE: Candidate(lambda: sparse @ x.T, note="COO"),
        },
        expected=lambda: dense.double().T @ x.double().T,
        tolerance=1e-4,
        shapes=dict(case.params),
        flops=2.0 * tokens * n * p.r,
        bytes=4.0 * tokens * (n + d),
    )


def _expand(case: Case, device: torch.device) -> Built:
    n, tokens, d = case.params["n"], case.params["T"], case.params["d"]
    p, y = drawn(n, case, 1, device), normal(d, tokens).to(device)
    dense = p.dense()
    sparse = dense.to_sparse()
    return Built(
        candidates={
            OURS: Candidate(lambda: p.expand(y)),
            DENSE: Candidate(lambda: dense @ y),
            SPARSE: Candidate(lambda: sparse @ y, note="COO"),
        },
        expected=lambda: dense.double() @ y.double(),
        tolerance=1e-4,
        shapes=dict(case.params),
        flops=2.0 * tokens * n * p.r,
        bytes=4.0 * tokens * (n + d),
    )


def _apply(case: Case, device: torch.device) -> Built:
    m, n, d = case.params["m"], case.params["n"], case.params["d"]
    pair = Pair(drawn(m, case, 1, device), drawn(n, case, 2, device))
    weight, delta = normal(m, n).to(device), normal(d, d, seed=1).to(device)
    left, right = pair.left.dense(), pair.right.dense()

    def ours() -> Tensor:  # keep = 0: every call does the same work with the same result
        pair.apply_(weight, delta, -0.5, 0.0)
        return weight

    def dense() -> Tensor:
        return weight.mul_(0.0).addmm_(left @ delta, right.T, alpha=-0.5)

    return Built(
        candidates={OURS: Candidate(ours), DENSE: Candidate(dense, note="two products and an addition")},
        expected=lambda: -0.5 * left.double() @ delta.double() @ right.double().T,
        tolerance=1e-4,
        shapes=dict(case.params),
        flops=2.0 * m * n * case.params["r"],
        bytes=8.0 * m * n,
    )


WORKLOADS = (
    Workload("subspace_project", ("subspace_project",), "tokens through a projector", OURS, DENSE, cases, _project),
    Workload("subspace_expand", ("subspace_expand",), "a subspace back to rows", OURS, DENSE, cases, _expand),
    Workload("subspace_apply", ("_subspace_apply",), "W <- W - lr P Delta Q^T, fused", OURS, DENSE, cases, _apply),
)
