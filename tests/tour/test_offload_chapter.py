# SPDX-License-Identifier: Apache-2.0
"""The offload chapter on a tiny random BERT."""

from __future__ import annotations

import json

import pytest

from edgeops.perf import thread_count
from edgeops.perf.report import Report
from edgeops.tour import ChapterResult, Context, TourConfig
from edgeops.tour.chapters._offload_training import NATIVE, OURS, ZERO
from edgeops.tour.chapters.offload import CHAPTER, OffloadChapter
from tests.tour.test_training_chapter import PLAN, tiny_bert


@pytest.fixture(scope="module")
def result() -> ChapterResult:
    with thread_count(1):
        chapter = OffloadChapter(tiny_bert, quick=PLAN, share=0.25)
        return chapter.run(Context(TourConfig(quick=True, clock="wall")))


def test_every_way_is_trained_and_measured(result):
    assert [r.candidate for r in result.records][:3] == [NATIVE, ZERO, OURS]
    assert [r.label for r in result.records][:3] == ["measured", "emulated", "emulated"]
    for record in result.records:
        assert len(record.samples.seconds) == len(record.notes["losses"]) == PLAN.steps
        assert 0 <= record.notes["accuracy"] <= 1


def test_bytes_are_counted(result):
    notes = {r.candidate: r.notes for r in result.records}
    whole = 2 * (4 * 32 * 32 + 2 * 32 * 64)  # weights of two layers
    small = 2 * 6 * 8 * 8
    assert notes[NATIVE]["moved"] == 0
    assert notes[ZERO]["moved"] == 2 * 2 * whole
    assert notes[OURS]["moved"] == 2 * 2 * small
    assert notes[OURS]["kept"] < notes[ZERO]["kept"] < notes[NATIVE]["kept"]


def test_losses_of_whole_gradients_follow_adamw(result):
    losses = result.facts["losses"]
    assert losses[ZERO] == pytest.approx(losses[NATIVE], abs=2e-3)  # bfloat16 on the wire
    assert losses[OURS][0] == losses[NATIVE][0]


def test_the_report_is_drawn_from_what_was_saved(result, tmp_path):
    again = ChapterResult.from_dict(json.loads(json.dumps(result.to_dict())))
    report = Report("tour")
    CHAPTER.present(again, report.section("offload"))
    path = tmp_path / "report.html"
    report.write(path)
    text = path.read_text()
    assert "link down" in text
    assert "equal bits" in text


def test_the_chapter_names_what_it_needs():
    assert OffloadChapter(tiny_bert).requires() == ()
    assert CHAPTER.name == "offload"
