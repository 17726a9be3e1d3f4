# SPDX-License-Identifier: Apache-2.0
"""DriftSurf as scikit-learn estimators, around any base learner. Drift spec, section 12.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeops._common import message, missing_extra
from edgeops.drift.estimators.bank import EstimatorBank
from edgeops.drift.monitor import DriftMonitor
from edgeops.drift.trial import Trial

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise missing_extra("DriftSurfClassifier and DriftSurfRegressor", "scikit-learn", "sklearn") from error


class _DriftSurf(BaseEstimator):
    _task: str

    def __init__(
        self,
        estimator: Any = "logistic",
        *,
        batch_size: int = 100,
        archive: int = 1,
        window: int = 1000,
        monitor: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.batch_size = batch_size
        self.archive = archive
        self.window = window
        self.monitor = monitor
        self.random_state = random_state

    def _begin(self, classes: Sequence[Any] = ()) -> None:
        who = type(self).__name__
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            rule = "batch_size must be an integer of at least 1"
            raise ValueError(message(who, rule, repr(self.batch_size), "100 is the default."))
        seed = self.random_state
        if isinstance(seed, np.random.RandomState):
            seed = int(seed.randint(2**31))
        settings: dict[str, Any] = {"task": self._task, "window": self.window, "seed": seed}
        self.bank_ = EstimatorBank(self.estimator, classes=classes, **settings)
        self.trial_ = Trial(self.bank_, DriftMonitor(**(self.monitor or {})), archive=self.archive)
        self.event_ = "none"

    def fit(self, X: ArrayLike, y: ArrayLike) -> _DriftSurf:
        """Begin anew and learn a stream: the rows in order of time, `batch_size` at once.

        Args:
            X: points `[n, d]`, finite.
            y: their labels or values `[n]`.

        Returns:
            Itself.
        """
        X, y = self._validated(X, y, reset=True)
        self._begin()
        for first in range(0, len(X), self.batch_size):
            self._learn(X[first : first + self.batch_size], y[first : first + self.batch_size])
        return self

    def _partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None) -> None:
        first = not hasattr(self, "trial_")
        if not first and np.ndim(X) == 2 and np.shape(X)[0] == 0 and np.shape(X)[1] == self.n_features_in_:
            return
        X, y = self._validated(X, y, reset=first)
        if first:
            self._begin(() if classes is None else list(np.unique(np.asarray(classes)).tolist()))
        elif classes is not None:
            self.bank_.meet(np.asarray(classes))
        self._learn(X, y)

    def _learn(self, X: NDArray[Any], y: NDArray[Any]) -> None:
        # the trial slices its batches and hands them to the bank, which takes arrays too
        self.event_ = self.trial_.observe(cast(Any, X), cast(Any, y))

    def _validated(self, X: ArrayLike, y: ArrayLike, *, reset: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        numeric = self._task == "regression"
        points, targets = validate_data(self, X, y, reset=reset, dtype=np.float64, y_numeric=numeric)
        return cast(NDArray[Any], points), cast(NDArray[Any], targets)

    def _points(self, X: ArrayLike) -> NDArray[Any]:
        check_is_fitted(self)
        return cast(NDArray[Any], validate_data(self, X, reset=False, dtype=np.float64))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels or values `[n]` of points `[n, d]`, by the model that serves now."""
        X = self._points(X)
        return self.bank_.predict(self._serving(), X)

    def _serving(self) -> str:
        name = self.trial_.serve
        return name if self.bank_.models[name].ready else "keep"

    def state_dict(self) -> dict[str, Any]:
        """Everything that was learned, in the middle of a trial too; `pickle` of the estimator holds the same."""
        check_is_fitted(self)
        return {
            "bank": self.bank_.state_dict(),
            "trial": self.trial_.state_dict(),
            "event": self.event_,
            "n_features_in": self.n_features_in_,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back into an estimator with the same parameters."""
        self._begin()
        self.bank_.load_state_dict(state["bank"])
        self.trial_.load_state_dict(state["trial"])
        self.event_, self.n_features_in_ = state["event"], state["n_features_in"]


_PARAMETERS = """
    A call of `partial_fit` is one batch: its points are predicted by the models alive, then learned, and `event_` says
    what followed ("none", "enter", "keep", "switch", "reenter"). `fit` is a stream of such batches.

    Args:
        estimator: "{plain}", "mlp", a {kind} of scikit-learn with `partial_fit`, or one of river; a template.
        batch_size: points of a batch in `fit`.
        archive: replaced models that are tried again in later trials.
        window: points that a model keeps for learning again.
        monitor: settings of `DriftMonitor` by name, such as `{{"delta": 0.05}}`; with small batches give it "min_n".
        random_state: of "{plain}" and "mlp".
"""


def _gives_proba(self: DriftSurfClassifier) -> bool:
    estimator = self.estimator
    return isinstance(estimator, str) or any(hasattr(estimator, name) for name in ("predict_proba", "learn_one"))


class DriftSurfClassifier(ClassifierMixin, _DriftSurf):
    __doc__ = f"""A classifier that keeps its model while it is good, and tries others when it gets worse.

    Classes may appear at any time; `classes=` only says them beforehand.
    {_PARAMETERS.format(plain="logistic", kind="classifier")}
    >>> from sklearn.linear_model import SGDClassifier
    >>> x = np.tile([[0.0], [1.0]], (50, 1))
    >>> surf = DriftSurfClassifier(SGDClassifier(random_state=0))
    >>> for t in range(8):
    ...     surf = surf.partial_fit(x, x[:, 0] if t < 4 else 1 - x[:, 0])
    >>> surf.predict(x[:2]).tolist(), surf.trial_.monitor.trials
    ([1.0, 0.0], 1)
    """

    _task = "classification"

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> DriftSurfClassifier:
        """Learn a batch `[n, d]` with labels `[n]`; an empty one changes nothing.

        Args:
            X: points, finite.
            y: labels, of any classes.
            classes: some that are known to come.

        Raises:
            ValueError: another number of features than before, values that are not finite.
        """
        self._partial_fit(X, y, classes)
        return self

    def _validated(self, X: ArrayLike, y: ArrayLike, *, reset: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        X, y = super()._validated(X, y, reset=reset)
        check_classification_targets(y)
        return X, y

    @property
    def classes_(self) -> NDArray[Any]:
        """The classes known so far, sorted."""
        if not hasattr(self, "bank_"):
            raise AttributeError("classes_")
        return np.asarray(sorted(self.bank_.labels))

    @available_if(_gives_proba)
    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Probabilities `[n, classes]` in the order of `classes_`."""
        X = self._points(X)
        order = np.argsort(np.asarray(self.bank_.labels), kind="stable")
        return self.bank_.proba(self._serving(), X)[:, order]


class DriftSurfRegressor(RegressorMixin, _DriftSurf):
    __doc__ = f"""A regressor that keeps its model while it is good, and tries others when it gets worse.

    Losses are absolute residuals over the mean absolute deviation of the targets: `delta` has no unit.
    {_PARAMETERS.format(plain="linear", kind="regressor")}
    >>> x = np.linspace(-1, 1, 100)[:, None]
    >>> surf = DriftSurfRegressor(random_state=0)
    >>> for t in range(30):
    ...     surf = surf.partial_fit(x, 3 * x[:, 0] if t < 15 else -3 * x[:, 0])
    >>> surf.trial_.monitor.switches, bool(abs(surf.predict([[1.0]])[0] + 3) < 0.3)
    (1, True)
    """

    _task = "regression"

    def __init__(
        self,
        estimator: Any = "linear",
        *,
        batch_size: int = 100,
        archive: int = 1,
        window: int = 1000,
        monitor: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(
            estimator,
            batch_size=batch_size,
            archive=archive,
            window=window,
            monitor=monitor,
            random_state=random_state,
        )

    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> DriftSurfRegressor:
        """Learn a batch `[n, d]` with values `[n]`; an empty one changes nothing.

        Raises:
            ValueError: another number of features than before, values that are not finite.
        """
        self._partial_fit(X, y, None)
        return self
