# SPDX-License-Identifier: Apache-2.0
"""The state machine on scripted risks: modes, served models and switches as section 3 of the drift spec has them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops.drift.published import PublishedMonitor
from tests.messages import refused

RISKS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.5, math.nan]))


def step(
    m: PublishedMonitor, model: float, reactive: float = 0.3, stable: float = 0.1, frozen: float = 0.1, switch=None
):
    """One batch with given risks; `switch` are the risks on the trial's sample."""
    decision = m.observe(
        model,
        stable=stable if m.has_stable and not m.reactive_mode else None,
        reactive=reactive if m.reactive_mode else None,
        frozen=frozen if m.form != "A" and m.best is not None else None,
    )
    if decision.enter:
        m.entered(reactive)
    if decision.compare is not None:
        m.conclude(*(switch or (model, reactive)))
    return decision


def test_no_drift_never_leaves_the_stable_state() -> None:
    for form in ("A", "B", "standard"):
        m = PublishedMonitor(form)
        for risk in [0.2, 0.15, 0.1, 0.19, 0.12] * 4:
            assert step(m, risk, frozen=risk).train == ("model",)
        assert (m.trials, m.switches, m.serve) == (0, 0, "model")
        assert m.best == 0.1


@pytest.mark.parametrize("form", ["A", "B", "C"])
def test_abrupt_drift_enters_serves_greedily_and_switches_after_r(form: str) -> None:
    m = PublishedMonitor(form)
    step(m, 0.1)
    entry = step(m, 0.6, reactive=0.7, frozen=0.6)
    assert (entry.enter, entry.clear, entry.train, m.serve) == (True, True, ("model", "reactive"), "model")
    served = []
    for _ in range(3):
        assert not step(m, 0.5, reactive=0.2, frozen=0.6).enter
        served.append(m.serve)
    assert served == ["reactive", "reactive", "model"]  # the model is now what was reactive
    assert (m.trials, m.switches, m.reactive_mode, m.has_stable) == (1, 1, False, form == "A")
    assert m.best == (0.2 if form == "A" else None)


def test_false_alarm_keeps_the_model_and_its_best_risk() -> None:
    m = PublishedMonitor()
    step(m, 0.1)
    step(m, 0.4)
    for _ in range(3):
        step(m, 0.1, reactive=0.3)
        assert m.serve == "model"
    assert (m.trials, m.switches, m.reactive_mode, m.best, m.has_stable) == (1, 0, False, 0.1, False)


def test_a_younger_model_that_is_better_starts_a_trial() -> None:
    m = PublishedMonitor(r=1)
    step(m, 0.1)
    step(m, 0.5, reactive=0.4, switch=(0.4, 0.2))
    assert m.has_stable
    assert step(m, 0.3, stable=0.26).train == ("model", "stable")
    assert step(m, 0.32, stable=0.26).enter


def test_form_a_extends_the_sample_at_each_batch_of_the_trial_and_b_in_its_second_half() -> None:
    for form, wanted in (("A", [True] * 4), ("B", [False, False, True, True])):
        m = PublishedMonitor(form)
        step(m, 0.1)
        decisions = [step(m, 0.6, frozen=0.6) for _ in range(4)]
        assert [d.extend for d in decisions] == wanted
        assert [d.freeze_reactive for d in decisions] == [False, form == "B", False, False]
        assert [d.compare for d in decisions][:3] == [None] * 3
    assert decisions[3].compare == ("frozen", "frozen_reactive")


def test_form_b_margin_protects_the_model() -> None:
    for risks, switched in (((0.30, 0.26), False), ((0.30, 0.24), True)):
        m = PublishedMonitor("B")
        step(m, 0.1)
        for _ in range(4):
            step(m, 0.6, frozen=0.6, switch=risks)
        assert m.switches == switched


def test_form_b_enters_again_once_the_degradation_went_away() -> None:
    m = PublishedMonitor("B")
    step(m, 0.1)
    fire = [step(m, 0.6, frozen=f).enter for f in (0.6, 0.6, 0.1, 0.6)]
    assert fire == [True, False, False, True]
    assert m.k == 1
    assert m.reactive_mode


def test_form_b_freezes_at_each_new_best_risk() -> None:
    m = PublishedMonitor("B")
    assert [step(m, risk, frozen=risk).freeze for risk in (0.3, 0.2, 0.25, 0.1)] == [True, True, False, True]


def test_standard_replaces_at_once() -> None:
    m = PublishedMonitor("standard")
    step(m, 0.1)
    decision = step(m, 0.5, frozen=0.5)
    assert (decision.replace, decision.train, m.best, m.switches) == (True, ("model",), None, 1)
    assert step(m, 0.4).freeze


