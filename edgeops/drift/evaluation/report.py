# SPDX-License-Identifier: Apache-2.0
"""Methods side by side on one stream, beside what needs no learning at all. Drift spec, sections 8 and 13."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeops._common import message
from edgeops.drift.evaluation import Run, batches_to_recover, recovery, wrong_switches
from edgeops.drift.evaluation.prequential import majority, no_change
from edgeops.drift.streams import DriftStream

COLUMNS = (
    "method",
    "error",
    "spread",
    "kappa",
    "kappa-t",
    "trials",
    "switches",
    "wrong",
    "to switch",
    "to recover",
    "steps",
    "state",
    "CPU s",
)
"""Heads of `Report.rows`.

error: mean over the batches, median over the seeds; spread: largest less smallest over the seeds; kappa: Cohen's;
kappa-t: the share of repeating the last label's error that is avoided; wrong: share of switches that follow no drift;
to switch, to recover: mean batches from a drift to the first switch, and until the error is near the level before;
steps: training steps of all models; state: largest bytes seen.
Where a stream names no drift, nothing is said of wrong switches and of recovery.
"""
QUALITY = ("method", "error", "spread", "kappa", "kappa-t", "to recover")
CONDUCT = ("method", "trials", "switches", "wrong", "to switch")
COST = ("method", "steps", "state", "CPU s")
"""The columns in three parts, for narrow pages."""


@dataclass(frozen=True)
class Line:
    """One method's figures, over its seeds; `None` where a figure has no meaning."""

    method: str
    error: float
    spread: float | None = None
    kappa: float | None = None
    kappa_temporal: float | None = None
    trials: float | None = None
    switches: float | None = None
    wrong: float | None = None
    to_switch: float | None = None
    to_recover: float | None = None
    recovered: float | None = None
    steps: int | None = None
    bytes: int | None = None
    seconds: float | None = None
    seeds: int = 0


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if len(known) == len(values) and known else None


