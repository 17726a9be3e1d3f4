# SPDX-License-Identifier: Apache-2.0
"""The newest benchmark records as one HTML page with plots.

python -m bench.report --out bench/results/report.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import registry, table
from bench.render import footer, load, newest
from bench.run import RESULTS
from edgeops import perf
from edgeops.perf import plots
from edgeops.perf.report import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _names(found: Sequence[table.Group], entry: registry.Workload) -> list[str]:
    """The candidates with the baseline last, so that leaving it out keeps everybody's colour."""
    return sorted(found[0].records, key=lambda name: name == entry.baseline)


def _speed(found: Sequence[table.Group], entry: registry.Workload) -> Figure:
    """Speed of every candidate against the baseline, with quartiles."""
    names = _names(found, entry)
    ratios = {n: [g.ratio(entry.baseline, n) if n in g.records else None for g in found] for n in names}
    rounds = len(found[0].any.samples.seconds)
    return plots.bars(
        [group.case for group in found],
        {
            name: [None if r is None else r.median for r in row]
            for name, row in ratios.items()
            if name != entry.baseline
        },
        title=entry.summary,
        ylabel=f"time of {entry.baseline} / time",
        whiskers={name: [None if r is None else (r.low, r.high) for r in row] for name, row in ratios.items()},
        levels={f"{entry.baseline} = 1": 1.0},
        note=f"{rounds} interleaved rounds, median and quartiles",
    )


def _rate(found: Sequence[table.Group], entry: registry.Workload) -> Figure:
    """Share of the roof of every candidate."""
    names = _names(found, entry)
    return plots.bars(
        [group.case for group in found],
        {n: [100 * (g.records[n].roof_share or 0.0) if n in g.records else None for g in found] for n in names},
        title="share of the roof measured in the same rounds",
        ylabel="%",
        levels={"roof": 100.0},
    )


def _fill(section: Section, found: Sequence[table.Group], entry: registry.Workload) -> None:
    section.text(footer(found)).figure(_speed(found, entry))
    if found[0].any.roof_share is not None:
        section.figure(_rate(found, entry))
    section.table(table.COLUMNS, [row for group in found for row in table.rows(group)])


def build(records: Sequence[perf.Record]) -> perf.Report:
    """A page with one section a workload that has records."""
    page = perf.Report("edgeops benchmarks")
    for entry in registry.workloads().values():
        for name in (entry.name, f"{entry.name}@gpu"):
            found = newest(records, name)
            if found:
                _fill(page.section(name), found, entry)
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0 done, 2 wrong use."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="Benchmark records as an HTML page.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=RESULTS / "report.html")
    given = parser.parse_args(argv)
    try:
        print(build(load(given.results)).write(given.out))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
