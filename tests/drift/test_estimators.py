# SPDX-License-Identifier: Apache-2.0
"""Banks of scikit-learn, river and small torch models, and the scikit-learn estimators around them."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeops.drift import DriftStream, prequential
from edgeops.drift.detection.detectors import Every, Rise, detector
from edgeops.drift.detection.reset import BankLearner, NeverReset, ResetOn
from edgeops.drift.estimators import EstimatorBank
from edgeops.drift.estimators.network import Network
from edgeops.drift.monitor import DriftMonitor
from edgeops.drift.streams import synthetic
from edgeops.drift.trial import Trial
from tests.messages import refused

pytest.importorskip("sklearn")
pytest.importorskip("river")

from river import linear_model as river_linear
from river import preprocessing, tree
from sklearn.base import clone
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from edgeops.drift.estimators import DriftSurfClassifier, DriftSurfRegressor

BASES: dict[str, Any] = {
    "logistic": "logistic",
    "mlp": "mlp",
    "SGD": SGDClassifier(loss="log_loss", random_state=0),
    "NB": GaussianNB(),
    "tree": tree.HoeffdingTreeClassifier(),
    "LR": preprocessing.StandardScaler() | river_linear.LogisticRegression(),
}


def swaps(seed: int = 2) -> DriftStream:
    """SINE1 with four swaps of labels, 40 batches of 100."""
    return synthetic.sine1(seed=seed, n=4000, batches=40, width=10)


def surf(name: str, **settings: float) -> Trial:
    return Trial(EstimatorBank(BASES[name], seed=0), DriftMonitor(**cast(Any, settings)))


@pytest.mark.parametrize("name", list(BASES))
def test_recovers_on_any_base_learner(name: str) -> None:
    """Item 9 of section 14: one wrapper, and each model is back after the drifts, which it is not by itself."""
    stream = swaps()
    trial = surf(name)
    learner = BankLearner(trial.bank, trial)
    ours = prequential(learner, stream)
    bank = EstimatorBank(BASES[name], seed=0)
    never = prequential(BankLearner(bank, NeverReset(bank)), stream)
    assert trial.monitor.trials >= 3
    assert float(ours[5:].mean()) < (0.32 if name == "SGD" else 0.27)
    # a model with steps of constant size forgets by itself
    assert float(ours.mean()) < float(never.mean()) + (0.02 if name == "SGD" else -0.03)


@pytest.mark.parametrize("name", list(BASES))
def test_saved_and_restored_at_every_step(name: str) -> None:
    """By pickle and by state_dict in turn, in the middle of trials too; what follows has the same bits."""
    stream = swaps(3)
    patient = {"early_z": 99.0}  # no trial ends at once
    ours, other = surf(name, **patient), surf(name, **patient)
    inside = 0
    for t, (x, y) in enumerate(stream):
        if t >= 26:
            break
        if t % 2:
            other = pickle.loads(pickle.dumps(other))
        else:
            new = surf(name, **patient)
            cast(EstimatorBank, new.bank).load_state_dict(cast(EstimatorBank, other.bank).state_dict())
            new.load_state_dict(other.state_dict())
            other = new
        names = ours.monitor.candidates
        assert torch.equal(ours.bank.losses(names, x, y), other.bank.losses(names, x, y))
        assert ours.observe(x, y) == other.observe(x, y)
        inside += ours.monitor.in_trial
    assert inside > 4
    assert ours.monitor.switches or name == "SGD"


def test_copies_are_deep_and_fresh_models_new() -> None:
    x, y = next(iter(swaps()))
    for name, base in BASES.items():
        bank = EstimatorBank(base, seed=0)
        bank.train(["keep"], x, y)
        bank.open("warm", "keep")
        before = bank.losses(["warm"], x, y)
        for _ in range(5):
            bank.train(["keep"], x, -y)
        assert torch.equal(bank.losses(["warm"], x, y), before), name
        assert float(bank.losses(["keep"], x, -y).mean()) < 0.5, name
        bank.open("fresh", None)
        assert float(bank.losses(["fresh"], x, y).min()) == 1.0, name


def blobs(labels: list[Any], n: int = 120, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Points about (k, -k) for the k-th label, in turn."""
    rng = np.random.default_rng(seed)
    which = np.arange(n) % len(labels)
    x = 4.0 * np.stack([which, which**2 % 5], 1) + rng.normal(0, 0.3, (n, 2))
    return x, np.asarray(labels)[which]


