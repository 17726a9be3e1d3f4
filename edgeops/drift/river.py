# SPDX-License-Identifier: Apache-2.0
"""DriftSurf as river models, around any river classifier or regressor. Drift spec, section 12.1."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from edgeops._common import describe, message, missing_extra
from edgeops.drift.estimators.instant import InstantBank, Rows
from edgeops.drift.monitor import DriftMonitor
from edgeops.drift.trial import Trial

try:
    from river import base, linear_model, preprocessing, tree
except ImportError as error:
    raise missing_extra("edgeops.drift.river", "river", "river") from error

if TYPE_CHECKING:
    import pandas as pd


class _Surf(base.Wrapper):
    _task: str

    def __init__(
        self,
        model: Any = None,
        batch_size: int = 100,
        archive: int = 1,
        monitor: Mapping[str, Any] | None = None,
    ) -> None:
        if batch_size < 2:
            rule, advice = "batch_size must be at least 2", "100 is the default: a test needs a few points."
            raise ValueError(message(type(self).__name__, rule, str(batch_size), advice))
        kind = base.Classifier if self._task == "classification" else base.Regressor
        if model is not None and not isinstance(model, kind):
            rule = f"model must be a {kind.__name__.lower()} of river"
            advice = "For scikit-learn estimators there is edgeops.drift.estimators."
            raise TypeError(message(type(self).__name__, rule, describe(model), advice))
        self.model = self._default() if model is None else model
        self.batch_size, self.archive, self.monitor = batch_size, archive, monitor
        self._bank = InstantBank(self.model, self._task)
        self._trial = Trial(cast(Any, self._bank), DriftMonitor(**(monitor or {})), archive=archive)
        self._x: list[Any] = []
        self._y: list[Any] = []
        self._event = "none"

    @staticmethod
    def _default() -> Any:
        raise NotImplementedError

    @property
    def _wrapped_model(self) -> Any:
        return self.model

    def _unit_test_skips(self) -> set[str]:
        """What the model's own mini-batches do not keep, this one's do not either."""
        return set(self.model._unit_test_skips())

    @property
    def _in_batches(self) -> bool:
        return isinstance(self.model, (base.MiniBatchClassifier, base.MiniBatchRegressor))

    @property
    def event(self) -> str:
        """What the last batch led to: "none", "enter", "keep", "switch" or "reenter"."""
        return self._event

    @property
    def trial(self) -> Trial:
        """The state machine and its counters."""
        return self._trial

    @property
    def _serving(self) -> Any:
        return self._bank.models[self._trial.serve]

    def learn_one(self, x: dict[Any, Any], y: Any, **kwargs: Any) -> None:
        """Learn a point at once; after `batch_size` of them the monitor judges the losses measured before."""
        self._bank.point(self._trial.monitor.candidates, x, y, kwargs)
        self._take((dict(x), kwargs), y)

    def _take(self, row: Any, y: Any) -> None:
        self._x.append(row)
        self._y.append(copy.copy(y))
        if len(self._x) == self.batch_size:
            self._event = self._trial.observe(cast(Any, Rows(self._x)), cast(Any, Rows(self._y)))
            self._bank.done()
            self._x, self._y = [], []

    def predict_one(self, x: dict[Any, Any], **kwargs: Any) -> Any:
        """What the model that serves says."""
        return self._serving.predict_one(x, **kwargs)

    def learn_many(self, X: pd.DataFrame, y: pd.Series, **kwargs: Any) -> None:
        """Learn a data frame: as mini-batches where the model takes these, cut where a batch ends, else by rows."""
        rows, targets = X.to_dict(orient="records"), y.to_list()
        whole = self._in_batches and not kwargs
        first = 0
        while first < len(rows):
            last = min(len(rows), first + self.batch_size - len(self._x)) if whole else first + 1
            part = slice(first, last)
            candidates = self._trial.monitor.candidates
            if whole:
                self._bank.many(candidates, X.iloc[part], y.iloc[part], targets[part])
            else:
                self._bank.point(candidates, cast(Any, rows[first]), targets[first], kwargs)
            for row, target in zip(rows[part], targets[part], strict=True):
                self._take((row, kwargs), target)
            first = last

    def predict_many(self, X: pd.DataFrame, **kwargs: Any) -> pd.Series:
        """What the model that serves says of each row."""
        if self._in_batches:
            return self._serving.predict_many(X, **kwargs)
        import pandas

        found = [self.predict_one(cast(Any, row), **kwargs) for row in X.to_dict(orient="records")]
        return pandas.Series(found, index=X.index)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters, in deep copies, in the middle of a batch and of a trial too.

        `pickle` of the model holds the same. Another version of river may not read either.
        """
        mine = {name: value for name, value in vars(self).items() if name in ("_bank", "_x", "_y", "_event")}
        return {**copy.deepcopy(mine), "trial": copy.deepcopy(self._trial.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back into a model with the same parameters."""
        state = copy.deepcopy(state)
        self._trial.load_state_dict(state.pop("trial"))
        vars(self).update(state)
        self._trial.bank = cast(Any, self._bank)


class DriftSurfClassifier(_Surf, base.MiniBatchClassifier):
    """A river classifier that keeps its model while it is good, and tries others when it gets worse.

    The model learns every point as it comes; batches are only what the monitor judges. A trial is between the model, a
    clone that begins anew, a copy, and models that were replaced before. It works on any river classifier, pipelines
    included: put scalers inside of it, so that each candidate has its own.

    Args:
        model: the template; `None`, a Hoeffding tree.
        batch_size: points that are judged together.
        archive: replaced models that are tried again in later trials.
        monitor: settings of `DriftMonitor` by name, such as `{"delta": 0.05}`.

    >>> from river import naive_bayes
    >>> surf = DriftSurfClassifier(naive_bayes.GaussianNB(), batch_size=50)
    >>> for i in range(600):
    ...     surf.learn_one({"x": i % 2 + 0.01 * (i % 7)}, (i % 2 == 0) == (i < 300))
    >>> surf.predict_one({"x": 0.0}), surf.trial.monitor.switches
    (False, 1)
    """

    _task = "classification"

    @staticmethod
    def _default() -> Any:
        return tree.HoeffdingTreeClassifier()

    def predict_proba_one(self, x: dict[Any, Any], **kwargs: Any) -> Any:
        """Probabilities by label."""
        return self._serving.predict_proba_one(x, **kwargs)

    def predict_proba_many(self, X: pd.DataFrame, **kwargs: Any) -> pd.DataFrame:
        """Probabilities `[n, labels]`."""
        if self._in_batches:
            return self._serving.predict_proba_many(X, **kwargs)
        import pandas

        rows = [self.predict_proba_one(cast(Any, row), **kwargs) for row in X.to_dict(orient="records")]
        return pandas.DataFrame(rows, index=X.index).fillna(0.0)

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        from river import naive_bayes

        yield {"model": tree.HoeffdingTreeClassifier(), "batch_size": 20}
        yield {"model": naive_bayes.GaussianNB()}
        yield {"model": preprocessing.StandardScaler() | linear_model.LogisticRegression()}


class DriftSurfRegressor(_Surf, base.MiniBatchRegressor):
    """A river regressor that keeps its model while it is good, and tries others when it gets worse.

    As `DriftSurfClassifier`; losses are absolute residuals over the mean absolute deviation of the targets so far, so
    that `delta` has no unit.

    Args:
        model: the template; `None`, a Hoeffding tree.
        batch_size: points that are judged together.
        archive: replaced models that are tried again in later trials.
        monitor: settings of `DriftMonitor` by name.

    >>> from river import linear_model
    >>> surf = DriftSurfRegressor(linear_model.LinearRegression())
    >>> for i in range(2000):
    ...     surf.learn_one({"x": i % 11 / 10}, i % 11 / (5 if i < 1000 else -5))
    >>> surf.trial.monitor.trials > 0, surf.predict_one({"x": 1.0}) < -1.5
    (True, True)
    """

    _task = "regression"

    @staticmethod
    def _default() -> Any:
        return tree.HoeffdingTreeRegressor()

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"model": tree.HoeffdingTreeRegressor(), "batch_size": 20}
        yield {"model": preprocessing.StandardScaler() | linear_model.LinearRegression()}
