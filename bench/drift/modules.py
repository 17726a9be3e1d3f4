# SPDX-License-Identifier: Apache-2.0
"""A small network on real streams: never reset, reset at each detection, DriftSurf (drift spec, section 14, 3 and 5).

    python -m bench.drift.modules [--seeds 3] [--sets Circles Weather ...] [--lr 0.01] [--data FOLDER]

An MLP of 16 hidden units, the batch protocol, 0-1 errors. All three learn by the same code from the same points; "no
reset" is DriftSurf that never starts a trial, "standard" is section 3.5: a frozen copy at the best risk, a new model
once its risk has risen by 0.1.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bench.drift.table import DATA
from edgeops.drift import DriftMonitor, DriftStream, DriftSurf, PublishedMonitor, ReplayBuffer, no_change, prequential
from edgeops.drift.streams import read_stream

SETS = ("SINE1", "Circles", "PowerSupply", "Weather", "Electricity")


def stream_of(name: str, data: Path) -> DriftStream:
    """A stream with features of mean 0 and deviation 1 on its first tenth; Weather is NOAA's, 100 batches."""
    if name == "Weather":
        x = torch.from_numpy(np.loadtxt(data / "weather_data.csv", delimiter=","))
        labels = torch.from_numpy(np.loadtxt(data / "weather_class.csv", delimiter=","))
        stream = DriftStream(name, x, torch.where(labels == labels.max(), 1.0, -1.0).to(x.dtype), 100)
    else:
        stream = read_stream(name, data)
    first = stream.x[: len(stream.x) // 10]
    x = (stream.x - first.mean(0)) / first.std(0).clamp(min=1e-6)
    return DriftStream(name, x.float(), stream.y.float(), stream.batches, stream.drifts)


class Learner(Protocol):
    drift: DriftSurf

    def begin(self) -> None: ...
    def predict(self, x: Tensor) -> Tensor: ...
    def observe(self, x: Tensor, y: Tensor) -> None: ...


class Surf:
    """DriftSurf as a learner of labels -1 and 1."""

    def __init__(self, features: int, seed: int, lr: float, monitor: DriftMonitor) -> None:
        def model() -> nn.Module:
            return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, 1))

        loss = nn.BCEWithLogitsLoss(reduction="none")
        self.drift = DriftSurf(
            model,
            lambda p: torch.optim.Adam(p, lr=lr),
            loss,
            monitor=monitor,
            score="error",
            seed=seed,
            minibatch=32,
            buffer=ReplayBuffer(seed=seed),
        )

    def begin(self) -> None: ...

    def predict(self, x: Tensor) -> Tensor:
        return torch.where(self.drift.predict(x)[:, 0] >= 0, 1.0, -1.0)

    def observe(self, x: Tensor, y: Tensor) -> None:
        self.drift.observe(x, (y > 0).float())


class Standard(Surf):
    """Stand-alone detection on the same bank of modules."""

    def __init__(self, features: int, seed: int, lr: float, monitor: DriftMonitor) -> None:
        super().__init__(features, seed, lr, monitor)
        self.rule = PublishedMonitor("standard")

    def observe(self, x: Tensor, y: Tensor) -> None:
        bank, y = self.drift._bank, (y > 0).float()
        risks = {"model": float(bank.losses(["keep"], x, y).mean())}
        if "frozen" in bank.candidates:
            risks["frozen"] = float(bank.losses(["frozen"], x, y).mean())
        decision = self.rule.observe(risks.pop("model"), **risks)
        if decision.freeze:
            bank.drop("frozen")
            bank.open("frozen", "keep")
        if decision.replace:
            bank.open("new", None)
            bank.rename("new", "keep")
        bank.train(["keep"], x, y)


def learners(features: int, seed: int, lr: float) -> dict[str, Learner]:
    """Method -> a new learner."""
    return {
        "no reset": Surf(features, seed, lr, DriftMonitor(delta=math.inf)),
        "standard": Standard(features, seed, lr, DriftMonitor()),
        "DriftSurf": Surf(features, seed, lr, DriftMonitor()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--data", type=Path, default=DATA)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.sets:
        stream, start = stream_of(name, given.data), time.process_time()
        found: dict[str, list[float]] = {}
        notes: list[str] = []
        for seed in range(given.seeds):
            for method, learner in learners(stream.x.shape[1], seed, given.lr).items():
                found.setdefault(method, []).append(float(prequential(learner, stream).mean()))
                if method == "DriftSurf":
                    notes.append(f"{learner.drift.monitor.trials}/{learner.drift.monitor.switches}")
        means = {method: sum(errors) / len(errors) for method, errors in found.items()}
        row = "  ".join(f"{method} {error:.4f}" for method, error in means.items())
        row += f"  no change {float(no_change(stream).mean()):.4f}  trials/switches {' '.join(notes)}"
        print(f"{name:12} {row}  ({time.process_time() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
