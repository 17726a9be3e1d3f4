# SPDX-License-Identifier: Apache-2.0
"""Stand-alone detection around any bank: a detector fires, the model is replaced at once. Drift spec, section 3.5."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from edgeops._common import message
from edgeops.drift.detection.detectors import Detector
from edgeops.drift.monitor import KEEP
from edgeops.drift.trial import Bank

FROZEN = "frozen"
"""The copy of the model from its best batch, where the detector watches that."""


class ResetOn:
    """What `Trial` is measured against: a new model whenever the detector fires on the model's losses.

    A batch on which it fires belongs to the new model, as in the experiments of the paper.

    Args:
        bank: the models.
        detector: watches the losses, each measured before the batch is trained on; it is reset when it fires.
        frozen: whether it watches the losses of a copy of the model from its best batch instead. With the detector
            `Rise` that is the form "standard".

    >>> from edgeops.drift.detection.detectors import detector
    >>> from edgeops.drift.estimators import EstimatorBank
    >>> x = torch.tensor([[0.0], [1.0]]).repeat(50, 1)
    >>> policy = ResetOn(EstimatorBank("logistic", seed=0), detector("mddm-g"))
    >>> [policy.observe(x, x[:, 0] if t < 4 else 1 - x[:, 0]) for t in range(6)]
    ['none', 'none', 'none', 'none', 'switch', 'none']
    """

    def __init__(self, bank: Bank, detector: Detector, *, frozen: bool = False) -> None:
        self.bank, self.detector, self.frozen = bank, detector, frozen
        self.resets = self.t = 0
        self._best: float | None = None

    @property
    def serve(self) -> str:
        """The model that predicts."""
        return KEEP

    def observe(self, x: Tensor, y: Tensor) -> str:
        """Take in a batch and train on it; "switch" where the model was replaced. An empty one changes nothing."""
        if not len(x):
            return "none"
        bank = self.bank
        losses = bank.losses([KEEP], x, y)[0]
        # the first batch only shows that a new model knows nothing
        fired = self.t > 0 and self._fires(losses, x, y)
        self.t += 1
        if fired:
            self.resets += 1
            self.detector.reset()
            bank.open("fresh", None)
            bank.rename("fresh", KEEP)
            if self._best is not None:
                bank.drop(FROZEN)
                self._best = None
        bank.train([KEEP], x, y)
        return "switch" if fired else "none"

    def _fires(self, losses: Tensor, x: Tensor, y: Tensor) -> bool:
        if not bool(losses.isfinite().all()):
            return True  # the model diverged, which no detector need be asked
        if not self.frozen:
            return self.detector.update(losses)
        mean = float(losses.mean())
        if self._best is None or mean < self._best:
            self.bank.open(FROZEN, KEEP)
            self._best = mean
        return self.detector.update(self.bank.losses([FROZEN], x, y)[0])

    def state_dict(self) -> dict[str, Any]:
        """Everything but the bank."""
        state = {"resets": self.resets, "t": self.t, "best": self._best}
        return {**state, "detector": self.detector.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""
        self.resets, self.t, self._best = state["resets"], state["t"], state["best"]
        self.detector.load_state_dict(state["detector"])


class Policy(Protocol):
    """`Trial`, `ResetOn`, or another that drives a bank."""

    @property
    def serve(self) -> str: ...
    def observe(self, x: Tensor, y: Tensor) -> str: ...


class NeverReset:
    """One model that is trained on everything.

    Args:
        bank: the models.
    """

    serve = KEEP

    def __init__(self, bank: Bank) -> None:
        self.bank = bank

    def observe(self, x: Tensor, y: Tensor) -> str:
        """Train on a batch."""
        self.bank.train([KEEP], x, y)
        return "none"


class BankLearner:
    """A bank and what drives it, as `prequential` asks for it.

    Args:
        bank: one with `predict(name, x)`, such as `EstimatorBank`.
        policy: `Trial`, `ResetOn` or `NeverReset` around it.

    >>> from edgeops.drift import DriftStream, prequential
    >>> from edgeops.drift.estimators import EstimatorBank
    >>> bank = EstimatorBank("logistic", seed=0)
    >>> x = torch.linspace(-1, 1, 400)[torch.randperm(400, generator=torch.Generator().manual_seed(0))][:, None]
    >>> errors = prequential(BankLearner(bank, NeverReset(bank)), DriftStream("toy", x, x[:, 0].sign(), 8))
    >>> bool(errors[-1] < 0.1)
    True
    """

    def __init__(self, bank: Any, policy: Policy) -> None:
        if not hasattr(bank, "predict"):
            rule, advice = "the bank must have predict(name, x)", "EstimatorBank has it."
            raise TypeError(message("BankLearner", rule, type(bank).__name__, advice))
        self.bank, self.policy = bank, policy
        self.events: list[str] = []
        """What each batch led to."""

    def begin(self) -> None:
        """A batch begins, of which nothing is known yet."""

    def predict(self, x: Tensor) -> Tensor:
        """Labels `[n]`; 0 everywhere before the first batch."""
        if not self.events:
            return torch.zeros(len(x), dtype=x.dtype)
        return torch.as_tensor(self.bank.predict(self.policy.serve, x), dtype=x.dtype)

    def observe(self, x: Tensor, y: Tensor) -> None:
        """Take in a batch and train on it."""
        self.events.append(self.policy.observe(x, y))
