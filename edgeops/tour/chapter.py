# SPDX-License-Identifier: Apache-2.0
"""What a chapter of the tour is: one subsystem, one question a user asks, one measured answer.

Measuring and presenting are apart. `run` returns plain data that survives a round trip through JSON; `present` draws
the report from that data alone. So a chapter that was measured yesterday, in a run that was interrupted, looks the same
in today's report.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from edgeops._common import describe, message
from edgeops.perf import CLOCKS, Record, default_clock

if TYPE_CHECKING:
    from edgeops.perf.report import Section

Step = Callable[[int, int], None]
"""Called as `step(done, total)` while one part of a chapter runs; fits `edgeops.perf.interleave(progress=...)`."""


@dataclass(frozen=True)
class TourConfig:
    """How to run a tour.

    Args:
        quick: less input and fewer rounds, for CI: shows that everything works, the figures are rough.
        seed: chooses the sample of every chapter's input; 0 or more.
        threads: intra-op threads, 1 or more. One is timed in CPU seconds, which other programs on the machine hardly
            disturb; several are timed by the wall clock and want an idle machine.
        clock: as in `edgeops.perf.interleave`; `None` = `edgeops.perf.default_clock`.

    Raises:
        ValueError: a negative seed, no thread, an unknown clock.

    >>> TourConfig(threads=2).timed_by, TourConfig(threads=2, clock="process").timed_by
    ('wall', 'process')
    """

    quick: bool = False
    seed: int = 0
    threads: int = 1
    clock: str | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(message("tour", "seed must be 0 or more", str(self.seed), "Any such number will do."))
        if self.threads < 1:
            raise ValueError(message("tour", "threads must be 1 or more", str(self.threads), "Leave it out for one."))
        if self.clock is not None and self.clock not in CLOCKS:
            raise ValueError(
                message(
                    "tour", f"clock must be one of {', '.join(CLOCKS)}", repr(self.clock), "Leave it out if in doubt."
                )
            )

    @property
    def timed_by(self) -> str:
        """The clock that times every chapter."""
        return self.clock or default_clock(self.threads)


@dataclass(frozen=True)
class Context:
    """What a running chapter is given.

    Args:
        config: the choices of the user.
        step: `step("timing")` starts a new progress line and returns the `Step` that moves it.
    """

    config: TourConfig = field(default_factory=TourConfig)
    step: Callable[[str], Step] = lambda description: lambda done, total: None


@dataclass(frozen=True)
class Check:
    """Something that had to hold before anything was timed; `value` was found to keep `limit`."""

    name: str
    value: str
    limit: str


@dataclass(frozen=True)
class ChapterResult:
    """What a chapter found.

    Args:
        headline: one sentence with the answer, figures included.
        columns: heads of the chapter's main table, the one shown in the terminal.
        rows: its cells, ready to print; losing candidates included.
        records: the measurements behind the table.
        checks: what was checked before timing.
        facts: what the figures are drawn from; JSON values by name.

    Raises:
        ValueError: a row that does not fit the columns.

    >>> result = ChapterResult("It works.", ("what", "rate"), (("ours", "2.0"),))
    >>> ChapterResult.from_dict(result.to_dict()) == result
    True
    """

    headline: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    records: tuple[Record, ...] = ()
    checks: tuple[Check, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    message(
                        "ChapterResult",
                        f"every row needs {len(self.columns)} cells, one per column",
                        f"{len(row)} cells {row}",
                        "Fill absent figures with an empty string.",
                    )
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "headline": self.headline,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "records": [record.to_dict() for record in self.records],
            "checks": [asdict(check) for check in self.checks],
            "facts": dict(self.facts),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ChapterResult:
        """Inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: not what `to_dict` writes.
        """
        return ChapterResult(
            headline=data["headline"],
            columns=tuple(data["columns"]),
            rows=tuple(tuple(row) for row in data["rows"]),
            records=tuple(Record.from_dict(record) for record in data["records"]),
            checks=tuple(Check(**check) for check in data["checks"]),
            facts=data["facts"],
        )


@dataclass(frozen=True)
class Missing:
    """A package that a chapter needs and this machine lacks, with the command that brings it."""

    package: str
    install: str


@runtime_checkable
class Chapter(Protocol):
    """One file in `edgeops/tour/chapters/` defines one of these as `CHAPTER`.

    Attributes:
        name: what `--only` takes; the subsystem's name.
        title: heading of its section.
        question: what a user with that problem says.
    """

    name: str
    title: str
    question: str

    def requires(self) -> Sequence[Missing]:
        """What is missing on this machine; empty = ready. Must not import what it looks for."""

    def run(self, context: Context) -> ChapterResult:
        """Check, measure, and return plain data. An exception marks the chapter as failed."""

    def present(self, result: ChapterResult, section: Section) -> None:
        """Add texts, tables and figures to the report, from `result` alone."""


def missing_packages(needs: Iterable[tuple[str, str, str]]) -> tuple[Missing, ...]:
    """Which packages are not installed, found without importing them.

    Args:
        needs: `(module, package, install)`: the module to look for, the package that holds it as pip knows it, and the
            command that installs it.

    >>> missing_packages([("json", "json", ""), ("no_such_module", "nothing", "pip install nothing")])
    (Missing(package='nothing', install='pip install nothing'),)
    """
    return tuple(
        Missing(package, install) for module, package, install in needs if importlib.util.find_spec(module) is None
    )


def require_chapter(candidate: object, where: str) -> Chapter:
    """Return `candidate` if it is a chapter.

    Raises:
        TypeError: it lacks an attribute or method of `Chapter`.
    """
    if not isinstance(candidate, Chapter):
        raise TypeError(
            message(
                "tour",
                f"{where} must define CHAPTER with name, title, question, requires, run and present",
                describe(candidate),
                "See edgeops/tour/chapter.py.",
            )
        )
    return candidate
