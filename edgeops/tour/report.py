# SPDX-License-Identifier: Apache-2.0
"""The HTML report of a tour: a summary on top, one section per chapter, the machine at the end."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from edgeops._common import missing_extra
from edgeops.perf.report import Report, Section

if TYPE_CHECKING:
    from .runner import Outcome, Tour


def require_report() -> None:
    """Fail now, not after minutes of measuring, where the report cannot be drawn.

    Raises:
        ImportError: a package of the `cli` extra is not installed.
    """
    for module in ("jinja2", "markdown_it", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise missing_extra("edgeops tour", module, "cli")


def said(outcome: Outcome) -> str:
    """One line on how a chapter went: its answer, its error, or what is missing."""
    if outcome.result is not None:
        return outcome.result.headline
    if outcome.missing:
        return "; ".join(f"needs {m.package}: {m.install}" for m in outcome.missing)
    return outcome.error or ""


def _chapter(outcome: Outcome, section: Section) -> None:
    section.text(f"*{outcome.chapter.question}*")
    if outcome.result is not None:
        section.text(outcome.result.headline)
        outcome.chapter.present(outcome.result, section)
    elif outcome.missing:
        section.text("Not run: a package is missing.")
        section.table(("package", "install"), [(m.package, m.install) for m in outcome.missing])
    else:
        section.text(f"**Failed.**\n\n```text\n{outcome.trace or outcome.error}\n```")


def write_report(tour: Tour) -> Path:
    """Write `report.html` into the folder of the tour and return its path."""
    report = Report("edgeops tour")
    top = report.section("Summary")
    top.text(
        "Each chapter runs one subsystem of edgeops on real input and measures it against what one would have used "
        "otherwise, in the same run on the same machine."
        + (" **This was a quick run: its figures are rough.**" if tour.config.quick else "")
    )
    for outcome in tour.outcomes:
        top.text(f"- **{outcome.chapter.name}**, {outcome.status}, {outcome.seconds:.0f} s. {said(outcome)}")
    for outcome in tour.outcomes:
        _chapter(outcome, report.section(outcome.chapter.title))
    machine = report.section("Machine and versions")
    machine.table(
        ("what", "value"),
        [(f.name, _shown(getattr(tour.environment, f.name))) for f in fields(tour.environment)],
        "The machine id is a hash of the hardware; no host name is stored.",
    )
    machine.text(
        "The records behind every figure are in `records.jsonl` beside this page, one JSON object a line. Repeat: "
        f"`edgeops tour --seed {tour.config.seed}{' --quick' if tour.config.quick else ''}`."
    )
    return report.write(tour.report)


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