class Report:
    """What a stream's rows of a table say: no change, majority, each method, and the best fixed policy.

    Args:
        stream: what the runs were made on; of several draws of one generator, any: rules need no learning but differ
            a little from draw to draw.
        runs: of any number of methods and seeds; a method's runs keep the order.
        fixed: runs of fixed policies, one row of which is shown: the best in hindsight.

    Raises:
        ValueError: no run, or one of another number of batches.

    >>> import torch
    >>> stream = DriftStream("toy", torch.zeros(4, 1), torch.tensor([1.0, 1.0, -1.0, -1.0]), 2, (1,))
    >>> report = Report(stream, [Run("never", 0, (0.0, 1.0), (2, 2, 0, 0))])
    >>> [(line.method, line.error) for line in report.lines]
    [('no change', 0.5), ('majority', 0.5), ('never', 0.5)]
    """

    def __init__(self, stream: DriftStream, runs: Sequence[Run], fixed: Sequence[Run] = ()) -> None:
        if not runs:
            raise ValueError(message("Report", "a run is needed", "none", "Advance an Evaluation."))
        for run in (*runs, *fixed):
            if len(run.errors) != len(stream):
                rule, got = f"runs must have {len(stream)} batches", f"{len(run.errors)} of {run.method}"
                raise ValueError(message("Report", rule, got, "Advance them to the end."))
        self.stream, self.runs, self.fixed = stream, tuple(runs), tuple(fixed)
        self.no_change = float(no_change(stream).mean())

    def of(self, method: str) -> list[Run]:
        """The runs of one method."""
        return [run for run in self.runs if run.method == method]

    @property
    def methods(self) -> list[str]:
        """Names, in the order of their first runs."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @property
    def best_fixed(self) -> str | None:
        """The fixed policy of the least error in hindsight."""
        names = dict.fromkeys(run.method for run in self.fixed)
        return min(names, key=lambda name: self.line(name).error, default=None)

    @property
    def lines(self) -> list[Line]:
        """All rows, the rules that need no learning first."""
        rules = [
            Line("no change", self.no_change, kappa_temporal=0.0 if self.no_change else None),
            Line("majority", error := float(majority(self.stream).mean()), kappa_temporal=self._temporal(error)),
        ]
        best = self.best_fixed
        last = [] if best is None else [self.line(best)]
        return [*rules, *map(self.line, self.methods), *last]

    def _temporal(self, error: float) -> float | None:
        return None if self.no_change == 0 else 1 - error / self.no_change

    def line(self, method: str) -> Line:
        """One method's row.

        Raises:
            ValueError: no run of it.
        """
        runs = [run for run in (*self.runs, *self.fixed) if run.method == method]
        if not runs:
            listed = ", ".join(self.methods)
            raise ValueError(message("Report.line", f"method must be one of {listed}", repr(method), "Run it first."))
        drifts, batches = self.stream.drifts, len(self.stream)
        errors = [run.error for run in runs]
        switches = sum(len(run.dated) for run in runs)
        wrong = sum(wrong_switches(run.dated, drifts, batches) for run in runs)
        waits = [wait for run in runs for wait in recovery(run.dated, drifts, batches)]
        near = [wait for run in runs for wait in batches_to_recover(run.errors, drifts)]
        back = [wait for wait in near if wait is not None]
        bytes_, steps = _median([run.bytes for run in runs]), _median([run.steps for run in runs])
        return Line(
            method,
            statistics.median(errors),
            max(errors) - min(errors),
            _median([run.kappa for run in runs]),
            self._temporal(statistics.median(errors)),
            statistics.mean(len(run.trials) for run in runs),
            statistics.mean(len(run.switches) for run in runs),
            wrong / switches if switches and drifts else None,
            statistics.mean(waits) if waits and switches else None,
            statistics.mean(back) if back else None,
            len(back) / len(near) if near else None,
            None if steps is None else round(steps),
            None if bytes_ is None else round(bytes_),
            statistics.median(run.seconds for run in runs),
            len(runs),
        )

    def curve(self, method: str) -> list[float]:
        """The median over the seeds of the error of each batch."""
        return [statistics.median(errors) for errors in zip(*(run.errors for run in self.of(method)), strict=True)]

    def part(self, columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
        """Heads and cells of some columns, without those and without rows that hold no figure."""
        rows = self.rows()
        at = [COLUMNS.index(name) for name in columns]
        at = at[:1] + [k for k in at[1:] if any(row[k] for row in rows)]
        return [COLUMNS[k] for k in at], [[row[k] for k in at] for row in rows if any(row[k] for k in at[1:])]

    def rows(self) -> list[tuple[str, ...]]:
        """Cells for a table under `COLUMNS`, empty where a figure has no meaning."""
        return [
            (
                line.method,
                f"{line.error:.4f}",
                _cell(line.spread, ".4f"),
                _cell(line.kappa, ".3f"),
                _cell(line.kappa_temporal, ".3f"),
                _cell(line.trials, ".1f"),
                _cell(line.switches, ".1f"),
                _cell(line.wrong, ".0%"),
                _cell(line.to_switch, ".1f"),
                _recovered(line),
                _cell(line.steps, ","),
                "" if line.bytes is None else f"{line.bytes / 1e6:.2f} MB",
                _cell(line.seconds, ".2f"),
            )
            for line in self.lines
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the stream's facts, the rows, and the errors of every run."""
        stream = self.stream
        return {
            "stream": stream.name,
            "batches": len(stream),
            "batch_size": stream.batch_size,
            "features": stream.x.shape[1],
            "drifts": list(stream.drifts),
            "methods": [vars(line) for line in self.lines],
            "best_fixed": self.best_fixed,
            "runs": [
                {
                    "method": run.method,
                    "seed": run.seed,
                    "errors": list(run.errors),
                    "trials": list(run.trials),
                    "testing": list(run.testing),
                    "switches": list(run.switches),
                }
                for run in self.runs
            ],
        }


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _recovered(line: Line) -> str:
    if line.recovered is None:
        return ""
    share = f"{line.recovered:.0%}"
    return f"never ({share})" if line.to_recover is None else f"{line.to_recover:.1f} ({share})"
