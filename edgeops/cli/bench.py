# SPDX-License-Identifier: Apache-2.0
"""`edgeops bench`: the benchmarks of a source checkout. They are not part of the installed package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

from edgeops._common import message

from ._output import wrong_use


def checkout(start: Path) -> Path | None:
    """The source checkout that holds `start`: the nearest folder upwards with `bench/run.py`, or `None`."""
    return next((p for p in (start, *start.parents) if (p / "bench" / "run.py").is_file()), None)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def bench(context: typer.Context) -> None:
        """Run the benchmarks of a source checkout; arguments go to bench.run (try: edgeops bench --help)."""
        root = checkout(Path.cwd()) or checkout(Path(__file__).resolve().parent)
        if root is None:
            raise wrong_use(
                message(
                    "edgeops bench",
                    "runs in a source checkout, where bench/run.py is",
                    f"none around {Path.cwd()}",
                    "Clone the repository and run it there.",
                )
            )
        raise typer.Exit(subprocess.run([sys.executable, "-m", "bench.run", *context.args], cwd=root).returncode)
