# SPDX-License-Identifier: Apache-2.0
"""Form D on logistic regression: DriftSurf's trial over the slots of a STRSAGA bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edgeops.drift.logistic import Logistic, _sign
from edgeops.drift.monitor import KEEP, DriftMonitor
from edgeops.drift.strsaga import StrsagaBank
from edgeops.drift.trial import Trial


class _Slots:
    """A STRSAGA bank's slots by name."""

    def __init__(self, bank: StrsagaBank) -> None:
        self.bank = bank
        self.slot = {KEEP: 0}
        bank.w[0] = 0

    def open(self, name: str, like: str | None) -> None:
        self.drop(name)
        free = next(k for k in range(len(self.bank.w)) if k not in self.slot.values())
        self.slot[name] = free
        self.bank.start(free)
        self.bank.w[free] = 0 if like is None else self.bank.w[self.slot[like]]

    def losses(self, names: Sequence[str], x: Tensor, y: Tensor) -> Tensor:
        margins = x @ self.bank.w[[self.slot[name] for name in names]].T
        return ((margins >= 0) != (y > 0)[:, None]).T.double()

    def train(self, names: Sequence[str], x: Tensor, y: Tensor) -> None:
        self.bank.store.append(x, y)
        self.bank.train([self.slot[name] for name in names], len(x))

    def rename(self, name: str, new: str) -> None:
        self.slot[new] = self.slot.pop(name)

    def drop(self, name: str) -> None:
        self.slot.pop(name, None)


class FormD(Logistic):
    """DriftSurf's form D on logistic regression, decided by the zero-one error.

    Args:
        features: as in `Logistic`.
        monitor: decides; of this learner alone.
        archive: as in `Trial`.
        **settings: as in `Logistic`.
    """

    def __init__(self, features: int, monitor: DriftMonitor, *, archive: int = 1, **settings: Any) -> None:
        super().__init__(features, slots=4 + 2 * archive, **settings)
        self.monitor = monitor
        self._slots = _Slots(self.bank)
        self.trial = Trial(self._slots, monitor, archive=archive)

    def predict(self, x: Tensor) -> Tensor:
        return _sign(self.bank.margins(self._slots.slot[self.trial.serve], x))

    def _observe(self, x: Tensor, y: Tensor) -> None:
        self.trial.observe(x, y)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "slots": dict(self._slots.slot), "trial": self.trial.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._slots.slot = dict(state["slots"])
        self.trial.load_state_dict(state["trial"])
