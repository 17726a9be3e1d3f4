# SPDX-License-Identifier: Apache-2.0
"""Small networks in the slots where `StrsagaBank` has logistic models, so that the same methods run around both."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeops._common import message
from edgeops.drift.linear.logistic import Aue, Logistic
from edgeops.drift.linear.strsaga import PointStore, visits
from edgeops.drift.linear.surf import DriftSurfLogistic, LogisticBank
from edgeops.drift.monitor import KEEP


class MlpBank:
    """Slots of networks with one hidden layer over one stored stream, each with a window of points to train on.

    Args:
        store: the points, float64; labels are -1 and 1.
        slots: number of models.
        hidden: units.
        lr: Adam's step size.
        rate: training visits for each new point; 2 visits each new point and as many old ones.
        chunk: points of a step.
        generator: draws revisits and first weights.

    >>> store = PointStore(2)
    >>> bank = MlpBank(store, 1, generator=torch.Generator().manual_seed(0))
    >>> x, y = torch.rand(2000, 2).double() * 2 - 1, torch.ones(2000).double()
    >>> y[x.prod(1) < 0] = -1
    >>> store.append(x, y)
    >>> bank.train([0], 2000)
    >>> bank.error(0, x, y) < 0.25, bank.window.tolist(), bank.steps
    (True, [[0, 2000]], 4000)
    """

    def __init__(
        self,
        store: PointStore,
        slots: int,
        *,
        hidden: int = 16,
        lr: float = 0.01,
        rate: float = 2.0,
        chunk: int = 32,
        generator: torch.Generator,
    ) -> None:
        if not (hidden >= 1 and lr > 0 and rate > 0 and chunk >= 1):
            rule, got = "hidden, lr, rate and chunk must be positive", f"{hidden}, {lr}, {rate}, {chunk}"
            raise ValueError(message("MlpBank", rule, got, "hidden=16 and lr=0.01 are usual."))
        self.store, self.generator, self.rate, self.chunk = store, generator, rate, chunk
        self.features, self.hidden, self.lr, self.steps = store.x.shape[1], hidden, lr, 0
        self.window = torch.zeros(slots, 2, dtype=torch.int64)
        self._models: list[nn.Sequential] = []
        self._optimizers: list[torch.optim.Adam] = []
        for slot in range(slots):
            model = nn.Sequential(nn.Linear(self.features, hidden), nn.ReLU(), nn.Linear(hidden, 1)).double()
            self._models.append(model)
            self._optimizers.append(torch.optim.Adam(model.parameters(), lr=lr))
            self.start(slot)

    def start(self, slot: int, first: int | None = None) -> None:
        """New weights, as `nn.Linear` draws them, and a window from `first` or the next point."""
        with torch.no_grad():
            for layer in self._models[slot]:
                if isinstance(layer, nn.Linear):
                    bound = layer.in_features**-0.5
                    for values in (layer.weight, layer.bias):
                        drawn = torch.rand(values.shape, dtype=torch.float64, generator=self.generator)
                        values.copy_((2 * drawn - 1) * bound)
        self._optimizers[slot] = torch.optim.Adam(self._models[slot].parameters(), lr=self.lr)
        self.window[slot] = len(self.store) if first is None else first

    def copy(self, source: int, target: int, *, frozen: bool = False) -> None:
        """Make `target` a copy of `source`, its window and optimizer included, frozen or not."""
        self._models[target].load_state_dict(self._models[source].state_dict())
        self._optimizers[target] = torch.optim.Adam(self._models[target].parameters(), lr=self.lr)
        self._optimizers[target].load_state_dict(copy.deepcopy(self._optimizers[source].state_dict()))
        self.window[target] = self.window[source]

    def train(self, slots: Sequence[int], points: int, shares: Sequence[float] | None = None) -> None:
        """One batch: `rate * points` visits for each model named, in steps of `chunk` points."""
        for slot, share in zip(slots, shares or [1.0] * len(slots), strict=True):
            start, end = self.window[slot].tolist()
            order = visits(start, end, len(self.store), int(self.rate * points * share), self.generator).long()
            if not len(order):
                continue
            self.steps += len(order)
            self.window[slot, 1] = max(end, int(order.max()) + 1)
            # revisits are drawn among the points of the window so far: shuffled, a step mixes old and new ones
            order = order[torch.randperm(len(order), generator=self.generator)]
            for part in order.split(self.chunk):
                self._optimizers[slot].zero_grad(set_to_none=True)
                margins = self._models[slot](self.store.x[part])[:, 0]
                nn.functional.softplus(-self.store.y[part] * margins).mean().backward()
                self._optimizers[slot].step()

    def margins(self, slot: int, x: Tensor) -> Tensor:
        """The network's output, `[n]`: the predicted label is its sign."""
        with torch.no_grad():
            out: Tensor = self._models[slot](x)[:, 0]
        return out

    def error(self, slot: int, x: Tensor, y: Tensor) -> float:
        """Share of points whose predicted label is wrong."""
        return float(((self.margins(slot, x) >= 0) != (y > 0)).double().mean())

    def loss(self, slot: int, x: Tensor, y: Tensor) -> float:
        """Mean logistic loss."""
        return float(nn.functional.softplus(-y * self.margins(slot, x)).mean())

    def state_dict(self) -> dict[str, Any]:
        """Everything that training continues from, the generator's state included; not the points."""
        return {
            "models": [copy.deepcopy(model.state_dict()) for model in self._models],
            "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in self._optimizers],
            "window": self.window.clone(),
            "generator": self.generator.get_state(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""
        for slot, (model, optimizer) in enumerate(zip(state["models"], state["optimizers"], strict=True)):
            self._models[slot].load_state_dict(model)
            self._optimizers[slot] = torch.optim.Adam(self._models[slot].parameters(), lr=self.lr)
            self._optimizers[slot].load_state_dict(copy.deepcopy(optimizer))
        self.window = state["window"].clone()
        self.generator.set_state(state["generator"])
        self.steps = state["steps"]


class _Networks(LogisticBank):
    """The slots of an `MlpBank` by name."""

    def __init__(self, store: PointStore, bank: Any, budget: str) -> None:
        self.store, self.bank, self.budget = store, bank, budget
        self.slot, self.steps = {KEEP: 0}, 0

    def open(self, name: str, like: str | None) -> None:
        bank: Any = self.bank
        free = next(k for k in range(len(bank.window)) if k not in self.slot.values())
        bank.start(free)
        if like is not None:
            bank.copy(self.slot[like], free)
            bank.window[free] = len(self.store)
        self.slot[name] = free

    def losses(self, names: Sequence[str], x: Tensor, y: Tensor) -> Tensor:
        margins = torch.stack([self.bank.margins(self.slot[name], x) for name in names])
        wrong = ((margins >= 0) != (y > 0)).double()
        return wrong.add_(margins, alpha=0)


def around_networks(learner: Logistic, *, hidden: int = 16, lr: float = 0.01) -> Logistic:
    """The same learner, new still, with networks in place of its logistic models.

    Raises:
        NotImplementedError: AUE, which weighs logistic models by their probabilities.

    >>> learner = around_networks(Logistic(2, eta=0.1, mu=0.0, seed=0))
    >>> learner.predict(torch.zeros(3, 2).double()).shape
    torch.Size([3])
    """
    if isinstance(learner, Aue):
        raise NotImplementedError(
            message("around_networks", "AUE is there for logistic regression alone", "AUE", "Leave it out.")
        )
    old: Any = learner.bank
    bank: Any = MlpBank(learner.store, len(old.window), hidden=hidden, lr=lr, rate=old.rate, generator=old.generator)
    learner.bank = bank
    if isinstance(learner, DriftSurfLogistic):
        learner.models = learner.trial.bank = _Networks(learner.store, bank, learner.models.budget)
    return learner