@pytest.mark.parametrize("name", ["logistic", "mlp", "SGD", "NB", "tree"])
def test_classes_may_appear_at_any_time(name: str) -> None:
    """The rule that all must be known at the first call is scikit-learn's, not this one's."""
    model = DriftSurfClassifier(BASES[name], random_state=0)
    one, _ = blobs(["m"])
    model.partial_fit(one[:60], ["m"] * 60)
    assert model.predict(one[:2]).tolist() == ["m", "m"]
    assert model.classes_.tolist() == ["m"]
    for _ in range(6):
        model.partial_fit(*blobs(["m", "z"]))
    assert model.classes_.tolist() == ["m", "z"]
    for k in range(12):
        model.partial_fit(*blobs(["m", "z", "a"], seed=k))
    x, y = blobs(["m", "z", "a"], seed=99)
    assert model.classes_.tolist() == ["a", "m", "z"]
    assert model.score(x, y) > 0.9
    proba = model.predict_proba(x)
    assert proba.shape == (120, 3)
    assert np.allclose(proba.sum(1), 1)
    assert (model.classes_[proba.argmax(1)] == model.predict(x)).mean() > 0.9


def test_classes_said_beforehand_and_a_batch_of_one_class() -> None:
    x, y = blobs([0, 1, 2])
    model = DriftSurfClassifier(SGDClassifier(loss="log_loss", random_state=0))
    model.partial_fit(x[y == 2], y[y == 2], classes=[0, 1, 2])
    assert model.predict_proba(x).shape == (120, 3)
    assert model.predict(x[:3]).tolist() == [2, 2, 2]
    model.partial_fit(x, y, classes=[3])
    assert model.classes_.tolist() == [0, 1, 2, 3]


def test_an_empty_batch_changes_nothing() -> None:
    x, y = blobs([0, 1])
    model = DriftSurfClassifier("logistic", random_state=0).partial_fit(x, y)
    before = pickle.dumps(model.state_dict()["trial"]), model.predict_proba(x)
    model.partial_fit(x[:0], y[:0])
    assert pickle.dumps(model.state_dict()["trial"]) == before[0]
    assert np.array_equal(model.predict_proba(x), before[1])
    assert surf("SGD").observe(torch.zeros(0, 2), torch.zeros(0)) == "none"
    bank = EstimatorBank("logistic")
    bank.train(["keep"], torch.zeros(0, 2), torch.zeros(0))
    assert bank.losses(["keep"], torch.zeros(0, 2), torch.zeros(0)).shape == (1, 0)


def test_estimators_save_in_the_middle_of_a_trial() -> None:
    stream = swaps(5)
    ours = DriftSurfClassifier("mlp", random_state=0)
    other = clone(ours)
    for t, (x, y) in enumerate(stream):
        if t == 20:
            break
        ours.partial_fit(x.numpy(), y.numpy())
        other.partial_fit(x.numpy(), y.numpy())
        state = other.state_dict()
        other = clone(other)
        other.load_state_dict(pickle.loads(pickle.dumps(state)))
        assert other.event_ == ours.event_
        assert np.array_equal(ours.predict_proba(x.numpy()), other.predict_proba(x.numpy()))
    assert ours.trial_.monitor.switches


