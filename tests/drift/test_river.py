# SPDX-License-Identifier: Apache-2.0
"""DriftSurf as river models: river's own checks, pipelines, data frames, states, what a trial does point by point."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from tests.messages import refused

pytest.importorskip("river")

from river import checks, compose, datasets, evaluate, linear_model, metrics, naive_bayes, preprocessing, tree
from sklearn.linear_model import SGDClassifier

from edgeops.drift.estimators.instant import InstantBank, Rows
from edgeops.drift.river import DriftSurfClassifier, DriftSurfRegressor
from edgeops.drift.streams import synthetic

MODELS: list[Any] = [
    DriftSurfClassifier(),
    DriftSurfClassifier(naive_bayes.GaussianNB(), batch_size=20),
    DriftSurfClassifier(preprocessing.StandardScaler() | linear_model.LogisticRegression()),
    DriftSurfRegressor(batch_size=20),
    DriftSurfRegressor(preprocessing.StandardScaler() | linear_model.LinearRegression()),
]


def points(n: int = 2000, seed: int = 2) -> Iterator[tuple[dict[str, float], bool]]:
    """SINE1 with its labels swapped every fifth of the stream."""
    stream = synthetic.sine1(seed=seed, n=n, batches=20, width=10)
    for (a, b), label in zip(stream.x.tolist(), stream.y.tolist(), strict=True):
        yield {"a": a, "b": b}, label > 0


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_river_checks(model: Any) -> None:
    """Item 14 of section 14. What is skipped is what river skips for the model inside."""
    assert model._unit_test_skips() <= {"check_learn_many_matches_learn_one"}
    seen = set()
    for check in checks.yield_checks(model):
        # a check comes once for each data set; the longest are for memory and run on one
        if check.__name__ in model._unit_test_skips() or (check.__name__, "memory") in seen:
            continue
        if check.__name__ == "check_bounded_memory_growth":
            seen.add((check.__name__, "memory"))
        check(model.clone())


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_river_check_estimator(model: Any) -> None:
    checks.check_estimator(model)


def test_in_a_pipeline() -> None:
    """Item 14: `StandardScaler | DriftSurf(...)` runs in `progressive_val_score`, and is worth it."""
    surf = DriftSurfClassifier(linear_model.LogisticRegression())
    alone = linear_model.LogisticRegression()
    scores = [
        evaluate.progressive_val_score(points(4000), preprocessing.StandardScaler() | model, metrics.Accuracy()).get()
        for model in (surf, alone)
    ]
    assert scores[0] > scores[1] + 0.03
    assert surf.trial.monitor.switches


@pytest.mark.parametrize("base", [None, naive_bayes.GaussianNB()], ids=str)
def test_it_is_the_model_itself_while_nothing_changes(base: Any) -> None:
    """Points are learned as they come: without a trial every prediction is the plain model's."""
    surf, alone = DriftSurfClassifier(base, monitor={"delta": 9.0}), (base or tree.HoeffdingTreeClassifier()).clone()
    for x, y in itertools.islice(points(), 390):
        assert surf.predict_proba_one(x) == alone.predict_proba_one(x)
        surf.learn_one(x, y)
        alone.learn_one(x, y)


def test_no_point_is_learned_twice() -> None:
    """Whatever trials do: a model has seen the points since it was made, each once, in order."""

    class Diary:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def clone(self) -> Diary:
            return Diary()

        def predict_one(self, x: dict[str, int]) -> bool:
            return x["i"] in self.seen

        def learn_one(self, x: dict[str, int], y: bool) -> None:
            self.seen.append(x["i"])

    bank = InstantBank(Diary(), "classification")
    rows = Rows([({"i": i}, {}) for i in range(10)])
    targets = Rows([False] * 10)
    for (x, extra), y in zip(rows, targets, strict=True):
        bank.point(["keep"], x, y, extra)
    assert bank.losses(["keep"], rows, targets).sum() == 0
    bank.open("fresh", None)
    bank.open("warm", "keep")
    names = ["keep", "fresh", "warm"]
    bank.train(names, rows[:5], targets[:5])
    assert bank.losses(names, rows[5:], targets[5:]).shape == (3, 5)
    bank.rename("fresh", "keep")
    bank.drop("warm")
    bank.train(["keep"], rows[5:], targets[5:])
    assert bank.models["keep"].seen == list(range(10))
    bank.done()
    bank.point(["keep"], {"i": 10}, False, {})
    assert bank.models["keep"].seen == list(range(11))


