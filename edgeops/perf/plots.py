# SPDX-License-Identifier: Apache-2.0
"""Figures for reports and the README: histogram, lines, bars. Matplotlib's object interface, no global plotting state.

Every function returns a `matplotlib.figure.Figure`. `svg` turns one into a fragment for a page whose text colour it
takes over, so that the same figure reads on light and on dark ground; `png` writes a file on white.
Matplotlib belongs to the extra `edgeops[cli]` and is imported when a figure is made.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgeops._common.errors import message, missing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito hues, darkened or lightened until each has contrast 3:1 or more on both white and near-black.
PALETTE = ("#2f81c7", "#d9822b", "#2a9d78", "#c8528f", "#8a6fd1", "#b08d1f", "#5b8a8a")
INK = "#5c636b"
_LEVEL_STYLES = ("--", ":", "-.")
_FONTS = "'DejaVu Sans', Verdana, 'Segoe UI', sans-serif"


def _new(title: str, xlabel: str, ylabel: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("edgeops.perf.plots", "matplotlib", "cli") from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.set_title(title, color=INK, fontsize=11, fontweight="bold", loc="left", pad=20)
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    axes.set_ylabel(ylabel, color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8, length=3, which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
        spine.set_linewidth(0.8)
    axes.grid(axis="y", color=INK, alpha=0.18, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _finish(figure: Figure, axes: Axes, levels: Mapping[str, float] | None, note: str | None) -> Figure:
    """Horizontal reference lines, the legend under the plot, and the note that says how many samples there are."""
    for (name, value), style in zip((levels or {}).items(), itertools.cycle(_LEVEL_STYLES)):
        axes.axhline(value, color=INK, linestyle=style, linewidth=1.2, label=name, zorder=1.5)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=8
        )
        for text in legend.get_texts():
            text.set_color(INK)
    if note:
        axes.annotate(
            note, (0.0, 1.0), xytext=(0, 6), xycoords="axes fraction", textcoords="offset points",
            ha="left", va="bottom", fontsize=7.5, color=INK,
        )  # fmt: skip
    return figure


def _need(who: str, fine: bool, rule: str, got: object, advice: str) -> None:
    if not fine:
        raise ValueError(message(who, rule, str(got), advice))


def _edges(values: Sequence[float], bins: int) -> list[float]:
    """Equal bins; for whole numbers of a whole width, or some bins would hold more integers than others."""
    low, high = min(values), max(values)
    if all(float(v).is_integer() for v in values):
        step = max(1, math.ceil((high - low + 1) / bins))
        return [low - 0.5 + step * i for i in range(math.ceil((high - low + 1) / step) + 1)]
    return [low + (high - low) * i / bins for i in range(bins + 1)] if high > low else [low - 0.5, low + 0.5]


def histogram(
    values: Mapping[str, Sequence[float]] | Sequence[float],
    *,
    title: str,
    xlabel: str,
    ylabel: str = "share of samples, %",
    bins: int | Sequence[float] = 40,
    marks: Mapping[str, float] | None = None,
    note: str | None = None,
    size: tuple[float, float] = (6.4, 3.4),
) -> Figure:
    """Histogram of one or several sets of values, in percent of each set.

    Args:
        values: the values, or name -> values; several sets share the bins.
        title, xlabel, ylabel: texts; give the unit in the label.
        bins: number of bins (>= 1) or their edges.
        marks: name -> x of vertical lines, such as a mean and a maximum.
        note: small text under the title, such as the sample count; default: the counts.
        size: inches.

    Raises:
        ValueError: an empty set.
        ImportError: matplotlib is not installed.

    >>> len(histogram([1, 2, 2, 3], title="lengths", xlabel="tokens", bins=3).axes[0].patches) > 0
    True
    """
    sets = dict(values) if isinstance(values, Mapping) else {"": values}
    _need("histogram", bool(sets) and all(len(v) for v in sets.values()), "every set needs a value", "an empty set",
          "Leave that set out.")  # fmt: skip
    figure, axes = _new(title, xlabel, ylabel, size)
    edges = _edges([x for data in sets.values() for x in data], bins) if isinstance(bins, int) else list(bins)
    for (name, data), colour in zip(sets.items(), itertools.cycle(PALETTE)):
        weights = [100.0 / len(data)] * len(data)
        alpha = 0.85 if len(sets) == 1 else 0.5
        axes.hist(data, bins=edges, weights=weights, color=colour, alpha=alpha, label=name or None)
    for (name, x), style in zip((marks or {}).items(), itertools.cycle(_LEVEL_STYLES)):
        axes.axvline(x, color=INK, linestyle=style, linewidth=1.2, label=f"{name}: {x:,.4g}")
    counts = ", ".join(f"n = {len(v):,}" + (f" ({name})" if name else "") for name, v in sets.items())
    return _finish(figure, axes, None, counts if note is None else note)


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    levels: Mapping[str, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = True,
    markers: bool = True,
    note: str | None = None,
    size: tuple[float, float] = (6.4, 3.6),
) -> Figure:
    """One line a series, with optional bands (quartiles) and horizontal reference lines (a roof).

    Args:
        series: name -> `(x, y)` of equal lengths.
        title, xlabel, ylabel: texts; give the unit in the label.
        bands: name of a series -> `(low, high)` along its x.
        levels: name -> y of a horizontal line, such as `{"sgemm roof": 71.0}`.
        log_x, log_y: logarithmic axes, base 2 and 10.
        from_zero: start a linear y axis at zero, so that heights compare.
        markers: draw the points.
        note: small text under the title, such as the sample count.
        size: inches.

    Raises:
        ValueError: no series, or an x and a y of different lengths.
        ImportError: matplotlib is not installed.

    >>> figure = lines({"ours": ([8, 64], [1.0, 3.0])}, title="time", xlabel="tokens", ylabel="ms", levels={"r": 4})
    >>> len(figure.axes[0].lines)
    2
    """
    _need("lines", bool(series), "at least one series is needed", "none", "Pass name -> (x, y).")
    figure, axes = _new(title, xlabel, ylabel, size)
    for (name, (x, y)), colour, marker in zip(series.items(), itertools.cycle(PALETTE), itertools.cycle("osD^vP")):
        _need("lines", len(x) == len(y), f"x and y of {name!r} must be equally long", f"{len(x)} and {len(y)}",
              "Drop the points that lack a partner.")  # fmt: skip
        axes.plot(x, y, color=colour, linewidth=1.8, marker=marker if markers else "", markersize=4, label=name)
        if bands and name in bands:
            low, high = bands[name]
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    if log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    if log_y:
        axes.set_yscale("log")
    elif from_zero:
        top = max([*(max(y) for _, y in series.values() if len(y)), *(levels or {}).values()], default=1.0)
        axes.set_ylim(0, top * 1.08)
    return _finish(figure, axes, levels, note)


def bars(
    categories: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    title: str,
    ylabel: str,
    xlabel: str = "",
    whiskers: Mapping[str, Sequence[tuple[float, float] | None]] | None = None,
    levels: Mapping[str, float] | None = None,
    values: bool | None = None,
    note: str | None = None,
    size: tuple[float, float] | None = None,
) -> Figure:
    """Grouped bars from zero: one group a category, one colour a series, whiskers for the quartiles.

    Args:
        categories: group names, left to right.
        series: name -> one height per category; `None` leaves a gap (not measured).
        title, xlabel, ylabel: texts; give the unit in the label.
        whiskers: name of a series -> `(low, high)` per category, in the unit of the heights.
        levels: name -> y of a horizontal line: the baseline of a ratio, a roof.
        values: write each height on its bar; default: where there are at most 16 bars.
        note: small text under the title, such as `"9 interleaved rounds, median and quartiles"`.
        size: inches; default grows with the number of bars.

    Raises:
        ValueError: no category or series, or a series of another length.
        ImportError: matplotlib is not installed.

    >>> figure = bars(["CoLA"], {"loop": [1.0], "ours": [2.0]}, title="speed-up", ylabel="x", levels={"loop": 1.0})
    >>> [float(p.get_height()) for p in figure.axes[0].patches]
    [1.0, 2.0]
    """
    _need("bars", bool(categories) and bool(series), "at least one category and one series are needed",
          f"{len(categories)} and {len(series)}", "Leave the figure out.")  # fmt: skip
    total = len(categories) * len(series)
    figure, axes = _new(title, xlabel, ylabel, size or (min(12.0, max(5.6, 0.34 * total + 2.0)), 3.6))
    width = 0.8 / len(series)
    for index, ((name, heights), colour) in enumerate(zip(series.items(), itertools.cycle(PALETTE))):
        _need("bars", len(heights) == len(categories), f"series {name!r} needs one height per category",
              f"{len(heights)} for {len(categories)}", "Use None for what was not measured.")  # fmt: skip
        places = [i - 0.4 + width * (index + 0.5) for i in range(len(categories))]
        shown = [(x, h) for x, h in zip(places, heights) if h is not None]
        if not shown:
            continue
        axes.bar([x for x, _ in shown], [h for _, h in shown], width * 0.92, color=colour, label=name)
        spans = (whiskers or {}).get(name) or [None] * len(categories)
        for x, height, span in zip(places, heights, spans):
            if height is None:
                continue
            if span is not None:
                axes.vlines(x, span[0], span[1], color=INK, linewidth=1.1, zorder=3)
            if values or (values is None and total <= 16):
                top = height if span is None else max(height, span[1])
                axes.annotate(f"{height:.3g}", (x, top), xytext=(0, 3), textcoords="offset points",
                              ha="center", va="bottom", fontsize=7.5, color=INK)  # fmt: skip
    axes.set_xticks(range(len(categories)), categories)
    axes.tick_params(axis="x", length=0)
    ends = [span[1] for spans in (whiskers or {}).values() for span in spans if span is not None]
    heights_shown = [h for heights in series.values() for h in heights if h is not None]
    top = max([*heights_shown, *ends, *(levels or {}).values()], default=1.0)
    axes.set_ylim(0, 1.12 * top if top > 0 else 1.0)
    return _finish(figure, axes, levels, note)


def svg(figure: Figure, *, prefix: str = "figure", label: str = "") -> str:
    """The figure as an `<svg>` element for inlining: page's text colour, real text, ids made unique by `prefix`.

    >>> text = svg(lines({"a": ([1], [1])}, title="t", xlabel="x", ylabel="y"), prefix="f1")
    >>> text.startswith("<svg"), "currentColor" in text
    (True, True)
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", _FONTS, text)
    name = _escape(label or figure.axes[0].get_title(loc="left"))
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" style="max-width:100%;height:auto" ', 1)


def _escape(text: str) -> str:
    from html import escape

    return escape(text, quote=True)


def png(figure: Figure, path: str, *, dpi: int = 150) -> None:
    """Write the figure as a PNG file on white."""
    figure.savefig(path, format="png", dpi=dpi, facecolor="white")
