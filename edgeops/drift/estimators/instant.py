# SPDX-License-Identifier: Apache-2.0
"""River models that learn every point as it comes, while the monitor is asked once a batch. Drift spec, section 12."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from edgeops.drift.estimators.bank import HUGE
from edgeops.drift.monitor import KEEP


class Rows(Sequence[Any]):
    """Rows of the batch at hand that know where they begin in it, however often they are sliced."""

    def __init__(self, items: list[Any], start: int = 0) -> None:
        self.items, self.start = items, start

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, int):
            return self.items[index]
        first, _, _ = index.indices(len(self.items))
        return Rows(self.items[index], self.start + first)


class InstantBank:
    """Each model is scored on a point, then learns it, in the order of the stream: nobody waits for a batch to fill.

    `point` does that for models that are alive when a point comes. What `Trial` asks afterwards of the whole batch is
    answered from these losses, and a point is never learned twice. New candidates go through the batch the same way.

    Args:
        template: a river classifier or regressor; it stays as it is.
        task: "classification" (losses 0 and 1) or "regression" (absolute residuals over the mean absolute deviation of
            the targets so far).
    """

    def __init__(self, template: Any, task: str) -> None:
        self.template, self.task = template, task
        self.models: dict[str, Any] = {KEEP: template.clone()}
        self._losses: dict[str, list[float]] = {KEEP: []}
        self._count, self._middle, self._deviation = 0, 0.0, 0.0

    def point(self, names: Sequence[str], x: Mapping[Any, Any], y: Any, extra: Mapping[str, Any]) -> None:
        """A point of the stream: score it and learn it; `extra` are keywords for the models' `learn_one`."""
        for name in names:
            self._learn(name, x, y, extra)
        self._measure(y)

    def many(self, names: Sequence[str], x: Any, y: Any, targets: Sequence[Any]) -> None:
        """The same for a data frame, by models that take in mini-batches."""
        for name in names:
            model = self.models[name]
            guesses = model.predict_many(x)
            # before it has learned, a model may answer with an empty frame
            shown = guesses.to_list() if guesses.ndim == 1 else [None] * len(targets)
            self._losses[name] += [self._loss(guess, target) for guess, target in zip(shown, targets, strict=True)]
            model.learn_many(x, y)
        for target in targets:
            self._measure(target)

    def done(self) -> None:
        """The batch has ended."""
        self._losses = {name: [] for name in self.models}

    def _learn(self, name: str, x: Mapping[Any, Any], y: Any, extra: Mapping[str, Any]) -> None:
        model = self.models[name]
        self._losses[name].append(self._loss(model.predict_one(x), y))
        model.learn_one(x, y, **extra)

    def _loss(self, guess: Any, y: Any) -> float:
        if self.task == "classification":
            return float(guess != y)
        scale = self._deviation / self._count if self._count else 0.0
        loss = abs(float(0.0 if guess is None else guess) - float(y)) / (scale or 1.0)
        return loss if loss < HUGE else math.inf

    def _measure(self, y: Any) -> None:
        if self.task == "regression":
            self._count += 1
            self._middle += (float(y) - self._middle) / self._count
            self._deviation += abs(float(y) - self._middle)

    def _through(self, name: str, x: Rows, y: Rows) -> list[float]:
        """Losses on these rows, each measured before it was learned; rows that were not, are now."""
        have = self._losses[name]
        for i in range(len(x)):
            if x.start + i >= len(have):
                # a model that did not see the rows before has no losses there, and nobody asks for them
                have += [math.nan] * (x.start + i - len(have))
                row, extra = x[i]
                self._learn(name, row, y[i], extra)
        return have[x.start : x.start + len(x)]

    def open(self, name: str, like: str | None) -> None:
        self.models[name] = self.template.clone() if like is None else copy.deepcopy(self.models[like])
        self._losses[name] = [] if like is None else list(self._losses[like])

    def losses(self, names: Sequence[str], x: Any, y: Any) -> Tensor:
        return torch.tensor([self._through(name, x, y) for name in names], dtype=torch.float64)

    def train(self, names: Sequence[str], x: Any, y: Any) -> None:
        for name in names:
            self._through(name, x, y)

    def rename(self, name: str, new: str) -> None:
        self.models[new], self._losses[new] = self.models.pop(name), self._losses.pop(name)

    def drop(self, name: str) -> None:
        del self.models[name], self._losses[name]
