# SPDX-License-Identifier: Apache-2.0
"""The error over time, with drifts, trials and switches marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgeops._common import message

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from edgeops.drift.evaluation.report import Report


def smoothed(errors: Sequence[float], width: int) -> list[float]:
    """The mean of each value and of up to `width - 1` before it.

    >>> smoothed([1.0, 0.0, 0.0], 2)
    [1.0, 0.5, 0.0]
    """
    parts = [errors[max(0, t + 1 - width) : t + 1] for t in range(len(errors))]
    return [sum(part) / len(part) for part in parts]


def error_over_time(
    curves: Mapping[str, Sequence[float]],
    *,
    title: str,
    drifts: Sequence[int] = (),
    testing: Mapping[str, Sequence[int]] | None = None,
    switches: Mapping[str, Sequence[int]] | None = None,
    smooth: int = 1,
    size: tuple[float, float] = (7.4, 4.2),
) -> Figure:
    """A line for each method; drifts as upright lines; below, a row for each method's trials and switches.

    Args:
        curves: name -> error of each batch.
        title: above it.
        drifts: batches.
        testing: name -> batches within a trial, drawn as bars.
        switches: name -> batches at which the model was replaced, drawn as triangles.
        smooth: batches over which the lines are running means.
        size: inches.

    Raises:
        ValueError: no curve, or `smooth` below 1.
        ImportError: matplotlib is not installed.

    >>> figure = error_over_time({"never": [0.1, 0.5]}, title="toy", drifts=[1])
    >>> len(figure.axes[0].lines)
    2
    """
    from edgeops.perf.plots import INK, PALETTE, lines

    if smooth < 1:
        raise ValueError(message("error_over_time", "smooth must be at least 1", str(smooth), "1 draws what is."))
    series = {name: (list(range(len(errors))), smoothed(errors, smooth)) for name, errors in curves.items()}
    note = None if smooth == 1 else f"running means of {smooth} batches"
    figure = lines(
        series, title=title, xlabel="batch", ylabel="share of wrong predictions", markers=False, note=note, size=size
    )
    axes = figure.axes[0]
    for place, line in enumerate(axes.lines):
        line.set_linewidth(1.3)
        line.set_linestyle(("-", "--", "-.")[place // len(PALETTE) % 3])
    for t in drifts:
        axes.axvline(t, color=INK, linestyle=":", linewidth=1.0, zorder=0.5)
    marked = [name for name in curves if (testing or {}).get(name) or (switches or {}).get(name)]
    low, high = axes.get_ylim()
    row = 0.06 * (high - low)
    for place, name in enumerate(marked):
        colour = PALETTE[list(curves).index(name) % len(PALETTE)]
        level = low - row * (place + 0.8)
        spans = [(t - 0.5, 1.0) for t in (testing or {}).get(name, ())]
        axes.broken_barh(spans, (level - 0.25 * row, 0.5 * row), facecolors=colour, alpha=0.45, linewidth=0)
        at = list((switches or {}).get(name, ()))
        axes.plot(at, [level] * len(at), color=colour, marker="^", markersize=5, linestyle="")
    if marked:
        axes.set_ylim(low - row * (len(marked) + 0.5), high)
        axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= high])
    return figure


def plot_report(report: Report, *, smooth: int = 1, seed: int | None = None) -> Figure:
    """`error_over_time` of a report: medians over the seeds, trials and switches of one of them.

    Args:
        report: the runs.
        smooth: as there.
        seed: whose marks to draw; the first one's without.
    """
    stream = report.stream
    marks = {
        name: next((run for run in report.of(name) if run.seed == seed), report.of(name)[0]) for name in report.methods
    }
    return error_over_time(
        {name: report.curve(name) for name in report.methods},
        title=f"{stream.name}: {len(stream)} batches of {stream.batch_size:,}",
        drifts=stream.drifts,
        testing={name: run.testing for name, run in marks.items()},
        switches={name: run.switches for name, run in marks.items()},
        smooth=smooth,
    )
