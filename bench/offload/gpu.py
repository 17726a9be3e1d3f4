# SPDX-License-Identifier: Apache-2.0
"""A layer trained through its subspace, and the fused update, on a GPU (LSP-Offload spec, section 14, 20 and 21).

The cases are in the suite "gpu". The small "smoke" cases run on a CPU too, so that every line here but the launches is
tested anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.registry import Built, Candidate, Case, Workload
from bench.table import Group
from edgeops.offload import DenseProjector, Pair, SparseProjector, SubspaceLinear

Figures = dict[str, float]
HALF, QUARTER = "edgeops, d = n/2", "edgeops, d = n/4"
NATIVE, DENSE = "torch, whole gradient", "dense projectors, d = n/2"
OURS, COPY = "edgeops", "copy of the weight"
_OF = {"1.3B": "a layer of DeepSeek-Coder-1.3B", "7B": "a layer of Llama-7B", "small": "made up"}

LAYERS = (  # name, model, m, n, tokens
    ("1.3B attention", "1.3B", 2048, 2048, 2048),
    ("1.3B feed-forward", "1.3B", 5504, 2048, 2048),
    ("7B attention", "7B", 4096, 4096, 4096),
    ("7B feed-forward", "7B", 11008, 4096, 4096),
    ("7B feed-forward, back", "7B", 4096, 11008, 4096),
)
APPLIES = (  # name, model, m, n, d, r
    ("1.3B feed-forward, d = 512", "1.3B", 5504, 2048, 512, 4),
    ("7B attention, d = 512", "7B", 4096, 4096, 512, 4),
    ("7B feed-forward, d = 512", "7B", 11008, 4096, 512, 4),
    ("7B feed-forward, d = 2048", "7B", 11008, 4096, 2048, 8),
)


def layer_cases(suite: str) -> Sequence[Case]:
    """Weights `[m, n]` with T tokens, r = 4."""
    if suite != "gpu":
        small = Case("small", _OF["small"], params={"m": 48, "n": 64, "T": 40, "r": 4})
        return [small] if suite == "smoke" else []
    return [Case(name, _OF[of], params={"m": m, "n": n, "T": t, "r": 4}) for name, of, m, n, t in LAYERS]


def apply_cases(suite: str) -> Sequence[Case]:
    """Weights `[m, n]` with subspaces of d, r."""
    if suite != "gpu":
        small = Case("small", _OF["small"], params={"m": 40, "n": 70, "d": 16, "r": 4})
        return [small] if suite == "smoke" else []
    return [Case(name, _OF[of], params={"m": m, "n": n, "d": d, "r": r}) for name, of, m, n, d, r in APPLIES]


def drawn(rows: int, d: int, r: int, seed: int, device: torch.device) -> SparseProjector:
    """A random projector on a device."""
    return SparseProjector.draw(rows, d, r, generator=torch.Generator().manual_seed(seed)).to(device)


def sparse_pair(m: int, n: int, d: int, r: int, device: torch.device) -> Pair:
    """Random projectors of both sides."""
    return Pair(drawn(m, d, r, 1, device), drawn(n, d, r, 2, device))


def _normal(*shape: int, seed: int, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _recording(run: Callable[[], Any]) -> Callable[[], Any]:
    """A call that records gradients although the runner works in inference mode."""

    def call() -> Any:
        with torch.inference_mode(False), torch.enable_grad():
            return run()

    return call


def _off(got: Tensor, exact: Tensor) -> Tensor:
    """How far a result is from the exact one, relative to its norm."""
    return (got.detach().double() - exact).norm() / exact.norm()


def _build_layer(case: Case, device: torch.device) -> Built:
    m, n, tokens, r = (case.params[k] for k in ("m", "n", "T", "r"))
    short = min(m, n)
    pairs = {HALF: sparse_pair(m, n, short // 2, r, device), QUARTER: sparse_pair(m, n, short // 4, r, device)}
    pairs[DENSE] = Pair(*(DenseProjector(side.dense()) for side in (pairs[HALF].left, pairs[HALF].right)))
    half = torch.bfloat16
    with torch.inference_mode(False), torch.enable_grad():
        weight = (_normal(m, n, seed=0, device=device) / n**0.5).to(half)
        x = _normal(tokens, n, seed=1, device=device).to(half).requires_grad_()
        upstream = _normal(tokens, m, seed=2, device=device).to(half)

        def layer() -> nn.Linear:
            made = nn.Linear(n, m, bias=False, device=device, dtype=half)
            made.weight = nn.Parameter(weight.clone())
            return made

        plain = layer()
        ours = {name: SubspaceLinear.adopt(layer(), pair) for name, pair in pairs.items()}

        def native() -> tuple[Tensor, ...]:
            return torch.autograd.grad(plain(x), (x, plain.weight), upstream)

        def compressed(name: str) -> Callable[[], tuple[Tensor, ...]]:
            module = ours[name]
            return lambda: torch.autograd.grad(module(x), (x, module.subspace), upstream)

    def exact(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        wide = upstream.detach().to(dtype)
        return wide @ weight.to(dtype), wide.T @ x.detach().to(dtype)

    def error_of(pair: Pair | None) -> Callable[[tuple[Tensor, ...]], Tensor]:
        def view(found: tuple[Tensor, ...]) -> Tensor:
            dx, whole = exact(torch.float64)
            want = whole if pair is None else pair.left.dense().double().T @ whole @ pair.right.dense().double()
            return torch.stack([_off(found[0], dx), _off(found[1], want)])

        return view

    candidates = {HALF: Candidate(_recording(compressed(HALF)), view=error_of(pairs[HALF]))}
    candidates |= {
        QUARTER: Candidate(_recording(compressed(QUARTER)), view=error_of(pairs[QUARTER])),
        NATIVE: Candidate(_recording(native), view=error_of(None)),
        DENSE: Candidate(_recording(compressed(DENSE)), view=error_of(pairs[DENSE]), note="as the released code"),
    }
    return Built(
        candidates=candidates,
        expected=lambda: torch.zeros(2, dtype=torch.float64),
        # relative to the norm: bfloat16 rounds to 2^-9, the compressed gradient twice
        tolerance=2e-2,
        shapes=dict(case.params),
        dtype="bfloat16",
        flops=6.0 * tokens * m * n,
    )


def _build_apply(case: Case, device: torch.device) -> Built:
    m, n, d, r = (case.params[k] for k in ("m", "n", "d", "r"))
    pair = sparse_pair(m, n, d, r, device)
    left, right = pair.left, pair.right
    assert isinstance(left, SparseProjector)
    assert isinstance(right, SparseProjector)
    sides = (left.index, left.value, right.index, right.value)
    weight = _normal(m, n, seed=0, device=device).to(torch.bfloat16)
    other, delta = weight.clone(), _normal(d, d, seed=1, device=device)

    def ours(stochastic: bool) -> Callable[[], Tensor]:
        def run() -> Tensor:  # keep = 0: every call does the same work with the same result
            torch.ops.edgeops._subspace_apply(weight, delta, *sides, -0.5, 0.0, stochastic, 7)
            return weight

        return run

    return Built(
        candidates={
            OURS: Candidate(ours(True)),
            "edgeops, to the nearest": Candidate(ours(False)),
            COPY: Candidate(lambda: other.copy_(weight), gate=False),
        },
        expected=lambda: -0.5 * (left.dense() @ delta) @ right.dense().T,
        # one unit of bfloat16 below 4
        tolerance=2.0**-6,
        shapes=dict(case.params),
        dtype="bfloat16",
        bytes=2.0 * m * n * weight.element_size(),
    )


def _worst(groups: Sequence[Group], workload: str, needed: Sequence[str], ours: str, peer: str) -> float | None:
    """The largest time of `ours` over that of `peer`, of the needed cases; `None` where one is missing."""
    found = {g.case: g for g in groups if g.workload == workload and {ours, peer} <= set(g.records)}
    if not set(needed) <= set(found):
        return None
    return max(found[name].ratio(ours, peer).median for name in needed)


def layer_figures(groups: Sequence[Group]) -> Figures:
    """OG20: time of forward and backward over that with the whole gradient."""
    figures: Figures = {}
    for name, what in ((HALF, "d = n/2"), (QUARTER, "d = n/4")):
        worst = _worst(groups, "offload_layer_gpu", [x[0] for x in LAYERS], name, NATIVE)
        if worst is not None:
            figures[f"{what}: worst layer, time over the whole gradient's"] = worst
    return figures


def apply_figures(groups: Sequence[Group]) -> Figures:
    """OG21: share of the bandwidth of a copy of the same weight."""
    worst = _worst(groups, "offload_apply_gpu", [x[0] for x in APPLIES], OURS, COPY)
    return {} if worst is None else {"worst weight, share of a copy's bandwidth": 1 / worst}


WORKLOADS = (
    Workload(
        name="offload_layer_gpu",
        ops=("subspace_project",),
        summary="forward and backward of a bfloat16 linear layer on a GPU, with its compressed gradient alone",
        ours=HALF,
        baseline=NATIVE,
        cases=layer_cases,
        build=_build_layer,
    ),
    Workload(
        name="offload_apply_gpu",
        ops=("_subspace_apply",),
        summary="W <- W - lr P Delta Q^T on a GPU, bfloat16 rounded by chance, beside a copy of W",
        ours=OURS,
        baseline=COPY,
        cases=apply_cases,
        build=_build_apply,
    ),
)
