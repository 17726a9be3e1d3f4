# SPDX-License-Identifier: Apache-2.0
"""Logistic regression trained by STRSAGA on a stored stream, many models side by side. Drift spec, section 4.1."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops._common import describe, message

_run = _native.kernel("_strsaga_run", "strsaga_run")


def visits(start: int, end: int, limit: int, steps: int, generator: torch.Generator) -> Tensor:
    """What a learner of window `[start, end)` visits: new points at even steps while there are some before `limit`.

    Odd steps, and even ones once all are taken in, draw a point of the window as it then is.

    Args:
        start: first point of the window.
        end: one past its last point.
        limit: one past the last point that may be taken in.
        steps: how many visits, twice the batch for training rate 2.
        generator: draws the revisits.

    Returns:
        int32 `[steps]`, or `[0]` where the window is empty and nothing can be taken in.

    >>> visits(0, 0, 2, 4, torch.Generator().manual_seed(0))[[0, 1, 2]].tolist()
    [0, 0, 1]
    """
    backlog = max(0, limit - end)
    if end == start and backlog == 0:
        return torch.empty(0, dtype=torch.int32)
    evens = (steps + 1) // 2
    taken = min(evens, backlog)
    order = torch.empty(steps, dtype=torch.int32)
    order[: 2 * taken : 2] = torch.arange(end, end + taken, dtype=torch.int32)
    # what the window holds at each step that draws: one point more behind each that was taken in
    odd = min(taken, steps // 2)
    held = end - start
    _draw(order[1 : 2 * odd : 2], start, torch.arange(held + 1, held + odd + 1, dtype=torch.float64), generator)
    if 2 * taken < steps:
        rest = order[2 * taken :]
        _draw(rest, start, torch.full((len(rest),), held + taken, dtype=torch.float64), generator)
    return order


def _draw(order: Tensor, start: int, room: Tensor, generator: torch.Generator) -> None:
    """Write a point of `[start, start + room)` into each place."""
    # a little less than the room, so that no product is rounded up to it
    room.mul_(1 - 2.0**-52)
    order.copy_(torch.rand(len(order), dtype=torch.float64, generator=generator).mul_(room))
    if start:
        order.add_(start)


class PointStore:
    """A stream's points in the order of arrival, in buffers that grow.

    Args:
        features: values a point has.
        dtype: float32 or float64.

    >>> store = PointStore(2)
    >>> store.append(torch.ones(3, 2), torch.tensor([1.0, -1.0, 1.0]))
    >>> len(store), store.x.shape
    (3, torch.Size([3, 2]))
    """

    def __init__(self, features: int, dtype: torch.dtype = torch.float64) -> None:
        self._x = torch.zeros(0, features, dtype=dtype)
        self._y = torch.zeros(0, dtype=dtype)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def x(self) -> Tensor:
        """`[points, features]`."""
        return self._x[: self._count]

    @property
    def y(self) -> Tensor:
        """`[points]`, -1 or 1."""
        return self._y[: self._count]

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """`x` and `y` with the room behind the last point."""
        return self._x, self._y

    def append(self, x: Tensor, y: Tensor) -> None:
        """Take points in.

        Raises:
            ValueError: another number of features, labels that are not -1 or 1, or not one for each point.
        """
        features = self._x.shape[1]
        if x.dim() != 2 or x.shape[1] != features or y.shape != x.shape[:1]:
            rule = f"x must have shape [n, {features}] and y shape [n]"
            raise ValueError(message("PointStore.append", rule, f"{describe(x)} and {describe(y)}", "Reshape them."))
        if not torch.equal(y.abs(), y.new_ones(()).expand(len(y))):
            raise ValueError(
                message("PointStore.append", "labels must be -1 or 1", "others", "For 0 and 1: 2 * y - 1.")
            )
        end = self._count + len(x)
        if end > len(self._x):
            room = max(end, 2 * len(self._x))
            wide, labels = self._x.new_zeros(room, features), self._y.new_zeros(room)
            wide[: self._count], labels[: self._count] = self.x, self.y
            self._x, self._y = wide, labels
        self._x[self._count : end], self._y[self._count : end] = x, y
        self._count = end

    def state_dict(self) -> dict[str, Tensor]:
        """The points."""
        return {"x": self.x.clone(), "y": self.y.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put the points back."""
        self._x, self._y = state["x"].clone(), state["y"].clone()
        self._count = len(self._x)


