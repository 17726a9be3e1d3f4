# SPDX-License-Identifier: Apache-2.0
"""Form D on a bank with slots: DriftSurf's trial over logistic models or small networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops.drift.logistic import Logistic, _sign
from edgeops.drift.monitor import KEEP, DriftMonitor
from edgeops.drift.strsaga import StrsagaBank
from edgeops.drift.trial import Trial


class _Slots:
    """The slots of a bank of models by name."""

    def __init__(self, bank: Any) -> None:
        self.bank = bank
        self.slot = {KEEP: 0}
        self._level(0)

    def _level(self, slot: int) -> None:
        """A logistic model begins at 0, where every margin does; a network with its own weights."""
        if isinstance(self.bank, StrsagaBank):
            self.bank.w[slot] = 0

    def open(self, name: str, like: str | None) -> None:
        self.drop(name)
        bank = self.bank
        free = next(k for k in range(len(bank.window)) if k not in self.slot.values())
        self.slot[name] = free
        bank.start(free)
        if like is None:
            self._level(free)
        elif isinstance(bank, StrsagaBank):
            bank.w[free] = bank.w[self.slot[like]]
        else:
            bank.copy(self.slot[like], free)
            bank.window[free] = len(bank.store)

    def losses(self, names: Sequence[str], x: Tensor, y: Tensor) -> Tensor:
        margins = torch.stack([self.bank.margins(self.slot[name], x) for name in names])
        wrong = ((margins >= 0) != (y > 0)).double()
        return wrong.masked_fill_(margins.isnan(), torch.nan)

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
