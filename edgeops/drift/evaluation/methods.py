# SPDX-License-Identifier: Apache-2.0
"""Streams and methods by name, with the settings of the experiments: what commands and tours ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeops._common import message
from edgeops.drift.evaluation import Evaluation, Run
from edgeops.drift.evaluation._networks import around_networks
from edgeops.drift.linear.learners import LEARNERS
from edgeops.drift.linear.logistic import Logistic, PublishedLogistic
from edgeops.drift.linear.policies import FIXED, Periodic
from edgeops.drift.linear.surf import DriftSurfLogistic
from edgeops.drift.monitor import DriftMonitor
from edgeops.drift.published import PublishedMonitor
from edgeops.drift.streams import DriftStream, concepts, synthetic

MODELS = ("lr", "mlp")


@dataclass(frozen=True)
class Settings:
    """Of logistic regression on a stream: step size and regulariser (section 4.3), and of the monitors.

    Args:
        eta: step size.
        mu: regulariser.
        delta: rise of the risk that starts a trial; `None`, each method's own.
        model: "lr", logistic regression; "mlp", a network with one hidden layer of 16, by Adam with step size 0.01.
    """

    eta: float = 0.05
    mu: float = 1e-3
    delta: float | None = None
    model: str = "lr"

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            rule = f"model must be one of {', '.join(MODELS)}"
            raise ValueError(message("Settings", rule, repr(self.model), "'lr' is the default."))


@dataclass(frozen=True)
class Generated:
    """A generator: `make(seed=, n=, batches=)`, its usual number of points, and settings."""

    make: Callable[..., DriftStream]
    points: int
    settings: Settings

    def stream(self, seed: int, batch: int | None = None) -> DriftStream:
        """A draw in batches of so many points, of a hundredth of them without.

        Raises:
            ValueError: a batch larger than the stream.
        """
        size = batch or self.points // 100
        if not 1 <= size <= self.points:
            rule = f"a batch must have 1 to {self.points} points"
            raise ValueError(message("drift streams", rule, str(size), "Ask for fewer."))
        return self.make(seed=seed, n=self.points, batches=self.points // size)


def _sea(noise: float) -> Callable[..., DriftStream]:
    return lambda **given: synthetic.sea(noise, **given)


_SLOW = Settings(1e-3, 1e-2)
STREAMS: dict[str, Generated] = {
    "sea0": Generated(_sea(0.0), 100_000, _SLOW),
    "sea10": Generated(_sea(0.1), 100_000, _SLOW),
    "sea20": Generated(_sea(0.2), 100_000, _SLOW),
    "sea30": Generated(_sea(0.3), 100_000, _SLOW),
    "sea-gradual": Generated(lambda **given: synthetic.sea_gradual(**given), 100_000, _SLOW),
    "hyper-slow": Generated(lambda **given: synthetic.hyperplane(0.001, **given), 100_000, Settings(1e-1, 1e-3)),
    "hyper-fast": Generated(lambda **given: synthetic.hyperplane(0.1, **given), 100_000, Settings(1e-2, 1e-3)),
    "sine1": Generated(synthetic.sine1, 10_000, Settings(2e-1, 1e-3)),
    "mixed": Generated(synthetic.mixed, 100_000, Settings(1e-1, 1e-3)),
    "circles": Generated(synthetic.circles, 10_000, Settings(1e-1, 1e-3)),
    "stagger": Generated(concepts.stagger, 10_000, Settings(1e-1, 1e-3)),
    "rbf": Generated(lambda **given: concepts.rbf(0.001, **given), 100_000, Settings(1e-1, 1e-3)),
}
"""Name -> generator; settings of section 4.3 where it lists them."""

FILE_SETTINGS = {"Electricity": Settings(1e-1, 1e-4), "PowerSupply": Settings(2e-2, 1e-3)}
"""Of the streams that are files alone; the other files are draws of generators."""

METHODS = tuple(LEARNERS)
"""Names that `learner_of` knows."""


def _around(learner: Logistic, settings: Settings) -> Logistic:
    return learner if settings.model == "lr" else around_networks(learner)


def learner_of(method: str, stream: DriftStream, settings: Settings, seed: int) -> Logistic:
    """A learner by its name, for a stream that has its constant already.

    Raises:
        ValueError: an unknown name.
        NotImplementedError: AUE around networks.
    """
    return _around(_learner(method, stream, settings, seed), settings)


def _learner(method: str, stream: DriftStream, settings: Settings, seed: int) -> Logistic:
    known: dict[str, Any] = {"eta": settings.eta, "mu": settings.mu, "seed": seed}
    features, delta = stream.x.shape[1], settings.delta
    if method not in LEARNERS:
        rule = f"method must be one of {', '.join(METHODS)}"
        raise ValueError(message("learner_of", rule, repr(method), "Choose one."))
    if delta is not None and method == "DS-D":
        return DriftSurfLogistic(features, DriftMonitor(delta=delta), **known)
    if delta is not None and method in ("DS-A", "DS-B", "Standard"):
        form = "standard" if method == "Standard" else method[-1]
        return PublishedLogistic(features, PublishedMonitor(form, delta=delta), **known)
    return LEARNERS[method](features, stream.drifts, **known)


def fixed_policies(stream: DriftStream, settings: Settings, seed: int) -> list[Run]:
    """Runs of a new model every so many batches, of ages `FIXED` below the stream's, and never."""
    stream = stream.with_constant()
    features = stream.x.shape[1]
    known: dict[str, Any] = {"eta": settings.eta, "mu": settings.mu, "seed": seed}
    learners: dict[str, Logistic] = {"never": Logistic(features, **known)}
    learners.update({f"every {k}": Periodic(features, k, **known) for k in FIXED if k < len(stream)})
    return [
        Evaluation(_around(learner, settings), stream, f"best fixed: {name}", seed=seed).advance()
        for name, learner in learners.items()
    ]
