# SPDX-License-Identifier: Apache-2.0
"""The batching chapter: the task, the three ways, the stored result."""

from __future__ import annotations

import json
import random

import pytest
import torch

from edgeops.perf import thread_count
from edgeops.perf.report import Report
from edgeops.tour import ChapterResult, Context, TourConfig
from edgeops.tour.chapters._list_ops import ListOpsNet, draw, evaluate, size
from edgeops.tour.chapters._syntax_net import SyntaxNet
from edgeops.tour.chapters._syntax_task import WAYS as SYNTAX_WAYS
from edgeops.tour.chapters._syntax_task import WORKLOAD, SyntaxPlan
from edgeops.tour.chapters._tree_training import TOLERANCE
from edgeops.tour.chapters.batching import CHAPTER, LISTS, WAYS, BatchingChapter, ListPlan, Plans

LIST_PLAN = ListPlan(steps=3, more=2, batch=4, held_out=6, depth=3, width=8)
SYNTAX_PLAN = SyntaxPlan(steps=2, more=3, batch=4, held_out=5, width=8, examples=9)
PLANS = Plans(LIST_PLAN, SYNTAX_PLAN)


@pytest.fixture(scope="module")
def result() -> ChapterResult:
    with thread_count(1):
        return BatchingChapter(quick=PLANS).run(Context(TourConfig(quick=True, clock="wall")))


@pytest.mark.parametrize(
    ("tree", "worth"),
    [
        (7, 7),
        ((0, [1, 9, 4]), 9),
        ((1, [1, 9, 4]), 1),
        ((2, [1, 9, 4]), 4),
        ((2, [1, 9]), 9),
        ((3, [1, 9, 4]), 4),
        ((0, [3, (3, [9, (1, [4, 8])]), 1]), 3),
    ],
)
def test_what_expressions_are_worth(tree, worth):
    assert evaluate(tree) == worth


def test_trees_are_drawn_from_a_seed():
    rng = random.Random(3)
    trees = [draw(rng, 4) for _ in range(50)]
    again = random.Random(3)
    assert trees == [draw(again, 4) for _ in range(50)]
    assert max(size(t) for t in trees) > 10 > min(size(t) for t in trees)


def test_three_ways_agree_in_results_and_gradients():
    torch.manual_seed(0)
    net = ListOpsNet(6).double()
    rng = random.Random(0)
    trees = [draw(rng, 3) for _ in range(7)]
    answers = torch.tensor([evaluate(t) for t in trees])
    found = {}
    for way in WAYS.values():
        loss = net.loss(way, trees, answers)
        found[way] = (loss, *torch.autograd.grad(loss, list(net.parameters())))
    for way in ("batched", "by_hand"):
        for a, b in zip(found[way], found["eager"], strict=True):
            torch.testing.assert_close(a, b)


def test_every_way_is_trained_and_measured(result):
    lists = [r for r in result.records if r.workload == LISTS]
    assert [r.candidate for r in lists] == list(WAYS)
    assert [r.baseline for r in lists] == [None, "eager", "eager"]
    for record in lists:
        assert len(record.samples.seconds) == LIST_PLAN.steps
    losses = result.facts["losses"]
    assert len(set(losses["eager"])) == len(losses["eager"]) == LIST_PLAN.steps
    assert losses["eager"] == pytest.approx(losses["edgeops session"][: LIST_PLAN.steps], abs=TOLERANCE)
    assert len(losses["edgeops session"]) == LIST_PLAN.steps + LIST_PLAN.more
    assert 0 <= result.facts["right"] <= 1


def test_syntax_trees_are_trained_and_measured(result):
    records = [r for r in result.records if r.workload == WORKLOAD]
    assert [r.candidate for r in records] == list(SYNTAX_WAYS)
    assert all(len(record.samples.seconds) == SYNTAX_PLAN.steps for record in records)
    facts = result.facts["syntax"]
    assert facts["losses"]["eager"] == pytest.approx(facts["losses"]["edgeops session"][:2], abs=TOLERANCE)
    assert len(facts["losses"]["edgeops session"]) == SYNTAX_PLAN.steps + SYNTAX_PLAN.more
    assert facts["tested"] == SYNTAX_PLAN.held_out
    assert all(0 <= facts[name] <= 1 for name in ("right", "usual", "sides"))
    assert len(result.rows) == len(WAYS) + len(SYNTAX_WAYS)
    assert len(result.checks) == 2


@pytest.mark.parametrize(("net", "what"), [(ListOpsNet, "nested lists"), (SyntaxNet, "syntax trees")])
@pytest.mark.parametrize("factor", [2.0, float("nan")])
def test_a_session_that_learns_otherwise_fails_the_chapter(monkeypatch, net, what, factor):
    stock = net.batched
    monkeypatch.setattr(net, "batched", lambda self, trees: factor * stock(self, trees))
    with pytest.raises(RuntimeError, match=f"losses on {what} must equal the eager ones"):
        BatchingChapter(quick=PLANS).run(Context(TourConfig(quick=True, clock="wall")))


def test_report_from_stored_data(result):
    stored = ChapterResult.from_dict(json.loads(json.dumps(result.to_dict())))
    report = Report("tour")
    CHAPTER.present(stored, report.section("batching"))
    html = report.html()
    assert html.count("<svg") == 4
    assert "the commonest kind between the same two operands" in html
