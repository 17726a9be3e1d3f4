# SPDX-License-Identifier: Apache-2.0
"""DriftSurf at a federated server against its rules in words; a client's report; both on drifting clients."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.drift.federated import FEW, SETS, found, read_pattern, simulate
from edgeops.drift.pooled import ClientMonitor, PooledMonitor, drifted
from tests.messages import refused


class InWords:
    """The server's rules over accuracies: two tests, r steps of which the first is not scored, the better mean wins."""

    def __init__(self, delta: float, r: int = 3, window: int = 10) -> None:
        self.delta, self.r, self.window = delta, r, window
        self.best, self.trial, self.scores, self.t = 0.0, False, [], 0
        self.steps = {"model": [0], "stable": [0]}

    def step(self, model: float, other: float | None) -> str:
        self.t += 1
        self.best = max(self.best, model)
        event, first = "none", False
        if not self.trial:
            fell = model < self.best - self.delta
            younger = bool(self.steps["stable"]) and model < (other or 0.0) - self.delta / 2
            if not (fell or younger):
                for role in ("model", "stable"):
                    self.steps[role] = [*self.steps[role], self.t][-self.window :]
                return event
            self.trial, self.scores, event, first = True, [], "enter", True
            self.steps = {"model": self.steps["model"], "reactive": []}
            self.count = 0
        if not first:
            self.scores.append((model, other or 0.0))
        for role in ("model", "reactive"):
            self.steps[role] = [*self.steps[role], self.t][-self.window :]
        self.count += 1
        if self.count < self.r:
            return event
        self.trial = False
        younger_steps = self.steps.pop("reactive")
        self.steps["stable"] = []
        if sum(a for a, _ in self.scores) < sum(b for _, b in self.scores):
            self.steps["model"] = younger_steps
            self.best = max(b for _, b in self.scores)
            return "switch"
        return "keep"


@pytest.mark.parametrize("seed", range(20))
def test_decisions_are_those_of_the_rules_in_words(seed: int) -> None:
    rng = random.Random(seed)
    delta, r, window = rng.choice([0.02, 0.05, 0.1]), rng.choice([1, 2, 3, 5]), rng.choice([2, 10])
    ours, words = PooledMonitor(delta=delta, r=r, window=window), InWords(delta, r, window)
    level = rng.uniform(0.7, 0.95)
    for _ in range(80):
        level = rng.uniform(0.5, 0.95) if rng.random() < 0.15 else level
        model, other = (min(1.0, max(0.0, level + rng.gauss(0, 0.05))) for _ in range(2))
        role = "reactive" if ours.reactive_mode else "stable"
        beside = {role: 1 - other} if ours.train.get(role) else {}
        decision = ours.step(1 - model, **beside)
        assert decision.event == words.step(model, other)
        assert decision.train == {name: tuple(steps) for name, steps in words.steps.items() if steps}
        assert 1 - (ours.best or 0.0) == pytest.approx(words.best)


def test_a_trial_step_by_step() -> None:
    monitor = PooledMonitor(delta=0.1)
    assert [monitor.step(e, stable=s).event for e, s in ((0.1, 0.1), (0.12, 0.11), (0.19, 0.18))] == ["none"] * 3
    assert monitor.step(0.18, stable=0.12).event == "enter"  # worse than the younger one by more than half of delta
    assert (monitor.serve, monitor.train["reactive"]) == ("model", (4,))
    assert monitor.step(0.2, reactive=0.1).event == "none"
    assert monitor.serve == "reactive"
    assert monitor.step(0.2, reactive=0.25).event == "switch"  # 0.2 against 0.175
    assert (monitor.serve, monitor.best, monitor.trials, monitor.switches) == ("model", 0.1, 1, 1)
    assert monitor.train == {"model": (4, 5, 6)}
    decision = monitor.step(0.12)
    assert (decision.event, decision.fresh, decision.train["stable"]) == ("none", ("stable",), (7,))
    assert monitor.step(0.12, stable=0.3).event == "none"


