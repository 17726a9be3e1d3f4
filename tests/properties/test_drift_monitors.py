# SPDX-License-Identifier: Apache-2.0
"""The monitor of many learners against one scalar monitor each, decision by decision, on random losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeops.drift.monitor import KEEP, DriftMonitor
from edgeops.drift.population._monitors import ENTER, EVENTS, NONE, REENTER, DriftMonitors
from tests.strategies import seeds

NAMES = (KEEP, "a", "b", "c")
settings = st.fixed_dictionaries(
    {
        "delta": st.sampled_from([0.0, 0.02, 0.1, math.inf]),
        "z": st.sampled_from([0.0, 2.5]),
        "z_again": st.sampled_from([0.5, 4.0]),
        "r": st.integers(1, 4),
        "margin": st.sampled_from([0.0, 0.005]),
        "margin_z": st.sampled_from([0.0, 1.0]),
        "early_z": st.sampled_from([0.0, 2.0, 4.0]),
        "memory": st.sampled_from([1, 3, 20]),
        "challenge": st.sampled_from([None, 1, 5]),
        "discount": st.sampled_from([0.0, 0.5, 1.0]),
        "min_n": st.sampled_from([1, 5, 20]),
    }
)


def _losses(g: torch.Generator, learners: int, columns: int, n: int, zero_one: bool, broken: float) -> Tensor:
    """Candidates of very different quality, which changes from step to step; some that are no numbers."""
    level = torch.rand(learners, columns, 1, generator=g, dtype=torch.float64)
    draws = torch.rand(learners, columns, n, generator=g, dtype=torch.float64)
    losses = (draws < level).double() if zero_one else level + draws / 4
    bad = torch.rand(learners, columns, 1, generator=g) < broken
    return torch.where(bad & (draws < 0.5), torch.tensor([math.nan, math.inf])[int(zero_one)], losses)


class Twins:
    """One scalar monitor a learner, told the same."""

    def __init__(self, learners: int, columns: int, given: dict) -> None:
        self.each = [DriftMonitor(**given) for _ in range(learners)]
        self.many = DriftMonitors(learners, columns, DriftMonitor(**given))

    def columns(self, i: int) -> list[int]:
        return [NAMES.index(name) for name in self.each[i].candidates]

    def told(self, i: int, losses: Tensor) -> dict[str, Tensor]:
        return {NAMES[c]: losses[i, c] for c in self.columns(i)}

    def same(self, i: int, decision, event: Tensor, winner: Tensor) -> None:
        assert EVENTS[int(event)] == decision.event
        assert int(winner) == (-1 if decision.winner is None else NAMES.index(decision.winner))

    def agree(self) -> None:
        serve = self.many.serve
        for i, one in enumerate(self.each):
            if not any(map(math.isnan, one._scores.values())):  # the scalar class has no answer then
                assert NAMES[int(serve[i])] == one.serve
            for name in ("in_trial", "k", "trials", "switches", "quiet"):
                assert int(getattr(self.many, name)[i]) == int(getattr(one, name)), name
            assert float(self.many.reference[i]) == pytest.approx(math.inf if one.reference is None else one.reference)
            assert [c for c in range(self.many.columns) if self.many.live[i, c]] == self.columns(i)


@given(seeds(), st.integers(1, 6), st.integers(1, 4), st.integers(1, 7), settings, st.booleans(), st.booleans())
def test_decisions(
    g: torch.Generator, learners: int, columns: int, n: int, chosen: dict, zero_one: bool, broken: bool
) -> None:
    twins = Twins(learners, columns, {**chosen, "longest": chosen["r"] + 2})
    for _ in range(25):
        active = torch.rand(learners, generator=g) < 0.8
        losses = _losses(g, learners, columns, n, zero_one, 0.1 * broken)
        events, winners = twins.many.observe(losses, active)
        for i, one in enumerate(twins.each):
            if active[i]:
                twins.same(i, one.observe(twins.told(i, losses)), events[i], winners[i])
            else:
                assert (int(events[i]), int(winners[i])) == (NONE, -1)
        entered = ((events == ENTER) | (events == REENTER)).nonzero()[:, 0]
        if len(entered):
            live = torch.rand(len(entered), columns, generator=g) < 0.7
            twins.many.begin(entered, live)
            rest = _losses(g, learners, columns, n, zero_one, 0.1 * broken)
            for row, i in enumerate(entered.tolist()):
                twins.each[i].begin([NAMES[c] for c in range(1, columns) if live[row, c]])
            if n % 2:
                events, winners = twins.many.head_start(entered, rest[entered])
                for row, i in enumerate(entered.tolist()):
                    twins.same(i, twins.each[i].head_start(twins.told(i, rest)), events[row], winners[row])
            elif not broken:
                twins.many.disqualify(entered[:1], torch.zeros_like(entered[:1]))
                twins.each[int(entered[0])].disqualify(KEEP)
        twins.agree()


def test_state_in_the_middle_of_a_trial() -> None:
    g = torch.Generator().manual_seed(0)
    steps = [_losses(g, 5, 3, 8, False, 0.05) for _ in range(40)]

    def run(monitors: DriftMonitors, given: list[Tensor]) -> list[Tensor]:
        seen = []
        for losses in given:
            events, winners = monitors.observe(losses)
            entered = ((events == ENTER) | (events == REENTER)).nonzero()[:, 0]
            monitors.begin(entered, torch.ones(len(entered), 3, dtype=torch.bool))
            seen += [events, winners, monitors.serve, monitors.reference, monitors.lead_total]
        return seen

    like = DriftMonitor(r=4, early_z=50.0, margin_z=50.0)
    first = DriftMonitors(5, 3, like)
    run(first, steps[:11])
    assert bool(first.in_trial.any())
    second = DriftMonitors(5, 3)
    second.load_state_dict(first.state_dict())
    for got, want in zip(run(second, steps[11:]), run(first, steps[11:]), strict=True):
        assert torch.equal(got, want)
    with pytest.raises(ValueError, match="needs the state of 4 learners with 3 candidates; got 5 and 3"):
        DriftMonitors(4, 3).load_state_dict(first.state_dict())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="learners and columns must be at least 1; got 0, 3"):
        DriftMonitors(0, 3)
    monitors = DriftMonitors(2, 3)
    with pytest.raises(ValueError, match=r"losses must be \[2, 3, n\]; got float32 tensor of shape \(2, 3\)"):
        monitors.observe(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="a trial must have been entered"):
        monitors.begin(torch.tensor([0]), torch.ones(1, 3, dtype=torch.bool))
    events, winners = monitors.observe(torch.zeros(2, 3, 0))
    assert events.tolist() == [0, 0]
    assert winners.tolist() == [-1, -1]
    small = DriftMonitors(2, 1, DriftMonitor(min_n=5))
    small.observe(torch.zeros(2, 1, 2))
    with pytest.raises(ValueError, match="batches must have the same number of points"):
        small.observe(torch.zeros(2, 1, 3))
