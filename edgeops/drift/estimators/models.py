# SPDX-License-Identifier: Apache-2.0
"""One candidate of a bank, whatever library it comes from: learn a batch, predict, be copied."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeops._common import describe, message
from edgeops.drift.estimators.network import Network

Points = NDArray[np.float64]
Targets = NDArray[Any]


class Model(Protocol):
    """Classes are numbers from 0 in the order in which they appeared; a regressor gets values and no classes."""

    ready: bool
    """Whether it can predict."""

    def learn(self, x: Points, y: Targets, classes: int) -> None: ...
    def predict(self, x: Points) -> Targets: ...
    def proba(self, x: Points, classes: int) -> Points: ...
    def copy(self) -> Model: ...


class Incremental:
    """A scikit-learn estimator with `partial_fit`, new from `template`.

    `partial_fit` takes all classes at its first call and refuses others later. Here a class that appears makes the
    estimator anew, and it learns the last `window` points again. Until there are two classes, it predicts the one.
    """

    def __init__(self, template: Any, task: str, window: int) -> None:
        self.template, self.task, self.window = template, task, window
        self.estimator = _cloned(template)
        self.classes = 0
        self.ready = self._fitted = False
        self._x: list[Points] = []
        self._y: list[Targets] = []

    def copy(self) -> Incremental:
        other = copy.copy(self)
        other.estimator, other._x, other._y = copy.deepcopy(self.estimator), list(self._x), list(self._y)
        return other

    def learn(self, x: Points, y: Targets, classes: int) -> None:
        self.ready = True
        if self.task == "regression":
            self.estimator.partial_fit(x, y)
            return
        self._remember(x, y)
        if classes != self.classes:
            self.classes = classes
            self.estimator, self._fitted = _cloned(self.template), False
        if classes < 2:
            return
        if not self._fitted:
            x, y = np.concatenate(self._x), np.concatenate(self._y)
        self.estimator.partial_fit(x, y, classes=np.arange(classes))
        self._fitted = True

    def _remember(self, x: Points, y: Targets) -> None:
        self._x.append(x.copy())  # the caller's arrays may change
        self._y.append(y)
        extra = sum(map(len, self._y)) - self.window
        while extra >= len(self._y[0]):
            extra -= len(self._y[0])
            del self._x[0], self._y[0]
        if extra > 0:
            self._x[0], self._y[0] = self._x[0][extra:], self._y[0][extra:]

    def predict(self, x: Points) -> Targets:
        if self.task == "classification" and not self._fitted:
            return np.zeros(len(x), dtype=np.int64)
        return np.asarray(self.estimator.predict(x))

    def proba(self, x: Points, classes: int) -> Points:
        out = np.zeros((len(x), classes))
        if self._fitted:
            out[:, : self.classes] = self.estimator.predict_proba(x)
        else:
            out[:, 0] = 1.0
        return out


class River:
    """A river model on rows of an array, whose features are named by their column. It takes in classes as they come."""

    def __init__(self, template: Any, task: str) -> None:
        self.model, self.task = template.clone(), task
        self.ready = False

    def copy(self) -> River:
        return copy.deepcopy(self)

    def learn(self, x: Points, y: Targets, classes: int) -> None:
        if classes > 2 and not getattr(self.model, "_multiclass", True):
            advice = "Wrap it in river.multiclass.OneVsRestClassifier."
            raise ValueError(message(_name(self.model), "tells two classes apart", f"{classes} classes", advice))
        for row, target in zip(x.tolist(), y.tolist(), strict=True):
            self.model.learn_one(dict(enumerate(row)), target)
        self.ready = self.ready or bool(len(x))

    def predict(self, x: Points) -> Targets:
        found = [self.model.predict_one(dict(enumerate(row))) for row in x.tolist()]
        return np.array([0 if value is None else value for value in found], dtype=np.float64)

    def proba(self, x: Points, classes: int) -> Points:
        out = np.zeros((len(x), classes))
        for i, row in enumerate(x.tolist()):
            for code, share in self.model.predict_proba_one(dict(enumerate(row))).items():
                if int(code) < classes:
                    out[i, int(code)] = share
        total = out.sum(1, keepdims=True)
        return np.where(total > 0, out / np.where(total > 0, total, 1), 1 / classes)


def _cloned(template: Any) -> Any:
    from sklearn.base import clone

    return clone(template)


def _name(value: Any) -> str:
    return type(value).__name__


NAMED = {"logistic": (), "linear": (), "mlp": (32,)}
"""Networks by name, with the widths of their hidden layers."""


def maker(
    estimator: Any, task: str, *, window: int = 1000, seed: int | None = None, who: str = "EstimatorBank"
) -> Callable[[], Model]:
    """What makes models that have learned nothing.

    Args:
        estimator: "logistic" (or "linear"), "mlp", a scikit-learn estimator with `partial_fit`, or a river model. It
            is a template and stays as it is.
        task: "classification" or "regression".
        window: points kept for learning again, by the networks and by scikit-learn's classifiers when a class appears.
        seed: of the networks.
        who: the caller, for errors.

    Raises:
        TypeError: something else, or a regressor where a classifier is wanted.
    """
    if isinstance(estimator, str):
        if estimator not in NAMED:
            rule = f"a base learner's name must be one of {', '.join(NAMED)}"
            raise ValueError(message(who, rule, repr(estimator), "Or pass an estimator."))
        return lambda: Network(task, hidden=NAMED[estimator], window=window, seed=seed)
    if isinstance(estimator, type):
        raise TypeError(message(who, "needs an object", f"the class {estimator.__name__}", "Call it."))
    if hasattr(estimator, "learn_one") and hasattr(estimator, "predict_one") and hasattr(estimator, "clone"):
        return lambda: River(estimator, task)
    if hasattr(estimator, "partial_fit") and hasattr(estimator, "predict"):
        kind = "classifier" if task == "classification" else "regressor"
        if _sklearn_kind(estimator) not in (None, kind):
            got, advice = f"{_name(estimator)}, another kind", "DriftSurfClassifier and DriftSurfRegressor differ."
            raise TypeError(message(who, f"needs a {kind}", got, advice))
        return lambda: Incremental(estimator, task, window)
    rule = "a base learner must have partial_fit and predict (scikit-learn) or learn_one and predict_one (river)"
    advice = "Take one that learns from batches, such as SGDClassifier, or 'mlp'."
    raise TypeError(message(who, rule, describe(estimator), advice))


def _sklearn_kind(estimator: Any) -> str | None:
    try:
        from sklearn.utils import get_tags
    except ImportError:
        return None
    return get_tags(estimator).estimator_type if hasattr(estimator, "__sklearn_tags__") else None
