# SPDX-License-Identifier: Apache-2.0
"""What benchmark records look like to a reader: terminal tables, and pair-by-pair ratios between any two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.registry import Workload
from edgeops.perf import Ratio, Record, paired_ratio


@dataclass(frozen=True)
class Group:
    """The records of one interleaved run of one case, by candidate."""

    workload: str
    case: str
    records: dict[str, Record]

    def ratio(self, baseline: str, candidate: str) -> Ratio:
        """How many times faster `candidate` is than `baseline`, pair by pair."""
        return paired_ratio(self.records[baseline].samples, self.records[candidate].samples)

    @property
    def any(self) -> Record:
        """One of the records, for what they share."""
        return next(iter(self.records.values()))


def groups(records: Iterable[Record]) -> list[Group]:
    """Records put together by run, in the order of their first appearance.

    Raises:
        ValueError: a record without a run id.
    """
    found: dict[str, Group] = {}
    for record in records:
        run = record.notes.get("run")
        if not isinstance(run, str):
            raise ValueError(
                f"groups: every record needs notes['run']; got none for {record.workload} {record.case}. "
                "Write records with bench.run."
            )
        group = found.setdefault(run, Group(record.workload, record.case, {}))
        group.records[record.candidate] = record
    return list(found.values())


def milliseconds(seconds: float) -> str:
    """Three significant digits with a unit that fits.

    >>> milliseconds(0.01234), milliseconds(4.2e-6)
    ('12.3 ms', '4.20 µs')
    """
    for scale, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * scale >= 1 or unit == "µs":
            value = seconds * scale
            return f"{value:.{max(0, 2 - max(0, len(str(int(value))) - 1))}f} {unit}"
    raise AssertionError("unreachable: the last unit fits everything")


def percent(share: float | None) -> str:
    """A share as a percentage, empty where unknown.

    >>> percent(0.756)
    '76 %'
    """
    return "" if share is None else f"{100 * share:.0f} %"


def megabytes(count: int | None) -> str:
    """Bytes in MB, empty where unknown.

    >>> megabytes(2_500_000)
    '2.5 MB'
    """
    return "" if count is None else f"{count / 1e6:.1f} MB"


COLUMNS = ("case", "candidate", "time", "IQR", "against baseline", "GFLOP/s", "roof", "memory")


def rows(group: Group) -> list[tuple[str, ...]]:
    """One row a candidate, in the columns of `COLUMNS`."""
    made: list[tuple[str, ...]] = []
    for record in group.records.values():
        samples = record.samples
        made.append(
            (
                group.case,
                record.candidate,
                milliseconds(samples.median),
                percent(samples.iqr / samples.median),
                "" if record.ratio is None else str(record.ratio),
                "" if record.gflops is None else f"{record.gflops:.1f}",
                percent(record.roof_share),
                megabytes(record.peak_memory),
            )
        )
    return made


def _console() -> Any:
    try:
        from rich.console import Console
    except ImportError as error:
        from edgeops._common.errors import missing_extra

        raise missing_extra("bench", "rich", "cli") from error
    console = Console()
    # Piped into a file there is no width to fit; 80 columns would break every cell in two.
    return console if console.is_terminal else Console(width=120)


def show_workloads(found: Iterable[Workload]) -> None:
    """Print the workloads and their ops."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("workload", "ops", "what", title="workloads")
    for entry in found:
        table.add_row(*(escape(text) for text in (entry.name, ", ".join(entry.ops), entry.summary)))
    _console().print(table)


def show_records(records: Sequence[Record]) -> None:
    """Print one table a workload."""
    from rich.markup import escape
    from rich.table import Table

    console = _console()
    made: dict[str, Table] = {}
    for group in groups(records):
        shared = group.any
        if group.workload not in made:
            env = shared.environment
            made[group.workload] = Table(
                title=f"{group.workload} ({env.cpu}, {env.isa}, {env.threads} thread(s), torch {env.torch})",
                caption=f"baseline: {shared.baseline}; {shared.samples.clock} clock, "
                f"{len(shared.samples.seconds)} interleaved rounds, median and quartiles",
            )
            for index, name in enumerate(COLUMNS):
                made[group.workload].add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
        table = made[group.workload]
        for row in rows(group):
            table.add_row(*map(escape, row))
        table.add_section()
    for table in made.values():
        console.print(table)


@contextmanager
def progress() -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
    """A progress bar for a run: `(step, tell)` for `bench.run.run`."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=_console()) as bar:
        task = bar.add_task("getting ready", total=1)
        yield (
            lambda title, done, total: bar.update(task, description=title, completed=done, total=total),
            lambda text: bar.console.print(text, highlight=False),
        )