class StrsagaBank:
    """Slots of logistic models over one stored stream, each with a window of points that it may train on.

    All state is in tensors: `w`, `sum` `[slots, features]`, `alpha` `[slots, points]`, `window` `[slots, 2]`; `steps`
    counts the training steps of all models together.

    Args:
        store: the points; labels are -1 and 1, and a constant feature is the caller's business.
        slots: number of models.
        eta: step size.
        mu: regulariser.
        rate: training steps for each new point; 2 visits each new point and as many old ones.
        generator: draws revisits and first weights.

    >>> store = PointStore(2)
    >>> bank = StrsagaBank(store, 1, eta=0.1, mu=1e-3, generator=torch.Generator().manual_seed(0))
    >>> bank.start(0)
    >>> x, y = torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([-1.0, 1.0])
    >>> store.append(x.repeat(50, 1), y.repeat(50))
    >>> bank.train([0], 100)
    >>> float(bank.error(0, store.x, store.y))
    0.0
    """

    def __init__(
        self,
        store: PointStore,
        slots: int,
        *,
        eta: float,
        mu: float,
        rate: float = 2.0,
        generator: torch.Generator,
    ) -> None:
        if not (eta > 0 and mu >= 0 and rate > 0 and slots > 0):
            rule = "eta, rate and slots must be positive, mu not negative"
            raise ValueError(message("StrsagaBank", rule, f"{eta}, {rate}, {slots}, {mu}", "Section 4.3 lists values."))
        self.store, self.eta, self.mu, self.rate, self.generator = store, eta, mu, rate, generator
        x, _ = store.buffers
        self.w = x.new_zeros(slots, x.shape[1])
        self.sum = torch.zeros_like(self.w)
        self.alpha = x.new_zeros(slots, len(x))
        self.window = torch.zeros(slots, 2, dtype=torch.int64)
        self.steps = 0

    def start(self, slot: int, first: int | None = None) -> None:
        """A new model: weights uniform in [0, 1), as in the authors' runs, a window from `first` or the next point."""
        self.w[slot] = torch.rand(self.w.shape[1], dtype=torch.float64, generator=self.generator).to(self.w.dtype)
        self.sum[slot] = 0
        self.window[slot] = len(self.store) if first is None else first

    def copy(self, source: int, target: int, *, frozen: bool = False) -> None:
        """Make `target` a copy of `source`: all of it, or its weights alone where it will never train."""
        self.w[target] = self.w[source]
        if not frozen:
            start, end = self.window[source].tolist()
            self.sum[target], self.window[target] = self.sum[source], self.window[source]
            self.alpha[target, start:end] = self.alpha[source, start:end]

    def train(self, slots: Sequence[int], points: int, shares: Sequence[float] | None = None) -> None:
        """One batch: `rate * points` steps for each model named, or these times its share.

        Args:
            slots: the models.
            points: size of the batch, which the store holds already.
            shares: the part of the steps that each model gets; 1 without.
        """
        x, y = self.store.buffers
        models = len(self.w)
        if len(x) > self.alpha.shape[1]:
            wide = x.new_zeros(models, len(x))
            for slot, (start, end) in enumerate(self.window.tolist()):  # what lies outside is never read
                wide[slot, start:end] = self.alpha[slot, start:end]
            self.alpha = wide
        orders = [torch.empty(0, dtype=torch.int32)] * models
        windows = self.window.tolist()
        for slot, share in zip(slots, shares or [1.0] * len(slots), strict=True):
            steps = int(self.rate * points * share)
            start, end = windows[slot]
            orders[slot] = visits(start, end, len(self.store), steps, self.generator)
        starts = torch.tensor([0, *itertools.accumulate(len(order) for order in orders)])
        self.steps += int(starts[-1])
        everything = x.expand(models, -1, -1), y.expand(models, -1), torch.cat(orders), starts
        _run(*everything, self.w, self.sum, self.alpha, self.window, self.eta, self.mu)

    def margins(self, slot: int, x: Tensor) -> Tensor:
        """`x @ w`, `[n]`: the predicted label is its sign."""
        return x @ self.w[slot]

    def error(self, slot: int, x: Tensor, y: Tensor) -> float:
        """Share of points whose predicted label is wrong; a margin of 0 predicts 1."""
        return float(((self.margins(slot, x) >= 0) != (y > 0)).double().mean())

    def loss(self, slot: int, x: Tensor, y: Tensor) -> float:
        """Mean logistic loss plus `mu / 2 * |w|^2`."""
        w = self.w[slot]
        data = torch.nn.functional.softplus(-y * (x @ w)).mean()
        return float(data + self.mu / 2 * (w @ w))

    def state_dict(self) -> dict[str, Any]:
        """Everything that training continues from, the generator's state included; not the points."""
        tensors = {name: getattr(self, name).clone() for name in ("w", "sum", "alpha", "window")}
        return {**tensors, "generator": self.generator.get_state(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""
        for name in ("w", "sum", "alpha", "window"):
            setattr(self, name, state[name].clone())
        self.generator.set_state(state["generator"])
        self.steps = state["steps"]
