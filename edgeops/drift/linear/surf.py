# SPDX-License-Identifier: Apache-2.0
"""DriftSurf, form D, on logistic regression by STRSAGA. Drift spec, sections 4 and 12."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edgeops._common import message
from edgeops.drift.linear.logistic import Logistic
from edgeops.drift.linear.strsaga import PointStore, StrsagaBank
from edgeops.drift.monitor import KEEP, DriftMonitor
from edgeops.drift.trial import Trial

BUDGETS = ("each", "all")
KEEP_SHARE = 0.1
"""Part of a shared budget that the long-lived model gets within a trial."""


class LogisticBank:
    """The slots of a `StrsagaBank` by name; new models begin with weights 0.

    Args:
        store: the points.
        bank: the models; slot 0 is "keep".
        budget: "each", every model trains `rate` steps a point; "all", they share them.
    """

    def __init__(self, store: PointStore, bank: StrsagaBank, budget: str = "each") -> None:
        self.store, self.bank, self.budget = store, bank, budget
        self.slot = {KEEP: 0}
        self.steps = 0
        bank.w[0] = 0

    def open(self, name: str, like: str | None) -> None:
        free = next(i for i in range(len(self.bank.w)) if i not in self.slot.values())
        self.bank.start(free)
        self.bank.w[free] = 0 if like is None else self.bank.w[self.slot[like]]
        self.slot[name] = free

    def losses(self, names: Sequence[str], x: Tensor, y: Tensor) -> Tensor:
        """1 where the label is wrong, else 0; not a number where a margin is none."""
        slots = [self.slot[name] for name in names]
        w = self.bank.w[slots[0] : slots[0] + 1] if len(slots) == 1 else self.bank.w[slots]
        margins = w @ x.T
        wrong = ((margins >= 0) != (y > 0)).to(margins.dtype)
        return wrong.add_(margins, alpha=0)

    def train(self, names: Sequence[str], x: Tensor, y: Tensor) -> None:
        self.store.append(x, y)
        shares = [1.0] * len(names)
        if self.budget == "all" and len(names) > 1:
            rest = (1 - KEEP_SHARE) / (len(names) - 1)
            shares = [KEEP_SHARE if name == KEEP else rest for name in names]
        self.bank.train([self.slot[name] for name in names], len(x), shares)
        self.steps += sum(int(self.bank.rate * len(x) * share) for share in shares)

    def rename(self, name: str, new: str) -> None:
        self.slot[new] = self.slot.pop(name)

    def drop(self, name: str) -> None:
        self.slot.pop(name, None)


class DriftSurfLogistic(Logistic):
    """Logistic regression that doubts itself: form D.

    Args:
        features: as in `Logistic`.
        monitor: decides; of this learner alone. The default one without.
        fresh: whether a new model is a candidate of a trial.
        warm: whether a copy of the model with a new window is one.
        archive: replaced models that are candidates of later trials.
        budget: "each", every candidate trains like the model; "all", within a trial they share its steps.
        **settings: as in `Logistic`.

    Attributes:
        events: what happened at each batch: "none", "enter", "reenter", "keep", "switch".

    >>> import torch
    >>> learner = DriftSurfLogistic(2, eta=0.1, mu=1e-3, seed=0)
    >>> x = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).repeat(50, 1).double()
    >>> for t in range(8):
    ...     learner.observe(x, x[:, 0] if t < 6 else -x[:, 0])
    >>> learner.events[6:], learner.predict(x[:2]).tolist()
    (['enter', 'switch'], [-1.0, 1.0])
    """

    def __init__(
        self,
        features: int,
        monitor: DriftMonitor | None = None,
        *,
        fresh: bool = True,
        warm: bool = True,
        archive: int = 1,
        budget: str = "each",
        **settings: Any,
    ) -> None:
        if budget not in BUDGETS:
            rule = f"budget must be one of {', '.join(BUDGETS)}"
            raise ValueError(message("DriftSurfLogistic", rule, repr(budget), "The default is 'each'."))
        super().__init__(features, slots=4 + 2 * archive, **settings)
        self.models = LogisticBank(self.store, self.bank, budget)
        self.trial = Trial(self.models, monitor or DriftMonitor(), fresh=fresh, warm=warm, archive=archive)
        self.events: list[str] = []

    @property
    def monitor(self) -> DriftMonitor:
        """What decides."""
        return self.trial.monitor

    def predict(self, x: Tensor) -> Tensor:
        margins = self.bank.margins(self.models.slot[self.trial.serve], x)
        return 2.0 * (margins >= 0).to(margins.dtype) - 1.0

    def _observe(self, x: Tensor, y: Tensor) -> None:
        self.events.append(self.trial.observe(x, y))

    def state_dict(self) -> dict[str, Any]:
        own = {"trial": self.trial.state_dict(), "slot": dict(self.models.slot), "steps": self.models.steps}
        return {**super().state_dict(), **own, "events": list(self.events)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.trial.load_state_dict(state["trial"])
        self.models.slot, self.models.steps = dict(state["slot"]), state["steps"]
        self.events = list(state["events"])
