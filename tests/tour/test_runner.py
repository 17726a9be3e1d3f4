# SPDX-License-Identifier: Apache-2.0
"""The tour around its chapters: discovery, failure, interruption and resumption, the written files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgeops import tour as tours
from edgeops.perf import Record, Samples, capture, read_jsonl
from edgeops.tour import Chapter, ChapterResult, Check, Context, Missing, TourConfig, run_tour
from edgeops.tour.store import ResultStore, run_key


class Fixed:
    """A chapter whose result depends on the seed alone; counts its runs."""

    title = "A chapter"
    question = "Does it work?"

    def __init__(self, name: str, before: Callable[[], None] = lambda: None, missing: tuple[Missing, ...] = ()) -> None:
        self.name, self.before, self.missing, self.runs = name, before, missing, 0

    def requires(self) -> tuple[Missing, ...]:
        return self.missing

    def run(self, context: Context) -> ChapterResult:
        self.runs += 1
        self.before()
        context.step("working")(1, 1)
        record = Record(
            workload="fixed",
            case=self.name,
            candidate="only",
            shapes={"n": 1},
            source="this test",
            dtype="float32",
            environment=capture(),
            samples=Samples((1.0, 2.0)),
            time="2026-01-01T00:00:00Z",
        )
        return ChapterResult(
            headline=f"seed {context.config.seed}",
            columns=("what", "rate"),
            rows=(("only", "1.5"),),
            records=(record,),
            checks=(Check("equal", "0", "1e-5"),),
            facts={"lengths": [1, 2]},
        )

    def present(self, result: ChapterResult, section) -> None:
        section.text(f"facts {result.facts['lengths']} <b>").table(result.columns, result.rows)


def broken() -> None:
    raise RuntimeError("embeddings differ")


def stopped() -> None:
    raise KeyboardInterrupt


def stored(folder: Path) -> dict[str, object]:
    """What a chapter file says apart from how long it took."""
    data = {p.name: json.loads(p.read_text()) for p in (folder / "chapters").iterdir()}
    for entry in data.values():
        entry.pop("seconds")
    return data


def test_a_failing_chapter_is_reported_and_the_others_run(tmp_path):
    chapters = [Fixed("first"), Fixed("second", broken), Fixed("third")]
    tour = run_tour(chapters, TourConfig(), tmp_path)
    assert [o.status for o in tour.outcomes] == ["done", "failed", "done"]
    assert not tour.passed
    assert tour.outcomes[1].error == "RuntimeError: embeddings differ"
    assert sorted(stored(tmp_path)) == ["first.json", "third.json"]
    page = tour.report.read_text()
    assert "embeddings differ" in page
    assert "facts [1, 2] &lt;b&gt;" in page
    assert [r.case for r in read_jsonl(tmp_path / "records.jsonl")] == ["first", "third"]


def test_missing_packages_are_named_and_the_chapter_does_not_run(tmp_path):
    chapter = Fixed("needy", missing=(Missing("some-model", "pip install some-model"),))
    tour = run_tour([chapter], TourConfig(), tmp_path)
    assert (tour.outcomes[0].status, chapter.runs, tour.passed) == ("missing", 0, False)
    assert "pip install some-model" in tour.report.read_text()


def test_an_interrupted_tour_resumes_to_the_same_result(tmp_path):
    whole = run_tour([Fixed("first"), Fixed("second")], TourConfig(), tmp_path / "whole")

    first, second = Fixed("first"), Fixed("second", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_tour([first, second], TourConfig(), tmp_path / "cut")
    assert sorted(stored(tmp_path / "cut")) == ["first.json"]

    again = Fixed("second")
    resumed = run_tour([first, again], TourConfig(), tmp_path / "cut", resume=True)
    assert (first.runs, again.runs) == (1, 1)
    assert [o.resumed for o in resumed.outcomes] == [True, False]
    assert [o.result for o in resumed.outcomes] == [o.result for o in whole.outcomes]
    assert stored(tmp_path / "cut") == stored(tmp_path / "whole")
    assert (tmp_path / "cut" / "records.jsonl").read_bytes() == (tmp_path / "whole" / "records.jsonl").read_bytes()


@pytest.mark.parametrize("config", [TourConfig(seed=1), TourConfig(quick=True), TourConfig(clock="wall")], ids=repr)
def test_a_result_of_another_configuration_is_not_kept(tmp_path, config):
    chapter = Fixed("first")
    run_tour([chapter], TourConfig(), tmp_path)
    tour = run_tour([chapter], config, tmp_path, resume=True)
    assert chapter.runs == 2
    assert not tour.outcomes[0].resumed


def test_without_resume_everything_runs_again(tmp_path):
    chapter = Fixed("first")
    for _ in range(2):
        run_tour([chapter], TourConfig(), tmp_path)
    assert chapter.runs == 2


def test_a_failed_chapter_runs_again_on_resume(tmp_path):
    run_tour([Fixed("first", broken)], TourConfig(), tmp_path)
    tour = run_tour([Fixed("first")], TourConfig(), tmp_path, resume=True)
    assert tour.passed


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"key": null}', '{"key": KEY}', '{"key": KEY, "seconds": 1, "result": {}}']
)
def test_a_damaged_file_counts_as_absent(tmp_path, text):
    key = run_key("first", TourConfig(), capture())
    store = ResultStore(tmp_path)
    store.path("first").write_text(text.replace("KEY", json.dumps(key)))
    assert store.load(key) is None


def test_threads_are_set_for_the_tour_and_restored(tmp_path):
    seen = []
    before = torch.get_num_threads()
    chapter = Fixed("first", lambda: seen.append(torch.get_num_threads()))
    run_tour([chapter], TourConfig(threads=before + 1), tmp_path)
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_result_survives_json():
    result = Fixed("first").run(Context())
    assert ChapterResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        ChapterResult("x", ("a", "b"), (("1",),))


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"seed": -1}, "seed must be 0 or more"),
        ({"threads": 0}, "threads must be 1"),
        ({"clock": "sun"}, "clock must be"),
    ],
)
def test_bad_configuration(options, rule):
    with pytest.raises(ValueError, match=rule):
        TourConfig(**options)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes an importable package of chapters from `{file stem: source}`."""

    def make(**files: str):
        folder = tmp_path / "made_chapters"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for stem, source in files.items():
            (folder / f"{stem}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        for name in [n for n in sys.modules if n.split(".")[0] == "made_chapters"]:
            monkeypatch.delitem(sys.modules, name)
        return __import__("made_chapters")

    return make


_SOURCE = """
class C:
    name = {name!r}; title = "t"; question = "q"
    def requires(self): return ()
    def run(self, context): raise RuntimeError
    def present(self, result, section): pass
CHAPTER = C()
"""


def test_one_file_adds_a_chapter_and_helpers_are_left_alone(package):
    made = package(alpha=_SOURCE.format(name="alpha"), _helper="raise RuntimeError('a helper was imported')")
    assert list(tours.discover(made)) == ["alpha"]


def test_a_file_without_a_chapter_is_refused(package):
    with pytest.raises(TypeError, match=r"made_chapters\.alpha must define CHAPTER"):
        tours.discover(package(alpha="CHAPTER = 3"))


def test_two_chapters_of_one_name_are_refused(package):
    source = _SOURCE.format(name="same")
    with pytest.raises(ValueError, match="names must differ"):
        tours.discover(package(alpha=source, beta=source))


def test_every_shipped_chapter_is_complete():
    found = tours.discover()
    assert "ragged" in found
    for name, chapter in found.items():
        assert isinstance(chapter, Chapter)
        assert name == chapter.name
        assert chapter.title
        assert chapter.question


def test_unknown_chapter_names_are_refused():
    with pytest.raises(ValueError, match="--only takes ragged"):
        tours.select({"ragged": tours.discover()["ragged"]}, ["ragged", "rugged"])
