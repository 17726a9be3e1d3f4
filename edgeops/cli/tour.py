# SPDX-License-Identifier: Apache-2.0
"""`edgeops tour`: every subsystem on real input, one HTML report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._output import AsJson, err, failing_with_1, print_json, table, wrong_use
from ._output import out as console

if TYPE_CHECKING:
    from edgeops.tour import Tour


def _facts(tour: Tour) -> dict[str, object]:
    return {
        "passed": tour.passed,
        "report": str(tour.report),
        "config": asdict(tour.config),
        "environment": asdict(tour.environment),
        "chapters": [outcome.to_dict() for outcome in tour.outcomes],
    }


def _print(tour: Tour) -> None:
    from edgeops.tour.report import said

    for outcome in tour.outcomes:
        if outcome.result is not None:
            console().print(table(outcome.chapter.title, outcome.result.columns, outcome.result.rows))
    console().print(
        table(
            "tour",
            ("chapter", "status", "time", "answer"),
            [
                (o.chapter.name, o.status + (" (kept)" if o.resumed else ""), f"{o.seconds:.0f} s", said(o))
                for o in tour.outcomes
            ],
        )
    )
    console().print(f"report: {tour.report}", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def tour(
        only: Annotated[list[str] | None, typer.Option(help="Run this chapter only; may be repeated.")] = None,
        quick: Annotated[
            bool, typer.Option("--quick", help="Less input, fewer rounds; the figures are rough.")
        ] = False,
        out: Annotated[Path, typer.Option(help="Folder for the report and the records.")] = Path("tour-report"),
        resume: Annotated[
            bool, typer.Option("--resume", help="Keep chapters that a run with this --out finished.")
        ] = False,
        seed: Annotated[int, typer.Option(help="Chooses the sample of the input.")] = 0,
        threads: Annotated[int, typer.Option(help="Threads; more than one wants an idle machine.")] = 1,
        clock: Annotated[
            str | None, typer.Option(help="process (CPU seconds) or wall; default: process for one thread.")
        ] = None,
        json: AsJson = False,
    ) -> None:
        """Run every subsystem on real input, measure it against the alternatives, and write one HTML report."""
        from edgeops import tour as tours
        from edgeops.tour.progress import RichProgress

        try:
            config = tours.TourConfig(quick=quick, seed=seed, threads=threads, clock=clock)
            chapters = tours.select(tours.discover(), only or ())
        except ValueError as error:
            raise wrong_use(str(error)) from error
        try:
            with failing_with_1(), RichProgress(len(chapters), err()) as progress:
                done = tours.run_tour(chapters, config, out, resume=resume, progress=progress)
        except KeyboardInterrupt:
            typer.echo("interrupted: finished chapters are kept; add --resume to go on from there", err=True)
            raise typer.Exit(1) from None
        if json:
            print_json(_facts(done))
        else:
            _print(done)
        raise typer.Exit(0 if done.passed else 1)
