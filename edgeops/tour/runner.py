# SPDX-License-Identifier: Apache-2.0
"""Runs chapters one after the other; a chapter that fails is recorded and the next one runs."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeops.perf import Environment, capture, thread_count, write_jsonl

from .chapter import Chapter, ChapterResult, Context, Missing, TourConfig
from .progress import Progress, Silent
from .store import ResultStore, run_key


@dataclass(frozen=True)
class Outcome:
    """How one chapter went.

    Attributes:
        status: `"done"`, `"failed"` (see `error` and `trace`) or `"missing"` (see `missing`).
        seconds: wall time of the run that produced the result.
        resumed: the result was read from an earlier, interrupted tour.
    """

    chapter: Chapter
    status: str
    seconds: float = 0.0
    result: ChapterResult | None = None
    error: str | None = None
    trace: str | None = None
    missing: tuple[Missing, ...] = ()
    resumed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for `edgeops tour --json`."""
        return {
            "chapter": self.chapter.name,
            "title": self.chapter.title,
            "question": self.chapter.question,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "resumed": self.resumed,
            "error": self.error,
            "missing": [{"package": m.package, "install": m.install} for m in self.missing],
            "result": None if self.result is None else self.result.to_dict(),
        }


@dataclass(frozen=True)
class Tour:
    """A finished tour: outcomes in the order they ran, and where everything lies."""

    outcomes: tuple[Outcome, ...]
    environment: Environment
    config: TourConfig
    folder: Path

    @property
    def passed(self) -> bool:
        """Whether every chapter is done."""
        return all(outcome.status == "done" for outcome in self.outcomes)

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"


def _run_one(
    chapter: Chapter, config: TourConfig, store: ResultStore, environment: Environment, progress: Progress, resume: bool
) -> Outcome:
    key = run_key(chapter.name, config, environment)
    stored = store.load(key) if resume else None
    if stored is not None:
        return Outcome(chapter, "done", seconds=stored[1], result=stored[0], resumed=True)
    missing = tuple(chapter.requires())
    if missing:
        return Outcome(chapter, "missing", missing=missing)
    begin = time.perf_counter()
    try:
        result = chapter.run(Context(config, progress.step))
    except Exception as error:
        return Outcome(
            chapter,
            "failed",
            seconds=time.perf_counter() - begin,
            error=f"{type(error).__name__}: {error}",
            trace=traceback.format_exc(),
        )
    seconds = time.perf_counter() - begin
    store.save(key, result, seconds)
    return Outcome(chapter, "done", seconds=seconds, result=result)


def run_tour(
    chapters: Sequence[Chapter],
    config: TourConfig,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Tour:
    """Run chapters, keep each result as soon as it is there, and write the report.

    Args:
        chapters: in this order; see `discover` and `select`.
        config: the same for all of them.
        folder: receives `chapters/<name>.json`, `records.jsonl` and `report.html`; files of those names are replaced.
        resume: take chapters that an earlier tour finished with the same configuration, machine, versions and commit
            from `folder`. Failed chapters run again.
        progress: shows what is going on; `None` = silent.

    Raises:
        KeyboardInterrupt: the user stopped it; finished chapters are kept for `resume`.
        ImportError: the packages of the `cli` extra, which the report needs, are not installed; before any work.
    """
    from .report import require_report, write_report

    require_report()
    shown = progress or Silent()
    store = ResultStore(folder / "chapters")
    with thread_count(config.threads):
        environment = capture()
        outcomes = []
        for chapter in chapters:
            shown.begin(chapter.name)
            outcomes.append(_run_one(chapter, config, store, environment, shown, resume))
            shown.end()
    tour = Tour(tuple(outcomes), environment, config, folder)
    write_jsonl(folder / "records.jsonl", (r for o in outcomes if o.result is not None for r in o.result.records))
    write_report(tour)
    return tour
