# SPDX-License-Identifier: Apache-2.0
"""DriftSurf at a federated server, and the report of one client. Drift spec, sections 3.4 and 11."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from edgeops._common import message
from edgeops.drift.published import PublishedMonitor, _worst

WINDOW = 10
"""Time steps whose data a model of `PooledMonitor` trains on, the youngest ones."""
FEDERATED_DELTA = {"SEA": 0.02, "SINE": 0.10, "CIRCLE": 0.05}
"""Of the server's test."""
CLIENT_DELTA = {"SEA": 0.04, "SINE": 0.20, "CIRCLE": 0.10, "MNIST": 0.10}
"""Of a client's test."""


@dataclass(frozen=True)
class PooledDecision:
    """What the server does after a time step.

    Args:
        event: "none", "enter", "keep" or "switch".
        train: which models the clients train now, and on the data of which time steps.
        fresh: models that begin anew before they train.
    """

    event: str
    train: dict[str, tuple[int, ...]]
    fresh: tuple[str, ...] = ()


class PooledMonitor(PublishedMonitor):
    """DriftSurf with one state at the server, as FedDrift's programs have it as a baseline.

    Both tests of form A on the error over all clients' newest data; a trial of `r` steps, of which the first is not
    scored; at its end the reactive model wins if its mean error in the trial was less, without a margin. The stable
    model is there from the start and begins anew after each trial. Models train on their last `WINDOW` steps.

    After each time step: `step` with the errors that the models showed on the step's data before they train on it. The
    first step has no error: `train` says what is trained on it.

    One slip is not followed: their programs may go on serving the reactive model after a trial that kept the old one,
    and end with an error at the next step.

    Args:
        delta: rise of the error that starts a trial.
        r: length of a trial in steps.
        window: as above.

    >>> monitor = PooledMonitor(delta=0.1)
    >>> monitor.train
    {'model': (0,), 'stable': (0,)}
    >>> monitor.step(0.1, stable=0.1).train
    {'model': (0, 1), 'stable': (0, 1)}
    >>> monitor.step(0.5, stable=0.5)
    PooledDecision(event='enter', train={'model': (0, 1, 2), 'reactive': (2,)}, fresh=('reactive',))
    >>> monitor.step(0.4, reactive=0.2).event, monitor.serve
    ('none', 'reactive')
    >>> monitor.step(0.3, reactive=0.1).event, monitor.train, monitor.best
    ('switch', {'model': (2, 3, 4)}, 0.1)
    """

    def __init__(self, *, delta: float = 0.1, r: int = 3, window: int = WINDOW) -> None:
        super().__init__("A", delta=delta, r=r)
        if not (isinstance(window, int) and window >= 1):
            raise ValueError(message("PooledMonitor", "window must be a whole number from 1", str(window), "10."))
        self.window = window
        self.has_stable = True
        self.t = 0
        self._steps: dict[str, list[int]] = {"model": [0], "stable": [0]}
        self._shown: list[tuple[float, float]] = []
        self._served_reactive = False

    @property
    def train(self) -> dict[str, tuple[int, ...]]:
        """Models that train now, with the time steps of their data."""
        return {name: tuple(steps) for name, steps in self._steps.items() if steps}

    @property
    def serve(self) -> str:
        """The model that predicts the next step."""
        return "reactive" if self.reactive_mode and self._served_reactive else "model"

    def step(self, model: float, *, stable: float | None = None, reactive: float | None = None) -> PooledDecision:
        """Take in errors on the newest data of all clients.

        Args:
            model: of the model.
            stable: of the stable model where no trial runs; it may be left out right after a trial, when there is none.
            reactive: of the reactive model, within a trial.

        Raises:
            ValueError: the reactive model's error is missing in a trial, or the stable one's beside a trained one.
        """
        self.t += 1
        self._now = _worst(model)
        self._best = self._lowered(self._best, self._now)
        fresh: tuple[str, ...] = ()
        if not self.reactive_mode:
            trained = bool(self._steps.get("stable"))
            if trained and stable is None:
                self._missing("stable", "there is one")
            younger = trained and self._now > _worst(stable if stable is not None else math.inf) + self.delta / 2
            if not (self._fires(self._now, self._best) or younger):
                self._note("model")
                self._note("stable")
                return PooledDecision("none", self.train, () if trained else ("stable",))
            self._begin()
            self._steps.pop("stable", None)
            self._steps["reactive"] = []
            self._shown, self._served_reactive = [], False
            event, fresh = "enter", ("reactive",)
        else:
            if reactive is None:
                self._missing("reactive", "a trial runs")
            other = _worst(reactive if reactive is not None else math.inf)
            self._shown.append((self._now, other))
            self._served_reactive = other < self._now
            event = "none"
        self._note("model")
        self._note("reactive")
        self.k += 1
        return self._end() if self.k == self.r else PooledDecision(event, self.train, fresh)

    def _note(self, name: str) -> None:
        self._steps[name] = [*self._steps.get(name, []), self.t][-self.window :]

    def _end(self) -> PooledDecision:
        ours, theirs = (sum(shown[k] for shown in self._shown) for k in (0, 1))
        self.reactive_mode = False
        younger = self._steps.pop("reactive")
        if self._shown and theirs < ours:
            self.switches += 1
            self._steps["model"] = younger
            self._best = min(shown[1] for shown in self._shown)
            return PooledDecision("switch", self.train)
        return PooledDecision("keep", self.train)