def test_a_trial_that_keeps_the_model() -> None:
    monitor = PooledMonitor(delta=0.1)
    events = [monitor.step(0.1, stable=0.1).event, monitor.step(0.3, stable=0.3).event]
    events += [monitor.step(0.1, reactive=0.5).event, monitor.step(0.1, reactive=0.09).event]
    assert events == ["none", "enter", "none", "keep"]
    assert (monitor.serve, monitor.best) == ("model", 0.1)  # even though the younger one was the better one last
    assert monitor.train == {"model": (0, 1, 2, 3, 4)}


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_server_put_away_goes_on(stop: int) -> None:
    errors = [0.1, 0.4, 0.3, 0.3, 0.1, 0.5, 0.4, 0.4]

    def go(monitor: PooledMonitor, part: list[float]) -> list:
        return [monitor.step(e, **({"reactive": 0.2} if monitor.reactive_mode else {"stable": 0.2})) for e in part]

    whole = go(PooledMonitor(), errors)
    first, second = PooledMonitor(), PooledMonitor(delta=0.7, r=2)
    before = go(first, errors[:stop])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + go(second, errors[stop:]) == whole


def test_a_clients_report() -> None:
    client = ClientMonitor(0.1)
    right, wrong = torch.zeros(100), torch.ones(100)
    first = client.observe({"a": right, "b": wrong})
    assert (first.step, first.risk, first.reference, first.best, first.drift) == (0, 0.0, None, "a", False)
    same = client.observe({"a": wrong, "b": right})  # another model does well: no drift that needs a new one
    assert (same.best, same.drift, same.scores) == ("b", False, {"a": 1.0, "b": 0.0})
    half = torch.arange(100) % 2 == 0
    worse = client.observe({"a": wrong, "b": half.double()})
    assert (worse.drift, worse.risk, worse.reference, worse.count) == (True, 0.5, 0.0, 100)
    assert worse.error == pytest.approx(0.05)
    assert json.loads(json.dumps(worse.to_dict()))["best"] == "b"
    empty = client.observe({"a": torch.zeros(0)})
    assert (empty.drift, empty.risk, empty.count, empty.step) == (False, 0.5, 0, 3)
    lost = client.observe({"a": torch.full((10,), torch.nan)})
    assert (lost.drift, lost.risk) == (True, float("inf"))


def test_chance_is_no_drift_with_standard_errors() -> None:
    few = (torch.arange(20) % 20 < 3).double()  # 0 to 15 % wrong of 20 points
    for z, drift in ((0.0, True), (3.0, False)):
        client = ClientMonitor(0.1, z=z)
        client.observe({"a": torch.zeros(20)})
        assert client.observe({"a": few}).drift is drift
    again = ClientMonitor(0.5)
    again.load_state_dict(client.state_dict())
    assert again.observe({"a": torch.ones(20)}) == client.observe({"a": torch.ones(20)})


def test_clients_find_a_drift_of_two_that_the_pooled_test_misses() -> None:
    steps = simulate("CIRCLE", FEW[2:6], rounds=20, points=400)
    at = {step.t: step for step in steps}
    assert at[2].changed == (2, 7)
    assert drifted(at[2].reports) == [2, 7]
    assert [step.event for step in steps] == ["none"] * 3
    assert found(steps)[:2] == (2, 2)


def test_a_drift_of_all_is_found_by_both() -> None:
    pattern = tuple((int(t >= 2),) * 4 for t in range(6))
    steps = simulate("SINE", pattern, rounds=30, points=150)
    assert [step.event for step in steps] == ["none", "enter", "none", "switch", "none"]
    assert drifted(steps[1].reports) == [0, 1, 2, 3]
    assert steps[4].served < steps[1].served / 2


@pytest.mark.parametrize("which", "ABCDEFW")
def test_patterns(which: str, shared_data: Callable[[str], Path]) -> None:
    pattern = read_pattern(shared_data("federated/changepoints") / f"{which}.cp")
    assert (len(pattern), {len(row) for row in pattern}) == (11, {10})
    concepts = {concept for row in pattern for concept in row}
    assert max(concepts) == (1 if which in "AW" else 3)
    for _, draw in SETS.values():
        x, y = draw(max(concepts), 5, torch.Generator().manual_seed(0))
        assert len(x) == len(y) == 5


def test_refusals() -> None:
    with refused(ValueError, "PooledMonitor", "window must be a whole number", "0"):
        PooledMonitor(window=0)
    monitor = PooledMonitor()
    with refused(ValueError, "PublishedMonitor.observe", "needs the risk of the stable model"):
        monitor.step(0.1)
    with refused(ValueError, "ClientMonitor", "delta and z must not be negative", "-1, 0"):
        ClientMonitor(-1)
    client = ClientMonitor(0.1)
    with refused(ValueError, "ClientMonitor.observe", "needs a model's losses"):
        client.observe({})
    with refused(ValueError, "ClientMonitor.observe", "one number a point"):
        client.observe({"a": torch.zeros(3), "b": torch.zeros(4)})
