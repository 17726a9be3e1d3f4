# SPDX-License-Identifier: Apache-2.0
"""Labels that come late: scored with what was predicted then, trained on when they come, and not before."""

from __future__ import annotations

import pytest
import torch

from edgeops.drift import DriftMonitor
from tests.drift.modules import MODELS, batches, surf

DELAY = 5


def late(drift, stream):
    """Outputs and reports where the labels of a batch come `DELAY` batches after it."""
    outputs, reports, ids = [], [], []
    for step, (x, _) in enumerate(stream):
        out, number = drift.predict_later(x)
        outputs.append(out)
        ids.append(number)
        if step >= DELAY:
            reports.append(drift.observe(ids[step - DELAY], stream[step - DELAY][1]))
    return outputs, reports


@pytest.mark.parametrize("name", ["mlp", "dropout"])
def test_nothing_leaks(name):
    """Predictions of batch t do not depend on labels after t - 5; those of t + 1 do depend on those of t - 4."""
    stream = list(batches(24, (8,)))
    outputs, _ = late(surf(MODELS[name]), stream)
    changed = 12
    other = [(x, 1 - y if step == changed else y) for step, (x, y) in enumerate(stream)]
    others, _ = late(surf(MODELS[name]), other)
    same = [a.equal(b) for a, b in zip(outputs, others, strict=True)]
    assert same == [step <= changed + DELAY for step in range(24)]


def test_risk_is_that_of_what_was_predicted():
    drift = surf()
    stream = list(batches(30, (10,)))
    outputs, reports = late(drift, stream)
    for (_, y), out, report in zip(stream, outputs, reports, strict=False):
        assert report.risk == float((out.argmax(1) != y).double().mean())
    assert drift.monitor.switches >= 1
    assert float((outputs[-1].argmax(1) != stream[-1][1]).double().mean()) < 0.2


def test_the_monitor_sees_the_model_that_served_then():
    """Between prediction and labels the model learned from the same points: the score is still the one before."""
    drift = surf(monitor=DriftMonitor(delta=1e9))
    x, y = next(iter(batches(1)))
    _, number = drift.predict_later(x)
    first = drift.observe(x, y).risk
    for _ in range(30):
        drift.observe(x, y)
    assert drift.step_report().risk < first
    report = drift.observe(number, y)
    assert report.risk == first == report.scores["keep"]


def test_unknown_and_repeated_numbers():
    drift = surf(waiting=2)
    x, y = next(iter(batches(1)))
    with pytest.raises(ValueError, match="must be one of predict_later; got 1"):
        drift.observe(1, y)
    _, first = drift.predict_later(x)
    _, second = drift.predict_later(x)
    with pytest.raises(ValueError, match="at most 2 predictions may wait"):
        drift.predict_later(x)
    drift.observe(first, y)
    with pytest.raises(ValueError, match=r"labels once; got 1 again\. 1 wait"):
        drift.observe(first, y)
    drift.forget(second)
    with pytest.raises(ValueError, match=r"DriftSurf\.forget: a prediction is given its labels once"):
        drift.forget(second)


def test_labels_that_do_not_fit_leave_the_prediction_waiting():
    drift = surf()
    x, y = next(iter(batches(1)))
    _, number = drift.predict_later(x)
    with pytest.raises(ValueError, match="one row a point"):
        drift.observe(number, y[:3])
    with pytest.raises(ValueError, match="labels must lie in"):
        drift.observe(number, y + 5)
    assert drift.observe(number, y).points == 60


def test_a_changed_batch_is_scored_anew():
    drift, other = surf(), surf()
    x, y = next(iter(batches(1)))
    drift.predict(x)
    x.neg_()
    assert drift.observe(x, y).risk == other.observe(x.clone(), y).risk


def test_waiting_batches_are_counted():
    drift = surf()
    before = drift.nbytes
    x, _ = next(iter(batches(1)))
    _, number = drift.predict_later(x)
    assert drift.nbytes - before == 60 * (2 + 2) * 4
    drift.forget(number)
    assert drift.nbytes == before
    assert torch.get_default_dtype() == torch.float32
