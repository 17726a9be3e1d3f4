# SPDX-License-Identifier: Apache-2.0
"""DriftSurf saved and restored: at every step, in a trial, with labels on their way, in another process."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeops.drift import DriftMonitor, ReplayBuffer
from tests.drift.modules import MODELS, batches, run, surf

DRIFTS = (10, 22, 30, 45, 53)


def saved(drift):
    file = io.BytesIO()
    torch.save(drift.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def made(name, **settings):
    """Trials that no lead ends before their time, so that many steps are in one."""
    settings = {"monitor": DriftMonitor(early_z=1e9), **settings}
    return surf(MODELS[name], buffer=ReplayBuffer(max_points=150, reservoir=0.3, seed=1), **settings)


@pytest.mark.parametrize(
    "name", ["norm", "dropout", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mlp", "cnn"))]
)
def test_restored_at_every_step_of_sixty_batches(name):
    """One learner runs through; another is saved and restored, into a new object, before every batch."""
    through, restored = made(name), made(name)
    trials = set()
    for x, y in batches(60, DRIFTS, size=40):
        state = saved(restored)
        restored = made(name, seed=77)
        restored.load_state_dict(state)
        assert through.predict(x).equal(restored.predict(x))
        first, second = through.observe(x, y), restored.observe(x, y)
        assert first == second
        trials.add((first.in_trial, first.served))
    assert through.monitor.switches >= 3
    assert len(trials) >= 3


@pytest.mark.parametrize("name", ["norm", pytest.param("dropout", marks=pytest.mark.slow)])
def test_restored_once_it_goes_on_as_before(name):
    """What is saved is a copy: the learner goes on, and the restored one comes to the same from where it was."""
    stream = list(batches(60, DRIFTS, size=40))
    drift = made(name)
    states, outputs = [], []
    for x, y in stream:
        states.append((drift.state_dict(), drift.step_report().in_trial))
        outputs.append(drift.predict(x))
        drift.observe(x, y)
    steps = [*[step for step, (_, in_trial) in enumerate(states) if in_trial][::3], 0, 59]
    assert len(steps) >= 4
    for step in steps:
        again = made(name)
        again.load_state_dict(states[step][0])
        rest, _ = run(again, stream[step : step + 12])
        assert all(a.equal(b) for a, b in zip(rest, outputs[step:]))


def test_restored_into_a_learner_that_was_in_a_trial_itself():
    stream = list(batches(20, (10,), size=40))
    drift, other = made("norm"), made("norm", seed=5)
    state = saved(drift)
    run(other, stream[:12])
    other.load_state_dict(state)
    first, second = run(drift, stream), run(other, stream)
    assert first[1] == second[1]
    assert all(a.equal(b) for a, b in zip(first[0], second[0], strict=True))


def test_as_a_part_of_another_module():
    whole = nn.ModuleDict({"drift": made("mlp"), "other": nn.Linear(2, 2)})
    run(whole["drift"], batches(5))
    again = nn.ModuleDict({"drift": made("mlp", seed=3), "other": nn.Linear(2, 2)})
    again.load_state_dict(whole.state_dict())
    x = torch.randn(4, 2)
    assert again["drift"](x).equal(whole["drift"](x))


def test_threads_do_not_matter():
    threads, outputs = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            outputs.append(run(made("mlp"), batches(20, (10,), size=40)))
    finally:
        torch.set_num_threads(threads)
    assert outputs[0][1] == outputs[1][1]
    assert all(a.equal(b) for a, b in zip(outputs[0][0], outputs[1][0], strict=True))


def test_reservations_for_late_labels_are_restored():
    drift, other = made("mlp"), made("mlp", seed=4)
    stream = list(batches(12, (6,), size=40))
    ids = [drift.predict_later(x)[1] for x, _ in stream[:4]]
    other.load_state_dict(saved(drift))
    for number, (_, y) in zip(ids, stream[:4], strict=True):
        assert drift.observe(number, y) == other.observe(number, y)
    assert drift.predict_later(stream[4][0])[1] == other.predict_later(stream[4][0])[1] == 5


PROGRAM = """
import sys, torch
from tests.drift.modules import batches, run
from tests.drift.test_module_state import made
torch.set_num_threads(int(sys.argv[3]))  # PyTorch's batch norm adds up by threads
drift = made("norm")
drift.load_state_dict(torch.load(sys.argv[1], weights_only=True))
torch.save(run(drift, list(batches(20, (8,), size=40))[10:])[0], sys.argv[2])
"""


@pytest.mark.slow
def test_another_process_goes_on_to_the_bit(tmp_path):
    drift = made("norm")
    stream = list(batches(20, (8,), size=40))
    run(drift, stream[:10])
    assert drift.monitor.in_trial
    torch.save(drift.state_dict(), tmp_path / "state")
    outputs, _ = run(drift, stream[10:])
    root = Path(__file__).parents[2]
    told = [tmp_path / "state", tmp_path / "outputs", str(torch.get_num_threads())]
    subprocess.run([sys.executable, "-c", PROGRAM, *told], check=True, cwd=root)
    other = torch.load(tmp_path / "outputs", weights_only=True)
    assert all(a.equal(b) for a, b in zip(outputs, other, strict=True))
