# SPDX-License-Identifier: Apache-2.0
"""Puts the commands together: every module of this package without a leading underscore adds its own.

Such a module defines `register(app: typer.Typer) -> None`. It is imported for every command, `--help` included, so it
imports what its commands need inside of them.
"""

from __future__ import annotations

import importlib
import pkgutil

import typer

import edgeops.cli as package
from edgeops._version import __version__


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edgeops {__version__}")
        raise typer.Exit


def build() -> typer.Typer:
    """The application with all commands."""
    app = typer.Typer(
        help="Native kernels and drop-in modules that make PyTorch models train, adapt and run on small machines.",
        epilog="Exit codes: 0 done, 1 the work failed, 2 wrong use.",
        pretty_exceptions_enable=False,
        add_completion=False,
    )

    @app.callback(invoke_without_command=True)
    def start(
        context: typer.Context,
        version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    ) -> None:
        if context.invoked_subcommand is None:
            from .info import show

            show(json=False)

    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):
            importlib.import_module(f"{package.__name__}.{info.name}").register(app)
    return app