@dataclass(frozen=True)
class ClientReport:
    """What a client sends along with an update: a few numbers and names.

    Args:
        step: time step.
        risk: mean loss of the model that does best on the client's new data.
        reference: mean loss of its best model a step before; `None` at the first.
        error: standard error of the rise from `reference` to `risk`.
        best: that model.
        scores: mean loss of every model on the new data.
        drift: whether the rise exceeds the threshold.
        count: points.
    """

    step: int
    risk: float
    reference: float | None
    error: float
    best: str
    scores: dict[str, float] = field(default_factory=dict)
    drift: bool = False
    count: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class ClientMonitor:
    """A client's own test: is the best model there is worse on its new data than its best one was a step before?

    With `z` 0 it is FedDrift's; above, the rise must also exceed so many standard errors.

    Args:
        delta: rise that is drift.
        z: least rise in standard errors.

    >>> import torch
    >>> monitor = ClientMonitor(0.1)
    >>> monitor.observe({"a": torch.zeros(100), "b": torch.ones(100)}).best
    'a'
    >>> report = monitor.observe({"a": torch.ones(100), "b": torch.ones(100)})
    >>> report.drift, report.reference, report.risk
    (True, 0.0, 1.0)
    """

    def __init__(self, delta: float, *, z: float = 0.0) -> None:
        if not (delta >= 0 and z >= 0):
            rule = "delta and z must not be negative"
            raise ValueError(message("ClientMonitor", rule, f"{delta}, {z}", "CLIENT_DELTA lists values."))
        self.delta, self.z, self.t = delta, z, 0
        self._before: tuple[float, float] | None = None

    def observe(self, losses: Mapping[str, Tensor]) -> ClientReport:
        """Take in each model's losses `[n]` on the client's new data, before anything trains on it.

        A loss that is not a number counts as worse than any. Where there is no point, the report repeats the reference,
        with a count of 0.

        Raises:
            ValueError: no model, or losses that are not one number a point, as many for each.
        """
        if not losses:
            raise ValueError(message("ClientMonitor.observe", "needs a model's losses", "none", "Pass name -> losses."))
        sizes = {tuple(values.shape) for values in losses.values()}
        if len(sizes) > 1 or len(next(iter(sizes))) != 1:
            rule = "losses must be one number a point, as many for each model"
            raise ValueError(message("ClientMonitor.observe", rule, str(sorted(sizes)), "Use reduction='none'."))
        step, n = self.t, next(iter(sizes))[0]
        self.t += 1
        if n == 0:
            before = None if self._before is None else self._before[0]
            return ClientReport(step, before or 0.0, before, 0.0, next(iter(losses)))
        scores = {name: _worst(float(values.double().mean())) for name, values in losses.items()}
        best = min(scores, key=lambda name: scores[name])
        spread = float(losses[best].double().var(correction=0)) / n
        now, was = (scores[best], spread if math.isfinite(spread) else math.inf), self._before
        self._before = now
        if was is None:
            return ClientReport(step, now[0], None, math.sqrt(now[1]), best, scores, False, n)
        error = math.sqrt(now[1] + was[1])
        rise = now[0] - was[0]
        drift = rise > self.delta and (self.z == 0 or not math.isfinite(rise) or rise > self.z * error)
        return ClientReport(step, now[0], was[0], error, best, scores, drift, n)

    def state_dict(self) -> dict[str, Any]:
        """Everything, settings included."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put everything back."""
        vars(self).update(state)


def drifted(reports: Mapping[int, ClientReport]) -> list[int]:
    """The clients that report drift, in order."""
    return sorted(client for client, report in reports.items() if report.drift)
