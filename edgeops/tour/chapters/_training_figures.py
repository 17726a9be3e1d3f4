# SPDX-License-Identifier: Apache-2.0
"""The figures of chapters that train: losses step by step, and what a step costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeops.perf import Record
    from edgeops.perf.report import Section


def draw_losses(section: Section, losses: Mapping[str, Sequence[float]], caption: str) -> None:
    """Curves of the losses, by name."""
    from edgeops.perf.plots import lines

    curves = {name: (list(range(1, len(y) + 1)), y) for name, y in losses.items()}
    section.figure(lines(curves, title="Loss", xlabel="step", ylabel="cross entropy", markers=False), caption)


def draw_steps(section: Section, records: Sequence[Record], caption: str) -> None:
    """Bars of the seconds of a step, with quartiles."""
    from edgeops.perf.plots import bars

    figure = bars(
        [r.candidate for r in records],
        {"s per step": [r.median for r in records]},
        whiskers={"s per step": [(r.samples.low, r.samples.high) for r in records]},
        title="What a step costs",
        ylabel="seconds",
    )
    section.figure(figure, caption)
