# SPDX-License-Identifier: Apache-2.0
"""`edgeops info`: versions, instruction set, which fast paths are on and why others are off."""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

from ._diagnosis import diagnose
from ._output import AsJson, out, print_json


def show(json: bool) -> None:
    """Print the diagnosis."""
    found = diagnose()
    if json:
        print_json(found)
        return
    width = max(len(name) for facts in found.values() for name in facts)
    for part, facts in found.items():
        out().print(f"[bold]{part}[/bold]")
        lines = Table.grid(padding=(0, 2))
        lines.add_column(min_width=width + 2)
        lines.add_column(overflow="fold")
        for name, value in facts.items():
            lines.add_row(f"  {escape(name)}", escape(value))
        out().print(lines)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def info(json: AsJson = False) -> None:
        """Versions, instruction set, which fast paths are on and why others are off."""
        show(json)
