# SPDX-License-Identifier: Apache-2.0
"""Bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest

from edgeops.tour.progress import RichProgress

console = pytest.importorskip("rich.console", reason="rich is not installed (extra: cli)")


def drawn(terminal: bool) -> str:
    file = io.StringIO()
    with RichProgress(2, console.Console(file=file, force_terminal=terminal, width=90)) as progress:
        progress.begin("ragged")
        step = progress.step("timing")
        step(3, 4)
        progress.end()
    return file.getvalue()


def test_on_a_terminal_both_bars_show_where_they_are():
    seen = drawn(terminal=True)
    assert "ragged: timing" in seen
    assert "3/4" in seen
    assert "1/2" in seen


def test_elsewhere_one_line_a_step():
    assert drawn(terminal=False) == "ragged: timing\n"
