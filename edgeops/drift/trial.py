# SPDX-License-Identifier: Apache-2.0
"""DriftSurf's trial around any bank of models: who is asked, who is trained, who stays. Drift spec, section 12."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from edgeops.drift.monitor import KEEP, DriftMonitor


class Bank(Protocol):
    """Models by name, of which "keep" is there from the start."""

    def open(self, name: str, like: str | None) -> None:
        """A new candidate: a new model, or a copy of another; its window begins with the points it trains on next."""

    def losses(self, names: Sequence[str], x: Tensor, y: Tensor) -> Tensor:
        """Loss of each model on each point, `[names, n]`."""
        ...

    def train(self, names: Sequence[str], x: Tensor, y: Tensor) -> None:
        """Train these on a batch, which joins the stored points."""

    def rename(self, name: str, new: str) -> None:
        """Call a model by another name; whoever had that name is gone."""

    def drop(self, name: str) -> None:
        """Forget a model."""


class Trial:
    """What happens to a bank's models, batch by batch.

    Args:
        bank: the models.
        monitor: decides.
        fresh: whether a new model is a candidate.
        warm: whether a copy of the model with a new window is one.
        archive: models that were replaced and are kept as candidates of later trials, for concepts that come back.
    """

    def __init__(
        self, bank: Bank, monitor: DriftMonitor, *, fresh: bool = True, warm: bool = True, archive: int = 1
    ) -> None:
        self.bank, self.monitor, self.fresh, self.warm, self.archive = bank, monitor, fresh, warm, archive
        self.past: list[str] = []
        self._count = 0

    @property
    def serve(self) -> str:
        """The model that predicts."""
        return self.monitor.serve

    def observe(self, x: Tensor, y: Tensor) -> str:
        """Take in a batch and train on it; the event that it led to. An empty one changes nothing."""
        if not len(x):
            return "none"
        monitor, bank = self.monitor, self.bank
        names = monitor.candidates
        losses = bank.losses(names, x, y)
        decision = monitor.observe(dict(zip(names, losses, strict=True)))
        if decision.event in ("enter", "reenter"):
            self._forget(names)
            self._enter(x, y)
        else:
            if decision.event in ("keep", "switch"):
                self._end(names, decision.winner)
            bank.train(monitor.candidates, x, y)
        return decision.event

    def _enter(self, x: Tensor, y: Tensor) -> None:
        monitor, bank = self.monitor, self.bank
        made = {"fresh": None} if self.fresh else {}
        likes: dict[str, str | None] = {**made, **({"warm": KEEP} if self.warm else {})}
        likes.update({f"again {name}": name for name in self.past})
        for name, like in likes.items():
            bank.open(name, like)
        monitor.begin(list(likes))
        half = len(x) // 2
        names = monitor.candidates
        if half:
            bank.train(names, x[:half], y[:half])
        losses = bank.losses(names, x[half:], y[half:])
        decision = monitor.head_start(dict(zip(names, losses, strict=True)))
        if decision.event == "switch":
            self._end(names, decision.winner)
        bank.train(monitor.candidates, x[half:], y[half:])

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            if name != KEEP:
                self.bank.drop(name)

    def _end(self, names: Sequence[str], winner: str | None) -> None:
        if winner is not None and winner != "warm":
            self._shelve()
        if winner is not None:
            self.bank.rename(winner, KEEP)
        self._forget([name for name in names if name != winner])

    def _shelve(self) -> None:
        if self.archive:
            name = f"past {self._count}"
            self._count += 1
            self.bank.open(name, KEEP)
            self.past.append(name)
            while len(self.past) > self.archive:
                self.bank.drop(self.past.pop(0))

    def state_dict(self) -> dict[str, Any]:
        """Everything but the bank."""
        return {"monitor": self.monitor.state_dict(), "past": list(self.past), "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""
        self.monitor.load_state_dict(state["monitor"])
        self.past, self._count = list(state["past"]), state["count"]
