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
from edgeops.tour.chapters.batching import CHAPTER, TOLERANCE, WAYS, BatchingChapter, Plan

PLAN = Plan(steps=3, more=2, batch=4, held_out=6, depth=3, width=8)


@pytest.fixture(scope="module")
def result() -> ChapterResult:
    with thread_count(1):
        return BatchingChapter(quick=PLAN).run(Context(TourConfig(quick=True, clock="wall")))


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
    assert [r.candidate for r in result.records] == list(WAYS)
    assert [r.baseline for r in result.records] == [None, "eager", "eager"]
    for record in result.records:
        assert len(record.samples.seconds) == PLAN.steps
    losses = result.facts["losses"]
    assert len(set(losses["eager"])) == len(losses["eager"]) == PLAN.steps
    assert losses["eager"] == pytest.approx(losses["edgeops session"][: PLAN.steps], abs=TOLERANCE)
    assert len(losses["edgeops session"]) == PLAN.steps + PLAN.more
    assert 0 <= result.facts["right"] <= 1


def test_a_session_that_learns_otherwise_fails_the_chapter(monkeypatch):
    stock = ListOpsNet.batched
    monkeypatch.setattr(ListOpsNet, "batched", lambda self, trees: 2 * stock(self, trees))
    with pytest.raises(RuntimeError, match="losses must equal the eager ones"):
        BatchingChapter(quick=PLAN).run(Context(TourConfig(quick=True, clock="wall")))


def test_report_from_stored_data(result):
    stored = ChapterResult.from_dict(json.loads(json.dumps(result.to_dict())))
    report = Report("tour")
    CHAPTER.present(stored, report.section("batching"))
    assert report.html().count("<svg") == 2
