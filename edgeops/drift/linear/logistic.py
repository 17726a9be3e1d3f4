# SPDX-License-Identifier: Apache-2.0
"""DriftSurf and what it is compared with, around logistic regression by STRSAGA. Drift spec, sections 3 to 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops._common import message
from edgeops.drift.detection import detectors
from edgeops.drift.linear.strsaga import PointStore, StrsagaBank
from edgeops.drift.published import PublishedMonitor

ROLES = ("model", "stable", "reactive", "frozen", "frozen_reactive")


class Logistic:
    """One logistic model that is never reset; the base of the others.

    A learner is asked in turn: `begin` before a batch is seen, `predict` on its features, `observe` with its labels.

    Args:
        features: values a point has, a constant among them.
        eta: step size.
        mu: regulariser.
        seed: of first weights and revisits.
        rate: training steps for each new point.
        slots: models that may be alive.

    >>> learner = Logistic(2, eta=0.1, mu=1e-3, seed=0)
    >>> x = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).repeat(50, 1).double()
    >>> for _ in range(3):
    ...     learner.observe(x, x[:, 0])
    >>> learner.predict(x[:2]).tolist()
    [1.0, -1.0]
    """

    def __init__(self, features: int, *, eta: float, mu: float, seed: int, rate: float = 2.0, slots: int = 1) -> None:
        self.store = PointStore(features)
        generator = torch.Generator().manual_seed(seed)
        self.bank = StrsagaBank(self.store, slots, eta=eta, mu=mu, rate=rate, generator=generator)
        self.bank.start(0)
        self.t = self.switches = 0

    def begin(self) -> None:
        """A batch begins, of which nothing is known yet."""

    def predict(self, x: Tensor) -> Tensor:
        """Labels -1 and 1, `[n]`, of points `[n, features]`."""
        return _sign(self.bank.margins(0, x))

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Take in a batch and train on it; an empty one changes nothing."""
        if len(x):
            self._observe(x, y)
            self.t += 1

    def _observe(self, x: Tensor, y: Tensor) -> None:
        self.store.append(x, y)
        self.bank.train([0], len(x))

    def state_dict(self) -> dict[str, Any]:
        """Everything that predictions and training continue from."""
        counts = {"t": self.t, "switches": self.switches}
        return {"store": self.store.state_dict(), "bank": self.bank.state_dict(), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""
        self.store.load_state_dict(state["store"])
        self.bank.load_state_dict(state["bank"])
        self.t, self.switches = state["t"], state["switches"]


def _sign(margins: Tensor) -> Tensor:
    return 2.0 * (margins >= 0).to(margins.dtype) - 1.0


class Aware(Logistic):
    """Told the batches at which drifts are: a new model there, before it predicts.

    Args:
        features: as in `Logistic`.
        drifts: batch numbers.
        **settings: as in `Logistic`.
    """

    def __init__(self, features: int, drifts: Sequence[int], **settings: Any) -> None:
        super().__init__(features, **settings)
        self.drifts = tuple(drifts)

    def begin(self) -> None:
        if self.t in self.drifts:
            self.switches += 1
            self.bank.start(0)


class PublishedLogistic(Logistic):
    """DriftSurf (forms A and B) or stand-alone detection (form "standard") on logistic regression.

    Args:
        features: as in `Logistic`.
        monitor: decides; of this learner alone.
        risk: what it compares, "regularised" logistic loss or "zero-one" error.
        **settings: as in `Logistic`.

    >>> learner = PublishedLogistic(2, PublishedMonitor(), eta=0.1, mu=1e-3, seed=0)
    >>> x = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).repeat(50, 1).double()
    >>> for t in range(16):
    ...     learner.observe(x, x[:, 0] if t < 8 else -x[:, 0])
    >>> learner.monitor.trials, learner.monitor.switches, learner.predict(x[:2]).tolist()
    (1, 1, [-1.0, 1.0])
    """

    def __init__(self, features: int, monitor: PublishedMonitor, *, risk: str = "regularised", **settings: Any) -> None:
        if risk not in ("regularised", "zero-one"):
            rule = "risk must be 'regularised' or 'zero-one'"
            raise ValueError(message("PublishedLogistic", rule, repr(risk), "The former is the default."))
        super().__init__(features, slots=3 if monitor.form == "A" else len(ROLES), **settings)
        self.monitor, self.risk = monitor, risk
        self.trial: list[tuple[int, int]] = []

    def predict(self, x: Tensor) -> Tensor:
        return _sign(self.bank.margins(ROLES.index(self.monitor.serve), x))

    def _risk(self, role: str, x: Tensor, y: Tensor) -> float:
        measure = self.bank.loss if self.risk == "regularised" else self.bank.error
        return measure(ROLES.index(role), x, y)

    def _observe(self, x: Tensor, y: Tensor) -> None:
        monitor, bank, first = self.monitor, self.bank, len(self.store)
        slot = ROLES.index
        risks = {"model": self._risk("model", x, y)}
        if monitor.reactive_mode:
            risks["reactive"] = self._risk("reactive", x, y)
        elif monitor.has_stable:
            risks["stable"] = self._risk("stable", x, y)
        if monitor.form != "A" and monitor.best is not None:
            risks["frozen"] = self._risk("frozen", x, y)
        decision = monitor.observe(risks.pop("model"), **risks)
        if decision.freeze:
            bank.copy(slot("model"), slot("frozen"), frozen=True)
        if decision.replace:
            bank.start(slot("model"), first)
        if decision.enter:
            bank.start(slot("reactive"), first)
            monitor.entered(self._risk("reactive", x, y))
        if decision.clear:
            self.trial = []
        self.store.append(x, y)
        if decision.extend:
            self.trial.append((first, len(self.store)))
        bank.train([slot(role) for role in decision.train], len(x))
        if decision.freeze_reactive:
            bank.copy(slot("reactive"), slot("frozen_reactive"), frozen=True)
        if decision.compare is not None and monitor.conclude(*self._compared(decision.compare)):
            bank.copy(slot("reactive"), slot("model"))
            self.trial = []
            if monitor.form == "A":
                bank.start(slot("stable"))
            else:
                bank.copy(slot("model"), slot("frozen"), frozen=True)

    def _compared(self, roles: tuple[str, str]) -> tuple[float, float]:
        """The risks of two models on the trial's sample."""
        x = torch.cat([self.store.x[a:b] for a, b in self.trial])
        y = torch.cat([self.store.y[a:b] for a, b in self.trial])
        return self._risk(roles[0], x, y), self._risk(roles[1], x, y)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "monitor": self.monitor.state_dict(), "trial": list(self.trial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.monitor.load_state_dict(state["monitor"])
        self.trial = list(state["trial"])


class Mddm(Logistic):
    """Stand-alone detection by MDDM: a new model when the weighted mean of the last hits fell too far.

    Args:
        features: as in `Logistic`.
        weights: "arithmetic", "geometric" or "euler": MDDM-A, -G, -E.
        n: hits in the window.
        confidence: the chance of a false alarm that the bound allows.
        **settings: as in `Logistic`.

    >>> round(Mddm(2, eta=0.1, mu=0.0, seed=0).detector.threshold, 4)
    0.2733
    """

    def __init__(
        self, features: int, *, weights: str = "geometric", n: int = 100, confidence: float = 1e-6, **settings: Any
    ) -> None:
        super().__init__(features, **settings)
        self.detector = detectors.Mddm(weights, n=n, confidence=confidence)

    def _observe(self, x: Tensor, y: Tensor) -> None:
        if self.detector.update((self.predict(x) != y).double()):
            self.detector.reset()
            if self.t > 0:
                self.switches += 1
                self.bank.start(0)
        super()._observe(x, y)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "detector": self.detector.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.detector.load_state_dict(state["detector"])


class Aue(Logistic):
    """Accuracy Updated Ensemble: a new expert each batch, the worst one leaves, weights by mean squared error.

    Args:
        features: as in `Logistic`.
        experts: how many at most.
        **settings: as in `Logistic`.
    """

    def __init__(self, features: int, *, experts: int = 10, **settings: Any) -> None:
        super().__init__(features, slots=experts, **settings)
        self.weight = torch.zeros(experts, dtype=torch.float64)
        self.alive = 0

    def predict(self, x: Tensor) -> Tensor:
        """A vote by weight; -1 everywhere before the first expert."""
        if not self.alive:
            return -torch.ones(len(x), dtype=x.dtype)
        votes = _sign(x @ self.bank.w[: self.alive].T)
        return _sign(votes @ self.weight[: self.alive])

    def _observe(self, x: Tensor, y: Tensor) -> None:
        share = float((y > 0).double().mean())
        random = share * (1 - share)
        chance = torch.sigmoid(y[:, None] * (x @ self.bank.w[: self.alive].T))
        errors = (1 - chance).square().mean(0)
        weights = 1 / (random + errors + 1e-20)
        slot = self.alive
        if slot == len(self.weight):
            slot = int(weights.argmin())
        else:
            self.alive += 1
        self.weight[: len(weights)] = weights
        self.weight[slot] = 1 / (random + 1e-20)
        self.weight /= self.weight.sum()
        self.bank.start(slot)
        self.store.append(x, y)
        self.bank.train(range(self.alive), len(x))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "weight": self.weight.clone(), "alive": self.alive}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.weight, self.alive = state["weight"].clone(), state["alive"]
