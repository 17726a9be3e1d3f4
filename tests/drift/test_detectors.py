# SPDX-License-Identifier: Apache-2.0
"""Detectors: what fires them, batches against points, saved states, how alarms are judged, refusals."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor

from edgeops.drift.detection import evaluate_detector, judge
from edgeops.drift.detection.detectors import _RIVER, DETECTORS, Detector, Every, Mddm, Rise, detector
from tests.messages import refused

SETTINGS: dict[str, dict[str, int]] = {"kswin": {"seed": 1}}
# EDDM fires here without a drift, and is told so: it compares distances of errors from the very first ones
EAGER = ("eddm", "every")


def made(name: str) -> Detector:
    if name in _RIVER:
        pytest.importorskip("river")
    return detector(name, **SETTINGS.get(name, {}))


def errors(rates: tuple[float, ...], n: int = 600, seed: int = 0) -> Tensor:
    """0 and 1, n points at each rate."""
    draws = torch.rand(len(rates), n, generator=torch.Generator().manual_seed(seed))
    return (draws < torch.tensor(rates)[:, None]).double().flatten()


@pytest.mark.parametrize("name", DETECTORS)
def test_a_rise_fires_and_rest_does_not(name: str) -> None:
    watch = made(name)
    quiet = [watch.update(part) for part in errors((0.2,)).split(100)]
    assert watch.state == ("drift" if quiet[-1] else watch.state)
    if name not in EAGER:
        assert not any(quiet)
    assert any(watch.update(part) for part in errors((0.9,), seed=1).split(100))


@pytest.mark.parametrize("name", DETECTORS)
def test_saved_in_the_middle(name: str) -> None:
    stream = errors((0.2, 0.5, 0.9), 150).split(25)
    ours, other = made(name), made(name)
    for part in stream:
        file = io.BytesIO()
        torch.save(other.state_dict(), file)
        file.seek(0)
        other = made(name)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert ours.update(part) == other.update(part)
        assert ours.state == other.state


@pytest.mark.parametrize("name", [name for name in DETECTORS if name != "rise"])
def test_a_batch_is_its_points(name: str) -> None:
    """Until the first alarm, after which a detector is reset; "rise" is about batches."""
    stream = errors((0.1, 0.8), 300)
    one, many = made(name), made(name)
    for part in stream.split(30):
        points = [one.update(value) for value in part.tolist()]
        assert many.update(part) == any(points)
        if any(points):
            break
    else:
        assert name in ("adwin", "page-hinkley")


@pytest.mark.parametrize("name", DETECTORS)
def test_reset_is_new(name: str) -> None:
    watch, new = made(name), made(name)
    watch.update(errors((0.0, 1.0), 120))
    watch.reset()
    if name != "every":
        for part in errors((0.1, 0.7), 200, seed=3).split(50):
            assert watch.update(part) == new.update(part)
    assert made(name).state == "stable"


@pytest.mark.parametrize("weights", ["arithmetic", "geometric", "euler"])
def test_mddm_against_its_definition(weights: str) -> None:
    """Point by point as in section 5, with lists."""
    stream = errors((0.1, 0.3, 0.9), 200, seed=5)
    growth = {
        "arithmetic": lambda i: 1 + 0.01 * i,
        "geometric": lambda i: 1.01**i,
        "euler": lambda i: math.exp(i / 100),
    }
    raw = [growth[weights](i) for i in range(100)]
    v = [value / sum(raw) for value in raw]
    limit = math.sqrt(0.5 * sum(value**2 for value in v) * math.log(1e6))
    window: list[float] = []
    best, fires = 0.0, None
    for i, error in enumerate(stream.tolist()):
        window = [*window, 1 - error][-100:]
        if len(window) == 100:
            mean = sum(a * b for a, b in zip(v, window, strict=True))
            best = max(best, mean)
            if best - mean > limit:
                fires = i
                break
    watch = Mddm(weights)
    assert watch.threshold == pytest.approx(limit)
    assert fires is not None
    assert not watch.update(stream[:fires])
    assert watch.update(stream[fires : fires + 1])


def test_an_empty_batch_changes_nothing() -> None:
    for watch in (Mddm(), Rise(), Every(2)):
        watch.update(torch.zeros(5))
        before = watch.state_dict()
        assert not watch.update(torch.zeros(0))
        assert str(before) == str(watch.state_dict())


def test_refusals() -> None:
    with refused(ValueError, r"Mddm", r"weights must be one of arithmetic, geometric, euler"):
        Mddm("linear")
    with refused(ValueError, r"Mddm", r"n must be at least 2"):
        Mddm(n=1)
    with refused(ValueError, r"Rise", r"delta must not be negative"):
        Rise(-1.0)
    with refused(ValueError, r"Every", r"n must be at least 1"):
        Every(0)
    with refused(ValueError, r"detector", r"name must be one of mddm-a"):
        detector("adwim")
    with refused(ValueError, r"Mddm.update", r"losses must be numbers", "NaN"):
        Mddm().update(math.nan)


def test_binary_detectors_take_errors_alone() -> None:
    pytest.importorskip("river")
    with refused(ValueError, r"DDM.update", r"this detector takes errors 0 and 1"):
        detector("ddm").update(torch.tensor([0.5]))
    assert not detector("adwin").update(torch.tensor([0.5]))


def test_alarms_are_matched_once() -> None:
    found = judge([10, 110, 120, 450], drifts=[100, 300, 400], within=40)
    assert (found.delays, found.found, found.false_alarms, found.drifts) == ((10,), 1, 3, 3)
    assert found.mean_delay == 10
    assert (found.precision, found.recall, found.f1) == (1 / 4, 1 / 3, 2 / 7)
    assert judge([399], drifts=[300, 400], within=1000).delays == (99,)
    assert judge([], drifts=[5], within=9).f1 == judge([], drifts=[], within=9).f1 == 0.0
    assert judge([], drifts=[5], within=9).mean_delay is None


def test_always_firing_is_its_own_reference() -> None:
    """Pitfall 8: with many drifts, firing all the time looks good; beside itself it is worth nothing."""
    stream = errors((0.1, 0.9) * 10, 200)
    drifts = list(range(200, 4000, 200))
    blind = evaluate_detector(Every(100), stream, drifts)
    assert blind.reference is not None
    assert blind.f1 > 0.6
    assert blind.f1 == pytest.approx(blind.reference.f1, abs=0.1)
    good = evaluate_detector(Mddm(), stream, drifts[::2], within=60)
    assert good.reference is not None
    assert good.f1 > good.reference.f1


def test_evaluation_refuses() -> None:
    with refused(ValueError, r"evaluate_detector", r"errors must have shape \[n\]"):
        evaluate_detector(Every(2), torch.zeros(2, 2), [1])
    with refused(ValueError, r"evaluate_detector", r"drifts must rise and lie in \(0, 5\)"):
        evaluate_detector(Every(2), torch.zeros(5), [5])
    with refused(ValueError, r"evaluate_detector", r"within must be at least 1"):
        evaluate_detector(Every(2), torch.zeros(5), [2], within=0)
