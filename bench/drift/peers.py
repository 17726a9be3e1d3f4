# SPDX-License-Identifier: Apache-2.0
"""Form D around several base learners beside river's own answers to drift, in the batch protocol of the drift spec.

A whole batch is predicted, then learned: figures of per-instance protocols do not belong beside these. "CPU s" is
process time for the stream. no-change repeats the last label point by point, which no learner here may do.

`python -m bench.drift.peers [--sets SINE1 ...] [--rows "D(tree)" ...] [--seeds 1] [--data FOLDER]`
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.drift.table import DATA, SETTINGS
from bench.peer import Peer
from bench.registry import Unavailable
from edgeops.drift import DriftStream, majority, no_change, prequential
from edgeops.drift.detection.detectors import detector
from edgeops.drift.detection.reset import BankLearner, NeverReset, ResetOn
from edgeops.drift.estimators import EstimatorBank
from edgeops.drift.linear.candor import Candor
from edgeops.drift.linear.learners import LEARNERS
from edgeops.drift.monitor import DriftMonitor
from edgeops.drift.streams import read_stream
from edgeops.drift.streams.files import READERS
from edgeops.drift.trial import Trial

SETS = ("SINE1", "Circles", "Electricity", "PowerSupply")


def river_model(name: str, seed: int) -> Any:
    """river's models with their defaults."""
    from river import drift, forest, linear_model, preprocessing, tree

    return {
        "tree": tree.HoeffdingTreeClassifier,
        "HAT": lambda: tree.HoeffdingAdaptiveTreeClassifier(seed=seed),
        "ARF": lambda: forest.ARFClassifier(seed=seed),
        "retraining": lambda: drift.DriftRetrainingClassifier(tree.HoeffdingTreeClassifier()),
        "LR": lambda: preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    }[name]()


def base(name: str, seed: int) -> Any:
    """A base learner that every policy may be put around."""
    if name in ("logistic", "mlp"):
        return name
    if name == "SGD":
        from sklearn.linear_model import SGDClassifier

        return SGDClassifier(loss="log_loss", random_state=seed)
    return river_model(name, seed)


def _bank(model: Any, policy: Callable[[EstimatorBank], Any], seed: int) -> BankLearner:
    bank = EstimatorBank(model, seed=seed)
    return BankLearner(bank, policy(bank))


BASES = ("tree", "LR", "SGD", "logistic", "mlp")
PEERS = ("HAT", "ARF", "retraining")
MOA = {
    "HAT": "HoeffdingAdaptiveTree",
    "ARF": "AdaptiveRandomForestClassifier",
}
"""CapyMOA's names of them."""
LINEAR = ("DS-A", "MDDM-G", "AUE", "Candor")
POLICIES: dict[str, Callable[[EstimatorBank], Any]] = {
    "never": NeverReset,
    "adwin": lambda bank: ResetOn(bank, detector("adwin")),
    "ddm": lambda bank: ResetOn(bank, detector("ddm")),
    "mddm": lambda bank: ResetOn(bank, detector("mddm-g")),
    "standard": lambda bank: ResetOn(bank, detector("rise"), frozen=True),
    "D": lambda bank: Trial(bank, DriftMonitor()),
}
ROWS = (
    *(f"river {name}" for name in PEERS),
    *(f"MOA {name}" for name in MOA),
    *(f"STRSAGA {name}" for name in LINEAR),
    *(f"{policy}({name})" for name in BASES for policy in POLICIES),
)


def learner(row: str, stream: DriftStream, seed: int) -> Any:
    """What a row's name says."""
    kind, _, name = row.replace("(", " ").rstrip(")").partition(" ")
    if kind == "river":
        return _bank(river_model(name, seed), NeverReset, seed)
    if kind == "STRSAGA":
        mu, eta = SETTINGS[stream.name]
        features = stream.x.shape[1] + 1
        if name == "Candor":
            return _Constant(Candor(features, eta=eta, mu=mu, seed=seed))
        return _Constant(LEARNERS[name](features, stream.drifts, eta=eta, mu=mu, seed=seed))
    return _bank(base(name, seed), POLICIES[kind], seed)


class _Constant:
    """A linear learner without a bias of its own, which gets a constant feature."""

    def __init__(self, learner: Any) -> None:
        self.learner, self.begin = learner, learner.begin

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.learner.predict(torch.cat([x, x.new_ones(len(x), 1)], 1))

    def observe(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.learner.observe(torch.cat([x, x.new_ones(len(x), 1)], 1), y)


def run_moa(name: str, stream: DriftStream, seed: int) -> tuple[float, float, int]:
    """The same of a learner of MOA, in a process of another environment.

    Raises:
        Unavailable: there is none, or it broke.
    """
    absent = "no CapyMOA: run `make capymoa`, or set EDGEOPS_CAPYMOA to a Python that has capymoa"
    peer = Peer("drift/programs/capymoa_stream.py", "capymoa", "EDGEOPS_CAPYMOA", absent)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.npz"
        np.savez(path, x=stream.x.numpy(), y=(stream.y > 0).long().numpy(), batch=stream.batch_size)
        answer = peer.ask(f"{MOA[name]} {seed} {path}")
    peer.close()
    if not answer:
        raise Unavailable(f"CapyMOA gave no answer for {MOA[name]}")
    error, seconds = map(float, answer.split())
    return error, seconds, 0


def run(row: str, stream: DriftStream, seed: int) -> tuple[float, float, int]:
    """Mean error over the batches, CPU seconds, and replacements of the model."""
    if row.startswith("MOA "):
        return run_moa(row.removeprefix("MOA "), stream, seed)
    torch.manual_seed(seed)
    made = learner(row, stream, seed)
    begun = time.process_time()
    errors = prequential(made, stream)
    seconds = time.process_time() - begun
    return float(errors.mean()), seconds, getattr(made, "events", []).count("switch")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'set':12} {'row':20} {'error':>7} {'CPU s':>8} {'replaced':>8}")
    for name in given.sets:
        if not (given.data / READERS[name][0]).exists():
            print(f"{name:12} skipped: {READERS[name][0]} is not in the data folder")
            continue
        stream = read_stream(name, given.data)
        for rule in (no_change, majority):
            print(f"{name:12} {rule.__name__:20} {float(rule(stream).mean()):7.4f}")
        for row in given.rows:
            try:
                found = [run(row, stream, seed) for seed in range(given.seeds)]
            except Unavailable as reason:
                print(f"{name:12} {row:20} skipped: {reason}")
                continue
            error, seconds, replaced = (statistics.mean(values) for values in zip(*found, strict=True))
            print(f"{name:12} {row:20} {error:7.4f} {seconds:8.2f} {replaced:8.1f}", flush=True)


if __name__ == "__main__":
    main()
