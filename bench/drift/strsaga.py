# SPDX-License-Identifier: Apache-2.0
"""STRSAGA steps beside the same steps in NumPy, which is what a stream learner in Python runs. Drift spec, 4.1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.registry import Built, Candidate, Case, Workload
from edgeops.drift._reference import strsaga_run_reference
from edgeops.drift.linear.strsaga import visits
from edgeops.drift.streams import synthetic

OURS = "edgeops"
NUMPY = "NumPy loop"
TIGHT = "dot products alone"


def _cases(suite: str) -> Sequence[Case]:
    if suite == "smoke":
        return [Case("small", "SEA", params={"n": 200, "models": 2})]
    return [
        Case("SEA", "one model, one batch of SEA", params={"n": 1000, "models": 1}),
        Case("SEA x 100", "a hundred models, one batch of SEA each", params={"n": 1000, "models": 100}),
    ]


def numpy_steps(x: np.ndarray, y: np.ndarray, order: np.ndarray, eta: float, mu: float) -> np.ndarray:
    """The steps of one new model; returns its weights."""
    w, total, alpha, end = np.zeros(x.shape[1]), np.zeros(x.shape[1]), np.zeros(len(x)), 0
    for i in order:
        g = -y[i] / (1 + np.exp(y[i] * (w @ x[i])))
        change = g - alpha[i]
        w = (1 - eta * mu) * w - eta * change * x[i] - eta / max(1, end) * total
        total = total + change * x[i]
        alpha[i] = g
        end += int(i == end)
    return w


def _build(case: Case, device: torch.device) -> Built:
    n, models, eta, mu = case.params["n"], case.params["models"], 1e-3, 1e-2
    stream = synthetic.sea(seed=0, n=n, batches=1).with_constant()
    x, y = stream.x.expand(models, -1, -1), stream.y.expand(models, -1)
    g = torch.Generator().manual_seed(0)
    orders = [visits(0, 0, n, 2 * n, g) for _ in range(models)]
    order, starts = torch.cat(orders), torch.tensor([0, *map(len, orders)]).cumsum(0)
    d = stream.x.shape[1]

    def state() -> list[Tensor]:
        rows = [torch.zeros(models, k, dtype=torch.float64) for k in (d, d, n)]
        return [*rows, torch.zeros(models, 2, dtype=torch.int64)]

    def run() -> Tensor:
        fresh = state()
        torch.ops.edgeops._strsaga_run(x, y, order, starts, *fresh, eta, mu)
        return fresh[0]

    points, labels, visited = stream.x.numpy(), stream.y.numpy(), [o.numpy() for o in orders]

    def loop() -> Tensor:
        return torch.from_numpy(np.stack([numpy_steps(points, labels, o, eta, mu) for o in visited]))

    rows = order.long()
    w0 = torch.ones(d, dtype=torch.float64)

    def expected() -> Tensor:
        fresh = state()
        strsaga_run_reference(x[:1], y[:1], orders[0], starts[:2], *[t[:1] for t in fresh], eta, mu)
        others = [torch.from_numpy(numpy_steps(points, labels, o, eta, mu)) for o in visited[1:]]
        return torch.stack([fresh[0][0], *others])

    return Built(
        candidates={
            OURS: Candidate(run),
            NUMPY: Candidate(loop, note="one step at a time, as a stream learner in Python"),
            TIGHT: Candidate(lambda: stream.x[rows] @ w0, gate=False, note="a floor: no dependence"),
        },
        expected=expected,
        tolerance=1e-10,
        shapes={**case.params, "d": d},
        dtype="float64",
        flops=float(len(order) * (8 * d + 20)),
    )


WORKLOADS = (Workload("strsaga", ("_strsaga_run",), "one batch of STRSAGA steps", OURS, NUMPY, _cases, _build),)
