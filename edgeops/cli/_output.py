# SPDX-License-Identifier: Apache-2.0
"""What commands print and how they end: tables for people, JSON for machines, errors in one line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print the same facts as JSON.")]


def out() -> Console:
    """Standard output, for results."""
    return Console(highlight=False)


def err() -> Console:
    """Standard error, for progress and messages."""
    return Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on standard output; figures that are not finite are refused."""
    typer.echo(json.dumps(data, indent=2, allow_nan=False))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table whose cells are shown as they are, brackets included; figures are set flush right."""
    cells = [[str(cell) for cell in row] for row in rows]
    made = Table(
        title=escape(title), title_justify="left", title_style="bold", header_style="bold", box=box.SIMPLE_HEAD
    )
    for index, name in enumerate(columns):
        figures = bool(cells) and all(row[index][:1].isdigit() or not row[index] for row in cells)
        made.add_column(escape(name), justify="right" if figures else "left", overflow="fold", no_wrap=index == 0)
    for row in cells:
        made.add_row(*map(escape, row))
    return made


def wrong_use(message: str) -> typer.BadParameter:
    """The error for arguments that make no sense: prints the usage and leaves with 2."""
    return typer.BadParameter(message)


@contextmanager
def failing_with_1() -> Iterator[None]:
    """Turn failures that are no defect of the program into one line on standard error and exit code 1.

    Anything else keeps its traceback (Python then leaves with 1 as well).
    """
    try:
        yield
    except (ImportError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
