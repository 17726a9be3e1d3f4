# SPDX-License-Identifier: Apache-2.0
"""A bank of scikit-learn, river or small torch models for `Trial` and `ResetOn`. Drift spec, section 12."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeops._common import message
from edgeops.drift.estimators.models import Model, maker
from edgeops.drift.monitor import KEEP

HUGE = 1e100
"""A loss of this size is a model that diverged; its square must still be a number."""


class EstimatorBank:
    """Models of one kind by name: a fresh one is a clone of the template, a warm one a deep copy.

    The loss of a point is 0 or 1 for a classifier; for a regressor it is the absolute residual over the mean absolute
    deviation of the targets so far, so that thresholds mean the same on any target. A model that cannot predict yet is
    wrong everywhere (a regressor: predicts 0). One whose training overflows has losses that are not finite, which
    disqualifies it in a trial.

    Classes may appear at any time. Networks and river models take them in; a scikit-learn classifier, which cannot, is
    made anew and learns its last `window` points again.

    Args:
        estimator: the template: "logistic", "mlp", a scikit-learn estimator with `partial_fit`, or a river model.
        task: "classification" or "regression".
        window: points that a model keeps for learning again.
        seed: of the networks; every new model begins with it.
        classes: those that are known beforehand.

    >>> bank = EstimatorBank("logistic", seed=0)
    >>> x = torch.tensor([[0.0], [1.0]]).repeat(50, 1)
    >>> bank.train(["keep"], x, x[:, 0])
    >>> bank.losses(["keep"], x, 1 - x[:, 0]).mean().item(), bank.predict("keep", x[:2]).tolist()
    (1.0, [0.0, 1.0])
    """

    def __init__(
        self,
        estimator: Any = "logistic",
        *,
        task: str = "classification",
        window: int = 1000,
        seed: int | None = None,
        classes: Sequence[Any] = (),
    ) -> None:
        if task not in ("classification", "regression"):
            rule = "task must be 'classification' or 'regression'"
            raise ValueError(message("EstimatorBank", rule, repr(task), "Pass one of them."))
        if window < 1:
            raise ValueError(message("EstimatorBank", "window must be at least 1", str(window), "1000 is the default."))
        maker(estimator, task)  # refuses what is no base learner
        self.estimator, self.task, self.window, self.seed = estimator, task, window, seed
        self.labels: list[Any] = []
        """The classes, in the order in which they appeared."""
        self._codes: dict[Any, int] = {}
        self._broken: set[str] = set()
        self._count, self._middle, self._deviation = 0, 0.0, 0.0
        self.meet(np.asarray(classes))
        self.models: dict[str, Model] = {KEEP: self._new()}

    def _new(self) -> Model:
        return maker(self.estimator, self.task, window=self.window, seed=self.seed)()

    def meet(self, y: NDArray[Any]) -> None:
        """Take in classes that were not there before."""
        for label in np.unique(y).tolist() if len(y) else ():
            if label not in self._codes:
                self._codes[label] = len(self.labels)
                self.labels.append(label)

    def open(self, name: str, like: str | None) -> None:
        """A new candidate: a new model, or a copy of another."""
        self.models[name] = self._new() if like is None else self.models[like].copy()
        self._broken.discard(name)
        if like in self._broken:
            self._broken.add(name)

    def losses(self, names: Sequence[str], x: Tensor, y: Tensor) -> Tensor:
        """Loss of each model on each point, `[names, n]` in float64."""
        points, targets = np.asarray(x), np.asarray(y)
        with np.errstate(over="ignore", invalid="ignore"):  # such losses say that a model diverged
            out = [self._losses(name, points, targets) for name in names]
        return torch.from_numpy(np.stack(out))

    def _losses(self, name: str, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        model = self.models[name]
        if name in self._broken:
            return np.full(len(x), np.inf)
        if not len(x):
            return np.zeros(0)
        if self.task == "classification":
            if not model.ready:
                return np.ones(len(x))
            known = np.array([self._codes.get(label, -1) for label in y.tolist()])
            return (np.asarray(model.predict(x)) != known).astype(np.float64)
        y = y.astype(np.float64)
        guess = model.predict(x).astype(np.float64) if model.ready else np.zeros(len(x))
        scale = self._deviation / self._count if self._count else float(np.abs(y - y.mean()).mean())
        loss = np.abs(y - guess) / (scale or 1.0)
        return np.where(loss < HUGE, loss, np.inf)

    def train(self, names: Sequence[str], x: Tensor, y: Tensor) -> None:
        """Train these on a batch; an empty one changes nothing."""
        points, targets = np.asarray(x), np.asarray(y)
        if not len(points):
            return
        if self.task == "classification":
            self.meet(targets)
            targets = np.array([self._codes[label] for label in targets.tolist()])
        else:
            targets = targets.astype(np.float64)
            self._measure(targets)
        for name in names:
            if name not in self._broken:
                self._learn(name, points, targets)

    def _learn(self, name: str, x: NDArray[Any], y: NDArray[Any]) -> None:
        try:
            self.models[name].learn(x, y, len(self.labels))
        except (FloatingPointError, OverflowError):
            self._broken.add(name)
        except ValueError as error:
            # scikit-learn's gradient descent refuses to go on in these words
            if "overflow" not in str(error):
                raise
            self._broken.add(name)

    def _measure(self, y: NDArray[np.float64]) -> None:
        """The mean of the targets, and their absolute deviation from it as it was then."""
        total = self._count + len(y)
        self._middle += (float(y.mean()) - self._middle) * len(y) / total
        self._deviation += float(np.abs(y - self._middle).sum())
        self._count = total

    def rename(self, name: str, new: str) -> None:
        """Call a model by another name; whoever had that name is gone."""
        self.models[new] = self.models.pop(name)
        self._broken.discard(new)
        if name in self._broken:
            self._broken.remove(name)
            self._broken.add(new)

    def drop(self, name: str) -> None:
        """Forget a model."""
        del self.models[name]
        self._broken.discard(name)

    def predict(self, name: str, x: Any) -> NDArray[Any]:
        """What a model says of points `[n, d]`: labels or values `[n]`."""
        found = self._ready(name).predict(np.asarray(x))
        return np.asarray(self.labels)[found.astype(np.int64)] if self.task == "classification" else found

    def proba(self, name: str, x: Any) -> NDArray[np.float64]:
        """Probabilities `[n, classes]` in the order of `labels`; 0 for a class that the model has not met."""
        return self._ready(name).proba(np.asarray(x), len(self.labels))

    def _ready(self, name: str) -> Model:
        model = self.models[name]
        if not model.ready:
            rule = "a model must have learned before it predicts"
            raise ValueError(message("EstimatorBank.predict", rule, f"a new model {name!r}", "Train it on a batch."))
        return model

    def state_dict(self) -> dict[str, Any]:
        """Everything, in deep copies: models are their libraries' objects, so saving it means pickling it."""
        state = {name: value for name, value in vars(self).items() if name != "estimator"}
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""
        vars(self).update(copy.deepcopy(state))
