# SPDX-License-Identifier: Apache-2.0
"""The timeline of one offloaded step: what each resource does when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeops.perf.report import Section

_ROWS = ("down", "cpu", "up", "compute")


def draw_timeline(section: Section, events: Sequence[Sequence[Any]], name: str) -> None:
    """Bars over time, a row a resource.

    Args:
        section: of the report.
        events: (resource, stage, layer, start, end), seconds.
        name: of the way.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 2.2), layout="constrained")
    axes = figure.subplots()
    for row, resource in enumerate(_ROWS):
        spans = [(start, end - start) for kind, _, _, start, end in events if kind == resource]
        axes.broken_barh(spans, (row - 0.4, 0.8), edgecolor="white", linewidth=0.3)
    axes.set_yticks(range(len(_ROWS)), ["link down", "CPU update", "link up", "apply"])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_title(name)
    section.figure(figure, "One step, from its first compressed gradient to the last update applied (emulated).")
