# SPDX-License-Identifier: Apache-2.0
"""What DriftSurf costs beside the plain PyTorch loop (drift spec, section 14, item 10): D10.

    python -m bench.drift.overhead [--rows 100000] [--rounds 7]

An MLP with 64 hidden units, batches of 1000 rows, Adam. The plain loop predicts each batch and trains on it and on as
many rows of the past: the same steps. One round runs the plain loop, DriftSurf outside a trial, and DriftSurf in a
trial of three candidates that goes on and on, in turns batch by batch; what counts is the process's CPU time.
D10 also times logistic regression on 100,000 rows of SEA under forms A, B and D.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgeops.drift import DriftMonitor, DriftSurf, prequential
from edgeops.drift.linear.learners import LEARNERS
from edgeops.drift.streams import synthetic

FEATURES, CLASSES, BATCH, MINIBATCH = 16, 2, 1000, 64


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def _adam(params: object) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-3)  # type: ignore[arg-type]


def stream(rows: int) -> tuple[Tensor, Tensor]:
    """Gaussian rows and the side of a hyperplane that they lie on, a tenth of them turned over."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, FEATURES, generator=generator)
    y = (x @ torch.randn(FEATURES, generator=generator) > 0) ^ (torch.rand(rows, generator=generator) < 0.1)
    return x, y.long()


class Plain:
    """The loop that a user would have written: predict, store, train on the batch and on as many old rows."""

    def __init__(self, rows: int) -> None:
        torch.manual_seed(0)
        self.model, self.loss = _model(), nn.CrossEntropyLoss()
        self.optimizer = _adam(self.model.parameters())
        self.x, self.y, self.seen = torch.zeros(rows, FEATURES), torch.zeros(rows, dtype=torch.int64), 0

    def step(self, x: Tensor, y: Tensor) -> None:
        self.model.eval()
        with torch.no_grad():
            self.model(x)
        n, first = len(x), self.seen
        self.x[first : first + n], self.y[first : first + n] = x, y
        self.seen += n
        old = torch.randint(0, self.seen, (n,))
        order = torch.cat([torch.arange(first, self.seen), old])[torch.randperm(2 * n)]
        self.model.train()
        parts = math.ceil(len(order) / MINIBATCH)
        for some, labels in zip(self.x[order].tensor_split(parts), self.y[order].tensor_split(parts), strict=True):
            self.optimizer.zero_grad()
            self.loss(self.model(some), labels).backward()
            self.optimizer.step()


class Ours:
    """DriftSurf, outside a trial for good or inside one for good."""

    def __init__(self, trial: bool) -> None:
        torch.manual_seed(0)
        monitor = DriftMonitor(delta=math.inf)
        if trial:  # the first batch starts a trial that no lead can end
            monitor = DriftMonitor(challenge=1, r=10**6, longest=10**6, early_z=1e9, margin=10.0, delta=1e9)
        loss = nn.CrossEntropyLoss(reduction="none")
        self.drift = DriftSurf(_model(), _adam, loss, monitor=monitor, minibatch=MINIBATCH)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.drift.predict(x)
        self.drift.observe(x, y)


def measure(rows: int = 100_000, rounds: int = 7, tell: Callable[[str], None] = print) -> dict[str, float]:
    """Medians over rounds of the CPU time of DriftSurf over that of the plain loop, outside and in a trial."""
    torch.set_num_threads(1)
    x, y = stream(rows)
    ratios: dict[str, list[float]] = {"outside a trial": [], "in a trial": []}
    for _ in range(rounds):
        runners = {"plain": Plain(rows), "outside a trial": Ours(False), "in a trial": Ours(True)}
        spent = dict.fromkeys(runners, 0.0)
        for number, (batch, labels) in enumerate(zip(x.split(BATCH), y.split(BATCH), strict=True)):
            turn = list(runners)[number % 3 :] + list(runners)[: number % 3]
            for name in turn:
                start = time.process_time()
                runners[name].step(batch, labels)
                # the first batches build what is built once
                spent[name] += time.process_time() - start if number > 1 else 0.0
        drift = runners["in a trial"].drift  # type: ignore[attr-defined]
        if not drift.monitor.in_trial or len(drift.monitor.candidates) != 3 or drift.execution != "batched":
            raise RuntimeError(f"the trial did not run as it should: {drift.monitor.candidates}, {drift.execution}")
        for name in ratios:
            ratios[name].append(spent[name] / spent["plain"])
        tell(f"  plain {spent['plain']:.2f} s, " + ", ".join(f"{n} {spent[n] / spent['plain']:.3f}x" for n in ratios))
    return {name: statistics.median(values) for name, values in ratios.items()}


def sea_seconds(rounds: int = 9) -> dict[str, float]:
    """Method -> CPU seconds on 100,000 rows of SEA, one thread, median of interleaved rounds."""
    rows = synthetic.sea(0.1, seed=0).with_constant()
    seconds: dict[str, list[float]] = {name: [] for name in ("Oblivious", "DS-A", "DS-B", "DS-D")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(rounds + 1):
            for name, spent in seconds.items():
                learner = LEARNERS[name](rows.x.shape[1], rows.drifts, eta=1e-3, mu=1e-2, seed=0)
                begun = time.process_time()
                prequential(learner, rows)
                if turn:  # the first one warms up
                    spent.append(time.process_time() - begun)
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(spent) for name, spent in seconds.items()}


def figures() -> dict[str, float]:
    """D10."""
    sea = sea_seconds()
    print(f"  a model without a monitor on SEA: {sea.pop('Oblivious'):.3f} s")
    streams = {f"{name}, 100,000 rows of SEA": value for name, value in sea.items()}
    return streams | {f"{name}: over the plain loop": value for name, value in measure(rounds=5).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    for name, value in measure(given.rows, given.rounds).items():
        print(f"{name}: median {value:.3f}x")


if __name__ == "__main__":
    main()