@pytest.mark.parametrize("way", ["pickle", "state_dict"])
def test_saved_in_the_middle_of_batches_and_trials(way: str) -> None:
    def new() -> DriftSurfClassifier:
        return DriftSurfClassifier(naive_bayes.GaussianNB(), batch_size=50, monitor={"early_z": 99.0})

    ours, other, inside = new(), new(), 0
    for i, (x, y) in enumerate(points(1200)):
        if i % 23 == 7:
            if way == "pickle":
                other = pickle.loads(pickle.dumps(other))
            else:
                state = pickle.loads(pickle.dumps(other.state_dict()))
                other = new()
                other.load_state_dict(state)
        assert ours.predict_proba_one(x) == other.predict_proba_one(x)
        ours.learn_one(x, y)
        other.learn_one(x, y)
        inside += ours.trial.monitor.in_trial
    assert inside > 100
    assert ours.trial.state_dict() == other.trial.state_dict() or ours.event == other.event


BASES = {
    "NB": naive_bayes.GaussianNB(),
    "tree": tree.HoeffdingTreeClassifier(),
    "LR": linear_model.LogisticRegression(),
}


@pytest.mark.parametrize("name", list(BASES))
def test_data_frames(name: str) -> None:
    """Cut where a batch ends, so that pieces of any size lead to the same trials."""
    pandas = pytest.importorskip("pandas")
    surf = DriftSurfClassifier(BASES[name], batch_size=50)
    rows = list(points(1000))
    X, y = pandas.DataFrame([x for x, _ in rows]), pandas.Series([y for _, y in rows])
    hits = 0
    for first, last in itertools.pairwise([0, 30, 31, 180, 181, 400, 777, 1000]):
        hits += int((surf.predict_many(X[first:last]) == y[first:last]).sum()) if first else 0
        surf.learn_many(X[first:last], y[first:last])
        assert surf.predict_many(X[:5]).index.tolist() == [0, 1, 2, 3, 4]
    assert len(surf._x) == 0
    # river's LR takes one step for a whole batch and learns little here
    assert surf.trial.monitor.trials or name == "LR"
    assert surf.predict_proba_many(X[:7]).shape == (7, 2)
    assert hits > 350


def test_real_stream_of_several_classes() -> None:
    surf = DriftSurfClassifier(preprocessing.StandardScaler() | naive_bayes.GaussianNB())
    score = evaluate.progressive_val_score(datasets.ImageSegments().take(1500), surf, metrics.Accuracy())
    assert score.get() > 0.7


def test_keywords_reach_the_model() -> None:
    surf = DriftSurfClassifier(linear_model.LogisticRegression())
    surf.learn_one({"a": 1.0}, True, w=0.0)
    assert surf.predict_proba_one({"a": 1.0})[True] == 0.5


def test_refusals() -> None:
    with refused(ValueError, "DriftSurfClassifier", "batch_size must be at least 2"):
        DriftSurfClassifier(batch_size=1)
    with refused(TypeError, "DriftSurfRegressor", "model must be a regressor of river", "LogisticRegression.*"):
        DriftSurfRegressor(linear_model.LogisticRegression())
    with refused(TypeError, "DriftSurfClassifier", "model must be a classifier of river", "SGDClassifier.*"):
        DriftSurfClassifier(SGDClassifier())
    assert isinstance(compose.Pipeline(DriftSurfClassifier()).clone(), compose.Pipeline)
    bank = InstantBank(tree.HoeffdingTreeClassifier(), "classification")
    assert bank.losses(["keep"], Rows([]), Rows([])).shape == (1, 0)
