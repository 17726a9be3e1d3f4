# SPDX-License-Identifier: Apache-2.0
"""DriftSurf around modules: it learns, survives drifts, and says so; what it must never do."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from edgeops.drift import DriftMonitor, DriftSurf, ReplayBuffer
from tests.drift.modules import CROSS, MODELS, adam, batches, mlp, run, surf


def error_of(outputs, stream):
    wrong = [(out.argmax(1) != y).double().mean() for out, (_, y) in zip(outputs, stream, strict=True)]
    return torch.stack(wrong)


@pytest.mark.parametrize("name", MODELS)
def test_models_learn_and_are_replaced_at_a_drift(name):
    drift = surf(MODELS[name])
    stream = list(batches(24, drifts=(12,)))
    outputs, events = run(drift, stream)
    errors = error_of(outputs, stream)
    assert drift.monitor.switches >= 1
    assert errors[8:12].mean() < 0.1
    assert errors[12] > 0.8
    assert errors[18:].mean() < 0.15
    assert "switch" in [event for event, _ in events]
    assert ("one by one" in drift.execution) == (name == "dropout")


def test_without_a_drift_it_is_the_plain_loop():
    """Outside trials DriftSurf takes the very steps that a loop over the same points would."""
    drift = surf(mlp, monitor=DriftMonitor(delta=math.inf), rate=1.0, minibatch=60)
    plain, _ = mlp(), None
    plain.load_state_dict(drift.module.state_dict())
    optimizer = adam(plain.parameters())
    for x, y in batches(10):
        torch.testing.assert_close(drift.predict(x), plain(x))
        drift.observe(x, y)
        optimizer.zero_grad()
        CROSS(plain(x), y).mean().backward()
        optimizer.step()
    torch.testing.assert_close(drift.module.state_dict(), plain.state_dict())


def test_a_given_module_is_trained_in_place_and_made_anew_by_its_layers():
    model = mlp()
    drift = surf(model)
    assert drift.module is model
    run(drift, batches(24, drifts=(12,)))
    assert drift.monitor.switches >= 1
    assert drift.module is not model


def test_global_random_state_is_left_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    drift = surf(MODELS["dropout"])
    run(drift, batches(16, drifts=(8,)))
    assert torch.get_rng_state().equal(state)
    assert not drift.module.training


def test_the_seed_decides_everything():
    def outputs(seed):
        return run(surf(MODELS["dropout"], seed=seed), batches(16, drifts=(8,)))[0]

    torch.manual_seed(1)
    first = outputs(3)
    torch.manual_seed(2)
    assert all(a.equal(b) for a, b in zip(first, outputs(3), strict=True))
    assert not first[-1].equal(outputs(4)[-1])


def test_it_is_moved_and_cast_as_any_module():
    drift = surf(monitor=DriftMonitor(early_z=1e9))
    stream = list(batches(14, (8,)))
    run(drift, stream[:10])
    assert drift.monitor.in_trial
    assert drift.double() is drift
    outputs, _ = run(drift, [(x.double(), y) for x, y in stream[10:]])
    assert outputs[-1].dtype == torch.float64
    assert error_of(outputs[-1:], stream[-1:]) < 0.3


def test_report_is_small_and_plain():
    drift = surf()
    assert drift.step_report().step == 0
    _, events = run(drift, batches(16, drifts=(8,)))
    report = drift.step_report()
    assert len(json.dumps(report.as_dict())) < 600
    assert report.step == 16
    assert report.points == 60
    assert 0 <= report.risk <= 1
    assert report.standard_error < 0.1
    assert report.reference is not None
    assert any(event in ("enter", "switch") for event, _ in events)


def test_report_names_the_test_that_fired():
    drift = surf()
    tests = []
    for x, y in batches(14, drifts=(8,)):
        tests.append(drift.observe(x, y).test)
    assert tests[8] == "entry"
    assert set(tests[:8]) == {None}
    drift = surf(monitor=DriftMonitor(delta=1e9, challenge=3))
    tests = [drift.observe(x, y).test for x, y in batches(4)]
    assert tests[:3] == [None, None, "challenge"]


def test_regression_compares_residuals_in_units_of_their_median():
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    for unit in (1e-3, 1.0, 1e3):
        drift = DriftSurf(model, adam, nn.HuberLoss(reduction="none"), seed=1, minibatch=16)
        generator = torch.Generator().manual_seed(0)
        events = []
        for step in range(30 if unit == 1.0 else 8):
            x = torch.randn(100, 1, generator=generator)
            y = (x[:, 0] if step < 20 else -x[:, 0]) + 0.1 * torch.randn(100, generator=generator)
            events.append(drift.observe(x, unit * y).event)
        model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
        if unit == 1.0:
            assert drift.monitor.switches >= 1
            assert {"enter", "switch"} & set(events[20:22])
        else:
            assert math.isfinite(drift.step_report().risk)


@pytest.mark.parametrize("shape", ["[n]", "[n, 1]"])
def test_one_logit_with_labels_of_either_kind(shape):
    layers = [nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1)]
    factory = lambda: nn.Sequential(*layers, *([nn.Flatten(0)] if shape == "[n]" else []))  # noqa: E731
    drift = DriftSurf(factory(), adam, nn.BCEWithLogitsLoss(reduction="none"))
    for x, y in batches(20):
        report = drift.observe(x, y if shape == "[n]" else y.float())
    assert report.risk < 0.2


def test_empty_batch_changes_nothing():
    drift = surf()
    run(drift, batches(3))
    before = drift.step_report()
    assert drift.observe(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)) is before


def test_batches_below_min_n_are_judged_together():
    drift = surf(monitor=DriftMonitor(min_n=60))
    events = [drift.observe(x, y).event for x, y in batches(9, size=20)]
    assert events == ["pending", "pending", "none"] * 3


def test_single_points_and_single_classes():
    drift = surf(MODELS["norm"])
    for x, _ in batches(5, size=1):
        report = drift.observe(x, torch.zeros(1, dtype=torch.int64))
    assert report.step == 5


@pytest.mark.parametrize(("delta", "trials"), [(0.0, True), (math.inf, False)])
def test_extreme_thresholds(delta, trials):
    drift = surf(monitor=DriftMonitor(delta=delta, r=1, longest=2))
    run(drift, batches(12, drifts=(6,)))
    assert (drift.monitor.trials > 3) == trials


def test_without_new_models_any_module_will_do():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, 2))

        def forward(self, x):
            return x @ self.w

    with pytest.raises(ValueError, match=r"Bare.*Pass a function"):
        surf(Bare())
    drift = surf(Bare(), fresh=False)
    run(drift, batches(16, drifts=(8,)))
    assert drift.monitor.trials >= 1
    assert surf(Bare).module.w.shape == (2, 2)


def test_unlabeled_batches_go_to_the_hook():
    seen = []
    drift = surf(on_unlabeled=lambda learner, x: seen.append((learner, len(x))) or "adapted")
    assert drift.unlabeled(torch.zeros(3, 2)) == "adapted"
    assert seen == [(drift, 3)]
    assert surf().unlabeled(torch.zeros(3, 2)) is None
    assert drift.step_report().step == 0


def test_errors_say_what_to_do_and_change_nothing():
    drift = surf()
    run(drift, batches(3))
    before = drift.get_extra_state()
    x, y = next(iter(batches(1)))
    with pytest.raises(ValueError, match=r"rows of shape \(2,\).*new DriftSurf"):
        drift.observe(torch.zeros(4, 3), y[:4])
    with pytest.raises(ValueError, match="rows of shape"):
        drift.predict(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="one row a point"):
        drift.observe(x, y[:-1])
    with pytest.raises(ValueError, match="x must be finite"):
        drift.observe(x * math.nan, y)
    with pytest.raises(ValueError, match="y must be finite"):
        drift.observe(x, y * math.inf)
    with pytest.raises(TypeError, match="y must be a tensor"):
        drift.observe(x, y.tolist())
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\).*room for classes"):
        drift.observe(x, y + 1)
    after = drift.get_extra_state()
    assert json.dumps(before["trial"], default=str) == json.dumps(after["trial"], default=str)
    assert before["bank"]["buffer"]["count"] == after["bank"]["buffer"]["count"]


@pytest.mark.parametrize(
    ("loss", "match"),
    [(nn.CrossEntropyLoss(), "reduction='none'"), (lambda outputs, y: outputs.sum(), "one loss for each")],
)
def test_a_loss_that_is_not_per_sample_is_refused_at_once(loss, match):
    drift = DriftSurf(mlp, adam, loss)
    with pytest.raises(ValueError, match=match):
        drift.observe(*next(iter(batches(1))))
    assert drift.step_report().step == 0


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="rate and minibatch"):
        surf(rate=0.5)
    with pytest.raises(ValueError, match="score must be"):
        surf(score="accuracy")
    with pytest.raises(TypeError, match=r"must return an nn\.Module"):
        surf(lambda: 3)


@pytest.mark.parametrize(("archive", "models"), [(0, 3), (1, 6)])
@pytest.mark.parametrize("batched", [True, False])
def test_memory_is_what_is_stated(archive, models, batched):
    """Item 11: (1 + candidates beside it) models with their optimizers, and the buffer's cap, at every moment."""
    cap = 20_000
    drift = surf(monitor=DriftMonitor(), archive=archive, buffer=ReplayBuffer(max_bytes=cap), batched=batched)
    bank, seen = drift._bank, []

    def watched(method):
        def call(*given):
            result = method(*given)
            held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(drift)}
            seen.append((sum(held.values()), drift.nbytes))
            return result

        return call

    for name in ("open", "losses", "train", "rename", "drop"):
        setattr(bank, name, watched(getattr(bank, name)))
    for x, y in batches(30, drifts=(10, 20)):
        drift.observe(x, y)
        # what the storages take is what is said: a stack holds nothing twice and does not outlive its trial
        assert seen[-1][0] == seen[-1][1]
    model = max(c.nbytes for c in bank.candidates.values())
    assert drift.monitor.switches >= 2
    assert cap - 24 < bank.buffer.nbytes <= cap
    assert max(storages for storages, _ in seen) <= models * model + cap
    assert drift.nbytes == (1 + archive) * model + bank.buffer.nbytes


def tensors(drift):
    for c in drift._bank.candidates.values():
        yield from c.module.parameters()
        yield from c.module.buffers()
        for state in c.optimizer.state.values():
            yield from state.values()
    yield from (t for t in (drift._bank.buffer._x, drift._bank.buffer._y) if t is not None)
