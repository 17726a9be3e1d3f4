# SPDX-License-Identifier: Apache-2.0
"""`edgeops drift run`: what drift costs on a stream of yours, and what each way of answering it would have given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeops._common import message

from ._output import AsJson, err, failing_with_1, out, print_json, table, wrong_use

if TYPE_CHECKING:
    from rich.progress import Progress

    from edgeops.drift.evaluation.methods import Settings
    from edgeops.drift.streams import DriftStream

_WHO = "edgeops drift run"
_TABLES = (".csv", ".arff", ".parquet", ".gz", ".zip", ".bz2", ".xz")
_USUAL = "Oblivious,Standard,DS-A,DS-D"


def _refused(rule: str, got: str, advice: str) -> typer.BadParameter:
    return wrong_use(message(_WHO, rule, got, advice))


def _listed(given: str, known: tuple[str, ...]) -> list[str]:
    """Names out of a list with commas, whatever their case."""
    by_lower = {name.lower(): name for name in known}
    names = [part.strip() for part in given.split(",") if part.strip()]
    for name in names:
        if name.lower() not in by_lower:
            raise _refused(f"methods must be of {', '.join(known)}", repr(name), "Separate them by commas.")
    if not names:
        raise _refused(f"methods must be of {', '.join(known)}", "none", "Leave the option out for the usual ones.")
    return list(dict.fromkeys(by_lower[name.lower()] for name in names))


def _source(
    name: str, data: Path | None, batch: int | None, columns: dict[str, Any], scale: bool
) -> tuple[Callable[[int], DriftStream], Settings]:
    """What draws the stream of a seed, and its settings."""
    from dataclasses import replace

    from edgeops.drift.evaluation.methods import FILE_SETTINGS, STREAMS, Settings
    from edgeops.drift.streams import read_csv, read_stream
    from edgeops.drift.streams.files import READERS

    path = Path(name)
    readers = {known.lower(): known for known in READERS}
    if path.suffix.lower() in _TABLES:
        if not path.is_file():
            raise _refused("the table must be there", f"{name}, no such file", "Check the path.")
        if columns["label"] is None:
            raise _refused("a table needs --label", "none", "Name the column of the labels.")
        whole = read_csv(path, **columns, batches=1)
        settings = Settings()
    elif data is not None and name.lower() in readers:
        known = readers[name.lower()]
        whole = read_stream(known, data)
        usual = STREAMS[known.lower()].settings if known.lower() in STREAMS else Settings()
        settings = FILE_SETTINGS.get(known, usual)
        scale = scale and known == "Weather"
        batch = batch or whole.batch_size
    elif name.lower() in STREAMS:
        made = STREAMS[name.lower()]
        return lambda seed: made.stream(seed, batch), made.settings
    else:
        rule = f"needs a table ({', '.join(_TABLES[:3])}) or one of {', '.join(STREAMS)}"
        advice = f"With --data also {', '.join(READERS)}."
        raise _refused(rule, repr(name), advice)
    size = batch or max(1, len(whole.x) // 100)
    if size > len(whole.x):
        raise _refused(f"--batch must be at most the table's {len(whole.x)} rows", str(size), "Ask for less.")
    stream = replace(whole, batches=len(whole.x) // size, drifts=whole.drifts if batch == whole.batch_size else ())
    scaled = stream.standardised() if scale else stream
    return lambda seed: scaled, settings


def _load(path: Path, choices: dict[str, Any]) -> dict[str, Any]:
    """The evaluations put away in a file, where it was made with the same choices."""
    import torch

    try:
        kept = torch.load(path, weights_only=True)
        same, evaluations = kept["choices"], kept["evaluations"]
    except OSError:
        raise
    except Exception as error:  # what is no such file fails to be one in many ways
        raise _refused("--resume needs what --save wrote", path.name, "Pass such a file.") from error
    other = [f"{name} {same.get(name)!r}, not {choices[name]!r}" for name in choices if same.get(name) != choices[name]]
    if other:
        raise _refused("--resume needs the choices that --save was given", "; ".join(other), "Give the same ones.")
    found: dict[str, Any] = evaluations
    return found


def _save(path: Path, choices: dict[str, Any], evaluations: dict[str, Any]) -> None:
    """Whole or not at all."""
    import io
    import os

    import torch

    states = {name: evaluation.state_dict() for name, evaluation in evaluations.items()}
    partial = path.with_name(path.name + ".partial")
    held = io.BytesIO()
    torch.save({"choices": choices, "evaluations": states}, held)
    partial.write_bytes(held.getvalue())
    os.replace(partial, path)


def _show(report: Any, done: int, whole: int) -> None:
    from edgeops.drift.evaluation.report import CONDUCT, COST, QUALITY

    stream = report.stream
    places = ", ".join(map(str, stream.drifts)) or "unknown batches"
    title = f"{stream.name}: {done} batches of {stream.batch_size:,}, {stream.x.shape[1]} features; drifts at {places}"
    console = out()
    console.print(table(title, *report.part(QUALITY)))
    console.print(table("what was done for it", *report.part(CONDUCT)))
    console.print(table("what it took", *report.part(COST)))
    if done < whole:
        console.print(f"{whole - done} batches are left: go on with --resume.", markup=False)
    console.print(_conclusion(report), markup=False)


def _conclusion(report: Any) -> str:
    best = min(map(report.line, report.methods), key=lambda line: line.error)
    rule = min(report.lines[:2], key=lambda line: line.error)
    if rule.error <= best.error:
        return f"=> {rule.method} ({rule.error:.4f}), which learns nothing, is better here than {best.method}"
    return f"=> {best.method} has the least error of these: {best.error:.4f}"


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="Streams whose distribution changes.", no_args_is_help=True)
    app.add_typer(group, name="drift")

    @group.callback()
    def drift() -> None:
        pass

    @group.command()
    def run(
        stream: Annotated[
            str, typer.Argument(help="A table (.csv, .arff, .parquet) with --label; or a generator, such as sine1.")
        ],
        label: Annotated[str | None, typer.Option(help="The table's column of labels.")] = None,
        time: Annotated[str | None, typer.Option(help="The table's column of time; else rows are in order.")] = None,
        positive: Annotated[str | None, typer.Option(help="The label that counts as 1, where there are many.")] = None,
        drop: Annotated[list[str] | None, typer.Option(help="A column that is no feature; may be repeated.")] = None,
        scale: Annotated[
            bool, typer.Option("--scale/--no-scale", help="Scale a table's features by its first batch.")
        ] = True,
        data: Annotated[
            Path | None, typer.Option(exists=True, file_okay=False, help="Folder of the experiments' files.")
        ] = None,
        model: Annotated[str, typer.Option(help="lr or mlp.")] = "lr",
        methods: Annotated[str, typer.Option(help="With commas between them.")] = _USUAL,
        batch: Annotated[int | None, typer.Option(min=1, help="Points a batch; else a hundredth.")] = None,
        delta: Annotated[float | None, typer.Option(min=0, help="Rise of the risk that starts a trial.")] = None,
        eta: Annotated[float | None, typer.Option(help="Step size of logistic regression.")] = None,
        mu: Annotated[float | None, typer.Option(help="Its regulariser.")] = None,
        seeds: Annotated[int, typer.Option(min=1, help="Runs of each method.")] = 1,
        delay: Annotated[int, typer.Option(min=0, help="Batches by which labels come late.")] = 0,
        fixed: Annotated[
            bool, typer.Option("--fixed/--no-fixed", help="Also look for the best fixed policy in hindsight (lr).")
        ] = True,
        until: Annotated[int | None, typer.Option(min=1, help="Stop after so many batches.")] = None,
        save: Annotated[Path | None, typer.Option(dir_okay=False, help="Put the learners away in this file.")] = None,
        resume: Annotated[
            Path | None, typer.Option(exists=True, dir_okay=False, help="Go on from a file of --save, same choices.")
        ] = None,
        plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw the errors as .png, .svg, .pdf.")] = None,
        smooth: Annotated[int, typer.Option(min=1, help="Batches of the plot's running means.")] = 1,
        json: AsJson = False,
    ) -> None:
        """Predict each batch before its labels are shown, learn from them, and compare methods."""
        from dataclasses import replace

        from rich.progress import Progress

        from edgeops.drift.evaluation import Evaluation
        from edgeops.drift.evaluation.methods import METHODS, fixed_policies, learner_of
        from edgeops.drift.evaluation.plots import plot_report
        from edgeops.drift.evaluation.report import Report

        columns = {"label": label, "time": time, "positive": positive, "drop": tuple(drop or ())}
        names = _listed(methods, METHODS)
        with failing_with_1():
            try:
                draw, settings = _source(stream, data, batch, columns, scale)
                given = {"eta": eta, "mu": mu, "delta": delta}
                settings = replace(settings, model=model, **{k: v for k, v in given.items() if v is not None})
                streams = [draw(seed) for seed in range(seeds)]
                evaluations = {}
                for seed, whole in enumerate(streams):
                    ready = whole.with_constant()
                    for name in names:
                        learner = learner_of(name, ready, settings, seed)
                        evaluations[f"{name}/{seed}"] = Evaluation(learner, ready, name, seed=seed, delay=delay)
                choices = {
                    "stream": Path(stream).name.lower(),
                    **{name: list(v) if isinstance(v, tuple) else v for name, v in columns.items()},
                    "points": len(streams[0].x),
                    "batch": streams[0].batch_size,
                    "scale": scale,
                    "seeds": seeds,
                    "methods": names,
                    "delay": delay,
                    **vars(settings),
                }
                if resume is not None:
                    for name, state in _load(resume, choices).items():
                        evaluations[name].load_state_dict(state)
                whole_length = len(streams[0])
                last = min(until or whole_length, whole_length)
                with Progress(console=err(), transient=True) as bars:
                    for name, evaluation in evaluations.items():
                        evaluation.advance(max(last, evaluation.t), _bar(bars, name, last))
                if save is not None:
                    _save(save, choices, evaluations)
                done = min(evaluation.t for evaluation in evaluations.values())
                shown = [_first(whole, done) for whole in streams]
                policies = (
                    [run for seed, part in enumerate(shown) for run in fixed_policies(part, settings, seed)]
                    if fixed and model == "lr"
                    else []
                )
                report = Report(shown[0], [evaluation.run for evaluation in evaluations.values()], policies)
                if plot is not None:
                    _draw(plot_report(report, smooth=smooth), plot)
            except (TypeError, ValueError, NotImplementedError) as error:
                raise wrong_use(str(error)) from error
        if json:
            print_json({**report.to_dict(), "settings": vars(settings), "delay": delay, "left": whole_length - done})
        else:
            _show(report, done, whole_length)


def _bar(bars: Progress, name: str, total: int) -> Callable[[int, int], None]:
    bar = bars.add_task(name, total=total)
    return lambda done, _: bars.update(bar, completed=done)


def _first(stream: DriftStream, batches: int) -> DriftStream:
    """The first batches of a stream."""
    from dataclasses import replace

    if batches == len(stream):
        return stream
    n = batches * stream.batch_size
    drifts = tuple(t for t in stream.drifts if t < batches)
    return replace(stream, x=stream.x[:n], y=stream.y[:n], batches=batches, drifts=drifts)


def _draw(figure: Any, path: Path) -> None:
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise _refused("--plot must end in .png, .svg or .pdf", path.name, "Choose one.")
    figure.savefig(path, dpi=150, facecolor="white")
