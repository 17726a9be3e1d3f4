# SPDX-License-Identifier: Apache-2.0
"""The offload items: figures under the names of the targets, what the published table is made of; nothing is timed."""

from __future__ import annotations

import pytest

from bench import targets
from bench.offload import published, simulate
from edgeops.offload import Profile
from edgeops.offload import simulate as simulated


def names(item: str) -> set[str]:
    return {target.figure for target in targets.of(item)}


def as_simulated(profile, policy, steps, record=False):
    return simulate.Emulated(simulated(profile, policy, steps=steps).steps, None)


def test_emulation_figures_compare_every_policy_on_every_profile(monkeypatch, capsys):
    monkeypatch.setattr(simulate, "emulate", as_simulated)
    assert simulate.emulation_figures() == dict.fromkeys(names("O14"), 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(simulate.PROFILES) * 7
    assert len(simulate.PROFILES) == 5


def test_a_cell_off_by_a_tenth_shows(monkeypatch):
    def slow(profile, policy, steps, record=False):
        return simulate.Emulated(tuple(1.1 * s for s in as_simulated(profile, policy, steps).steps), None)

    monkeypatch.setattr(simulate, "emulate", slow)
    assert simulate.cells(["even"], 2, 1)[0].error == pytest.approx(0.1)


def test_emulated_tasks_are_long_enough():
    for profile in simulate.PROFILES.values():
        assert min(float(getattr(profile, s).min()) for s in ("forward", "backward", "down", "update", "up")) >= 0.02


def test_a_short_emulation_runs():
    profile = Profile(1e-3, 1e-3, 1e-3, 1e-3, 1e-3, layers=2)
    found = simulate.emulate(profile, "lcfs", 2, record=True)
    assert len(found.steps) == 2
    assert {event.stage for event in found.pipeline.events} == {"forward", "backward", "down", "update", "up", "apply"}


def test_choice_figures_are_exact_on_exact_durations():
    found = simulate.choice_figures()
    assert set(found) == names("O16")
    exact, blurred = found.values()
    assert exact == pytest.approx(1.0, abs=1e-9)
    assert exact <= blurred < 1.02


def test_published_figures(monkeypatch, capsys):
    monkeypatch.setattr(published, "emulate", as_simulated)
    found = published.figures()
    assert set(found) == names("O15")
    assert found["d=512 over fair ZeRO, emulated over simulated, off by"] == 0.0
    assert found["7B, authors' conventions, d <= 1024 and native, off by"] < 0.06


def test_grouping_keeps_the_work():
    profile = published.SETTINGS[-1].zero(2)
    grouped = published.grouped(profile, 8, 0.5)
    assert grouped.layers == 8
    assert grouped.total("update") == pytest.approx(0.5 * profile.total("update"))
