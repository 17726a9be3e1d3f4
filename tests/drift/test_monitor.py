# SPDX-License-Identifier: Apache-2.0
"""Form D on scripted losses: when a trial starts, who serves, who wins. Drift spec, sections 12.3 and 12.5."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeops.drift.monitor import KEEP, Decision, DriftMonitor
from tests.messages import refused


def wrong(share: float, n: int = 100) -> Tensor:
    """Losses of n points of which a share is wrong, spread evenly; not a number where the share is none."""
    if math.isnan(share):
        return torch.full((n,), math.nan)
    place = torch.arange(n)
    return ((place + 1) * share).floor().sub((place * share).floor()).double()


def see(m: DriftMonitor, n: int = 100, **shares: float) -> Decision:
    """A batch on which each candidate is wrong on a share; a trial gets a fresh and a warm one."""
    decision = m.observe({name: wrong(share, n) for name, share in shares.items()})
    if decision.event in ("enter", "reenter"):
        m.begin(["fresh", "warm"])
    return decision


def calm(m: DriftMonitor, share: float = 0.1, batches: int = 5) -> DriftMonitor:
    for _ in range(batches):
        assert see(m, keep=share).event == "none"
    return m


def test_no_drift_never_starts_a_trial() -> None:
    m = DriftMonitor()
    for share in [0.12, 0.1, 0.15, 0.08, 0.13] * 8:
        assert see(m, keep=share).event == "none"
    assert (m.trials, m.switches, m.serve, m.candidates) == (0, 0, KEEP, (KEEP,))


def test_an_abrupt_drift_is_over_as_soon_as_the_lead_leaves_no_doubt() -> None:
    m = calm(DriftMonitor())
    assert see(m, keep=0.9).event == "enter"
    assert m.head_start({"keep": wrong(0.9, 50), "fresh": wrong(0.2, 50), "warm": wrong(0.8, 50)}).winner == "fresh"
    assert (m.serve, m.in_trial, m.switches) == (KEEP, False, 1)
    assert m.reference == pytest.approx(0.2)  # the winner's own record


def test_a_candidate_that_leads_by_less_serves_at_once_and_wins_after_r() -> None:
    m = calm(DriftMonitor(r=3))
    see(m, keep=0.4)
    m.head_start({"keep": wrong(0.4, 50), "fresh": wrong(0.5, 50), "warm": wrong(0.3, 50)})
    served = []
    for _ in range(3):
        served.append(m.serve)
        decision = see(m, keep=0.4, fresh=0.4, warm=0.26)
    assert served == ["warm"] * 3
    assert decision == Decision("switch", "warm")


def test_a_false_alarm_keeps_the_model_after_r() -> None:
    m = calm(DriftMonitor(r=4))
    assert see(m, keep=0.35).event == "enter"
    events = [see(m, keep=0.1, fresh=0.3, warm=0.12).event for _ in range(4)]
    assert events == ["none", "none", "none", "keep"]
    assert (m.trials, m.switches, m.candidates) == (1, 0, (KEEP,))


def test_an_undecided_trial_goes_on_until_longest() -> None:
    m = calm(DriftMonitor(r=2, longest=5))
    see(m, keep=0.35)
    events = [see(m, keep=0.30, fresh=0.40, warm=0.29).event for _ in range(5)]
    assert events == ["none"] * 4 + ["keep"]


def test_a_drift_within_a_trial_starts_it_again() -> None:
    m = calm(DriftMonitor())
    see(m, keep=0.35)
    see(m, keep=0.1, fresh=0.3, warm=0.1)
    assert see(m, keep=0.9, fresh=0.8, warm=0.9).event == "reenter"
    assert (m.trials, m.k) == (2, 0)
    assert m.serve == KEEP  # the new candidates have shown nothing yet
    assert see(m, keep=0.9, fresh=0.2, warm=0.6) == Decision("switch", "fresh")


def test_r_is_one() -> None:
    m = calm(DriftMonitor(r=1))
    see(m, keep=0.4)
    assert see(m, keep=0.4, fresh=0.5, warm=0.2) == Decision("switch", "warm")


def test_delta_zero_is_always_in_a_trial_and_infinity_never() -> None:
    always, never = DriftMonitor(delta=0.0, r=2), DriftMonitor(delta=math.inf)
    assert see(always, keep=0.1).event == "none"  # there is nothing to compare the first batch with
    events = [see(always, keep=0.1, fresh=0.1, warm=0.1).event for _ in range(6)]
    assert events == ["enter", "none", "keep"] * 2
    for share in (0.0, 1.0, 0.5, 1.0):
        assert see(never, keep=share).event == "none"


def test_a_best_of_zero_is_a_best() -> None:
    m = calm(DriftMonitor(), share=0.0)
    assert m.reference == 0.0
    assert see(m, keep=0.2).event == "enter"


def test_a_lucky_batch_is_forgotten() -> None:
    m = DriftMonitor(memory=3)
    see(m, keep=0.0)
    calm(m, share=0.04, batches=3)
    assert m.reference == pytest.approx(0.04)


def test_a_challenge_comes_of_itself() -> None:
    m = DriftMonitor(challenge=3)
    assert [see(m, keep=0.1).event for _ in range(3)] == ["none", "none", "enter"]


def test_an_empty_batch_changes_nothing() -> None:
    m = calm(DriftMonitor())
    before = copy.deepcopy(m.state_dict())
    assert see(m, n=0, keep=0.0) == Decision()
    assert m.state_dict() == before


def test_few_points_are_taken_together() -> None:
    m = calm(DriftMonitor(min_n=100), batches=2)
    assert [see(m, n=50, keep=0.9).event for _ in range(2)] == ["pending", "enter"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_that_diverged_is_not_served_while_another_is_finite(bad: float) -> None:
    m = calm(DriftMonitor())
    losses = torch.full((100,), bad)
    assert m.observe({"keep": losses}).event == "enter"
    m.begin(["fresh"])
    assert m.head_start({"keep": losses, "fresh": wrong(0.9)}) == Decision("switch", "fresh")


def test_a_candidate_that_diverged_neither_serves_nor_wins() -> None:
    m = calm(DriftMonitor(r=1))
    see(m, keep=0.4)
    see(m, keep=0.4, fresh=math.nan, warm=0.38)
    assert m.serve == "warm"
    m.disqualify("warm")
    assert m.serve == KEEP


def test_where_all_diverged_the_trial_ends_with_the_model() -> None:
    m = calm(DriftMonitor(r=1))
    assert see(m, keep=math.nan).event == "enter"
    assert see(m, keep=math.nan, fresh=math.nan, warm=math.nan).event == "keep"
    assert see(m, keep=math.nan).event == "enter"


def test_a_model_that_diverged_within_a_trial_that_starts_again() -> None:
    m = calm(DriftMonitor())
    see(m, keep=0.35)
    see(m, keep=0.1, fresh=0.3, warm=0.1)
    assert see(m, keep=math.nan, fresh=0.9, warm=0.9).event == "reenter"
    assert m.serve == KEEP  # there is nobody else yet
    assert see(m, keep=math.nan, fresh=0.5, warm=math.nan) == Decision("switch", "fresh")


def test_a_saved_state_does_not_change_with_what_goes_on() -> None:
    m = calm(DriftMonitor())
    see(m, keep=0.35)
    state = m.state_dict()
    before = copy.deepcopy(state)
    see(m, keep=0.1, fresh=0.3, warm=0.1)
    assert state == before


LOSSES = st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=3, max_size=3)


@given(st.lists(LOSSES, min_size=1, max_size=30), st.integers(0, 29), st.sampled_from([0.0, 0.02, math.inf]))
def test_saved_anywhere_it_goes_on_the_same(script: list[list[float]], at: int, delta: float) -> None:
    m = DriftMonitor(delta=delta, r=2, longest=3, challenge=7)
    other = m
    for step, shares in enumerate(script):
        if step == at:
            file = io.BytesIO()
            torch.save(m.state_dict(), file)
            file.seek(0)
            other = DriftMonitor()
            other.load_state_dict(torch.load(file, weights_only=True))
        batch = dict(zip(("keep", "fresh", "warm"), shares, strict=True))
        decision = see(m, n=20, **batch)
        assert other is m or see(other, n=20, **batch) == decision
        assert m.serve == other.serve
        assert m.serve in m.candidates
        if m.in_trial and any(math.isfinite(batch[name]) for name in m.candidates) and m.k:
            assert math.isfinite(batch[m.serve])


def test_refusals() -> None:
    with refused(ValueError, "DriftMonitor", "margin must not be negative", "-1"):
        DriftMonitor(margin=-1)
    with refused(ValueError, "DriftMonitor", "discount must be in"):
        DriftMonitor(discount=2)
    with refused(ValueError, "DriftMonitor", "r must be in"):
        DriftMonitor(r=5, longest=4)
    m = DriftMonitor()
    with refused(ValueError, "DriftMonitor.observe", "needs the losses of 'keep'"):
        m.observe({})
    with refused(ValueError, "DriftMonitor.observe", "one number a point"):
        m.observe({"keep": torch.ones(())})
    with refused(ValueError, "DriftMonitor.begin", "a trial must have been entered"):
        m.begin(["fresh"])
    calm(m)
    m.observe({"keep": wrong(0.9)})
    with refused(ValueError, "DriftMonitor.begin", "names must differ"):
        m.begin(["keep"])