def test_best_risk_of_zero_is_a_best_risk() -> None:
    for published, entered in ((False, True), (True, False)):
        m = PublishedMonitor(as_published=published)
        step(m, 0.0)
        assert step(m, 0.2).enter == entered


def test_the_published_program_keeps_the_sample_of_a_trial_that_kept_the_model() -> None:
    for published in (False, True):
        m = PublishedMonitor(r=1, as_published=published)
        step(m, 0.1)
        assert step(m, 0.5, switch=(0.1, 0.2)).clear != published


def test_trials_may_follow_one_another() -> None:
    m = PublishedMonitor(r=1)
    step(m, 0.1)
    assert all(step(m, 0.5, switch=(0.1, 0.2)).enter for _ in range(3))
    assert (m.trials, m.switches) == (3, 0)


@pytest.mark.parametrize("form", ["A", "B", "C"])
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_infinite_delta_never_enters(form: str, risks: list[float]) -> None:
    m = PublishedMonitor(form, delta=math.inf)
    for risk in risks:
        assert not step(m, risk, frozen=risk).enter
    assert m.trials == 0


@pytest.mark.parametrize("form", ["A", "B", "C"])
def test_delta_zero_enters_whenever_the_risk_rises(form: str) -> None:
    m = PublishedMonitor(form, delta=0.0, r=1)
    entered = [step(m, risk, frozen=risk, switch=(0.1, 0.2)).enter for risk in (0.3, 0.3, 0.31, 0.32, 0.3)]
    assert entered == [False, False, True, True, False]


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("form", ["A", "B", "C"])
@given(st.lists(st.tuples(RISKS, RISKS), min_size=1, max_size=30))
def test_a_risk_that_is_not_a_number_is_not_served(form: str, greedy: bool, risks: list[tuple[float, float]]) -> None:
    m = PublishedMonitor(form, r=3, greedy=greedy, delta=math.inf)
    for model, reactive in risks:
        switches = m.switches
        step(m, model, reactive=reactive, stable=model, frozen=model, switch=(model, reactive))
        if m.switches > switches:
            assert not math.isnan(reactive)
        elif m.reactive_mode and math.isnan(model) != math.isnan(reactive):
            assert m.serve == ("reactive" if math.isnan(model) else "model")
        if math.isnan(model) and m.switches == switches:
            assert m.reactive_mode or m.k == m.r


@pytest.mark.parametrize("form", ["A", "B", "C", "standard"])
@given(st.lists(st.tuples(RISKS, RISKS, RISKS, RISKS), min_size=1, max_size=30), st.integers(1, 4))
def test_saved_and_restored_at_every_step(form: str, risks: list[tuple[float, ...]], r: int) -> None:
    m, other = PublishedMonitor(form, r=r), PublishedMonitor(form, r=r)
    for model, reactive, stable, frozen in risks:
        fresh = PublishedMonitor()
        fresh.load_state_dict(other.state_dict())
        other = fresh
        assert step(m, model, reactive, stable, frozen) == step(other, model, reactive, stable, frozen)
        assert m.state_dict() == other.state_dict()
        assert m.serve == other.serve


def test_refusals() -> None:
    with refused(ValueError, "PublishedMonitor", "form must be one of A, B, C, standard", "'E'"):
        PublishedMonitor("E")
    with refused(ValueError, "PublishedMonitor", "delta must not be negative", "nan"):
        PublishedMonitor(delta=math.nan)
    with refused(ValueError, "PublishedMonitor", "r must be a whole number from 1", "0"):
        PublishedMonitor(r=0)
    m = PublishedMonitor()
    step(m, 0.1)
    step(m, 0.5)
    with refused(ValueError, "PublishedMonitor.observe", "needs the risk of the reactive model", "None"):
        m.observe(0.5)


def test_form_c_gives_a_trial_up_once_the_degradation_has_gone() -> None:
    m = PublishedMonitor("C")
    step(m, 0.2)
    assert step(m, 0.5, reactive=0.7, frozen=0.5).enter
    assert step(m, 0.4, reactive=0.4, frozen=0.5).train == ("model", "reactive")
    assert step(m, 0.15, reactive=0.3, frozen=0.2).freeze  # a stable batch, and the best one so far
    assert (m.reactive_mode, m.best, m.switches, m.trials) == (False, 0.15, 0, 1)
    assert step(m, 0.5, reactive=0.7, frozen=0.5).enter  # and the next trial is a new one
    for _ in range(3):
        step(m, 0.5, reactive=0.2, frozen=0.6, switch=(0.6, 0.2))
    assert (m.switches, m.best) == (1, None)