def slopes(t: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    """y = ±3 x0, the sign changed after 15 batches."""
    generator = torch.Generator().manual_seed(seed + t)
    x = torch.rand(100, 2, generator=generator).double() * 2 - 1
    noise = 0.1 * torch.randn(100, generator=generator)
    return x, scale * ((3 if t < 15 else -3) * x[:, 0] + noise)


@pytest.mark.parametrize(
    "base",
    ["linear", "mlp", SGDRegressor(random_state=0), preprocessing.StandardScaler() | river_linear.LinearRegression()],
)
def test_regression_has_no_unit(base: Any) -> None:
    """The same decisions, whatever the target is measured in, by the models that scale it."""
    events: dict[float, list[str]] = {}
    for scale in (1.0, 1024.0) if isinstance(base, str) else (1.0,):
        model = DriftSurfRegressor(base, random_state=0)
        events[scale] = []
        for t in range(30):
            x, y = slopes(t, scale, 0)
            model.partial_fit(x.numpy(), y.numpy())
            events[scale].append(model.event_)
        x, y = slopes(99, scale, 0)
        assert model.score(x.numpy(), y.numpy()) > 0.8
        assert {"enter", "reenter"} & set(events[scale][15:17])
    if len(events) == 2:
        assert events[1.0] == events[1024.0]


def test_a_regressor_that_diverges_is_replaced() -> None:
    """scikit-learn refuses to train on after an overflow; here the model is out, and a new one serves."""
    model = DriftSurfRegressor(SGDRegressor(random_state=0, learning_rate="constant", eta0=1.0))
    small = np.linspace(-1, 1, 100)[:, None] / 10
    for _ in range(3):
        model.partial_fit(small, small[:, 0])
    model.partial_fit(small * 1e150, small[:, 0])
    for _ in range(12):
        model.partial_fit(small, small[:, 0])
    assert model.trial_.monitor.switches
    assert model.score(small, small[:, 0]) > 0.5


def test_refusals() -> None:
    x, y = blobs([0, 1])
    for base, rule in ((SVC(), "a base learner must have partial_fit"), (object(), "a base learner must have")):
        with refused(TypeError, "EstimatorBank", rule):
            EstimatorBank(base)
    with refused(TypeError, "EstimatorBank", "needs a classifier", "SGDRegressor"):
        DriftSurfClassifier(SGDRegressor()).fit(x, y)
    with refused(TypeError, "EstimatorBank", "needs an object"):
        EstimatorBank(SGDClassifier)
    with refused(ValueError, "EstimatorBank", "a base learner's name must be one of logistic, linear, mlp"):
        EstimatorBank("forest")
    with refused(ValueError, "EstimatorBank", "task must be"):
        EstimatorBank("mlp", task="ranking")
    with refused(ValueError, "EstimatorBank", "window must be at least 1"):
        EstimatorBank("mlp", window=0)
    with refused(ValueError, "Network", "task must be"):
        Network("ranking")
    with refused(ValueError, "EstimatorBank.predict", "a model must have learned"):
        EstimatorBank("mlp").predict("keep", x)
    with refused(ValueError, "DriftSurfClassifier", "batch_size must be an integer"):
        DriftSurfClassifier(batch_size=0).fit(x, y)
    model = DriftSurfClassifier("logistic", random_state=0).partial_fit(x, y)
    with pytest.raises(ValueError, match="X has 1 features, but DriftSurfClassifier is expecting 2"):
        model.partial_fit(x[:, :1], y)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.partial_fit(np.full_like(x, np.nan), y)
    with pytest.raises(ValueError, match="Unknown label type"):
        model.partial_fit(x, x[:, 0])
    binary = DriftSurfClassifier(river_linear.LogisticRegression())
    with refused(ValueError, "LogisticRegression", "tells two classes apart", "3 classes"):
        binary.fit(*blobs([0, 1, 2]))


def test_detectors_around_any_bank() -> None:
    """Item "stand-alone": one that fires on time helps where one that always fires does not."""
    stream = swaps()
    means = {}
    for name, watch in {"mddm": detector("mddm-g"), "ddm": detector("ddm"), "always": Every(100)}.items():
        policy = ResetOn(EstimatorBank(GaussianNB()), watch)
        means[name] = float(prequential(BankLearner(policy.bank, policy), stream).mean())
        assert policy.resets == (39 if name == "always" else policy.resets)
    assert means["mddm"] < means["always"]
    assert means["ddm"] < 0.35


def test_standard_watches_a_frozen_copy() -> None:
    stream = swaps()
    policy = ResetOn(EstimatorBank("logistic", seed=0), Rise(0.1), frozen=True)
    learner = BankLearner(policy.bank, policy)
    errors = prequential(learner, stream)
    assert policy.resets >= 4
    assert "switch" in learner.events[8:11]
    assert float(errors[11:16].mean()) < 0.3
    state = policy.state_dict()
    other = ResetOn(EstimatorBank("logistic", seed=0), Rise(0.1), frozen=True)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert policy.observe(torch.zeros(0, 2), torch.zeros(0)) == "none"
    with refused(TypeError, "BankLearner", "the bank must have predict"):
        BankLearner(object(), policy)


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, edgeops.drift, edgeops.drift.estimators, edgeops.drift.detection.detectors, edgeops.drift.detection.reset\n"
    code += "assert not {'sklearn', 'river', 'pandas', 'scipy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river", None)
    with refused(ImportError, r"detector\('ddm'\)", "needs the package 'river'"):
        detector("ddm")
    monkeypatch.delitem(sys.modules, "edgeops.drift.estimators.scikit")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with refused(ImportError, "DriftSurfClassifier and DriftSurfRegressor", "needs the package 'scikit-learn'"):
        importlib.import_module("edgeops.drift.estimators.scikit")


@parametrize_with_checks(
    [
        DriftSurfClassifier(random_state=0),
        DriftSurfClassifier(SGDClassifier(random_state=0)),
        DriftSurfRegressor(random_state=0),
        DriftSurfRegressor(SGDRegressor(random_state=0)),
    ]
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    """All of them; none is expected to fail."""
    check(estimator)
