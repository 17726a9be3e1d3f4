# SPDX-License-Identifier: Apache-2.0
"""Tables, figures and words of the ragged chapter, from its stored data alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeops.perf import Ratio, Record
from edgeops.tour.chapter import ChapterResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from edgeops.perf.report import Section

STOCK = "padded"
SORTED = "sorted by length"
PACKED = "packed, SDPA loop"
OURS = "edgeops convert"
SIZE = (8.4, 3.6)
NAMES = (STOCK, SORTED, PACKED, OURS)
MAIN = "all sentences"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _mib(amount: int | None) -> str:
    return "" if amount is None else f"{amount / 2**20:.1f} MiB"


def _to_sorted(record: Record) -> Ratio | None:
    found = record.notes.get("ratio_to_sorted")
    return None if found is None or record.candidate == SORTED else Ratio(**found)


def table(records: Sequence[Record]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The chapter's table for a terminal: every candidate on all sentences, medians."""
    columns = ("how", "sentences/s", "vs padded", "vs sorted", "of roof", "memory")
    rows = []
    for r in records:
        if r.case == MAIN:
            to_sorted = _to_sorted(r)
            rows.append(
                (
                    r.candidate,
                    f"{r.notes['sentences_per_second']:.1f}",
                    "1.00x" if r.ratio is None else f"{r.ratio.median:.2f}x",
                    "1.00x" if to_sorted is None else f"{to_sorted.median:.2f}x",
                    _percent(r.roof_share),
                    _mib(r.peak_memory),
                )
            )
    return columns, tuple(rows)


def _wide(records: Sequence[Record]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The same with quartiles, for the page."""
    columns = ("how", "sentences/s", "against padded", "against sorted", "share of roof", "peak memory")
    rows: list[tuple[str, ...]] = [
        (
            r.candidate,
            f"{r.notes['sentences_per_second']:.1f}",
            str(r.ratio or "1.00x"),
            str(_to_sorted(r) or "1.00x"),
            _percent(r.roof_share),
            _mib(r.peak_memory),
        )
        for r in records
        if r.case == MAIN
    ]
    return columns, rows


def _limits(records: Sequence[Record]) -> list[tuple[str, ...]]:
    return [
        (
            f"{r.case}, batch of {r.shapes['batch']}",
            r.candidate,
            f"{1e3 * r.median:.2f} ms",
            str(r.ratio or "1.00x"),
            _percent(r.roof_share),
        )
        for r in records
        if r.case != MAIN
    ]


def _measured(records: Sequence[Record], name: str) -> str:
    return next(str(r.ratio) for r in records if r.case == MAIN and r.candidate == name)


def _histogram(facts: Any) -> Figure:
    from edgeops.perf.plots import histogram

    real, computed = facts["lengths"], facts["computed"][STOCK]
    return histogram(
        {"real tokens": real, "computed when padded": computed},
        title="What a sentence has, and what is computed for it",
        xlabel="tokens per sentence",
        ylabel="share of sentences, %",
        bins=30,
        marks={"mean, real": sum(real) / len(real), "mean, computed": sum(computed) / len(computed)},
        note=f"{len(real):,} sentences, batches of {facts['batch']}",
        size=SIZE,
    )


def _time_by_length(facts: Any) -> Figure:
    from edgeops.perf.plots import lines

    return lines(
        {name: (facts["points"][name]["tokens"], facts["points"][name]["ms"]) for name in NAMES},
        title="What a sentence costs",
        xlabel="mean real tokens per sentence of the batch",
        ylabel="ms per sentence",
        note=f"single batches of {facts['batch']}, median of {facts['point_rounds']}",
        size=SIZE,
    )


def _roof_bars(records: Sequence[Record], facts: Any) -> Figure:
    from edgeops.perf.plots import bars

    main = {r.candidate: r for r in records if r.case == MAIN}
    flops = next(iter(main.values())).flops or 0.0
    rate = {name: flops / r.median / 1e9 for name, r in main.items()}
    spans = {name: (flops / r.samples.high / 1e9, flops / r.samples.low / 1e9) for name, r in main.items()}
    return bars(
        list(main),
        {"useful GFLOP/s": list(rate.values())},
        whiskers={"useful GFLOP/s": list(spans.values())},
        title="How much of the machine does useful work",
        ylabel="GFLOP/s on real tokens",
        levels={"sgemm roof, same run": next(iter(main.values())).roof_gflops or 0.0},
        note=f"{facts['rounds']} interleaved rounds, median and quartiles",
        size=SIZE,
    )


def present(result: ChapterResult, section: Section) -> None:
    """Write the chapter into `section`."""
    facts, records = result.facts, result.records
    main = next(r for r in records if r.case == MAIN)
    lengths = facts["lengths"]
    tokens = sum(lengths)
    padded = {name: sum(computed) for name, computed in facts["computed"].items()}
    waste = {name: 1 - tokens / count for name, count in padded.items()}
    section.text(
        f"Sentence embeddings of {main.source}: {tokens:,} real tokens, {min(lengths)} to {max(lengths)} a sentence. "
        f"Padded to the longest of its {facts['batch']} neighbours, the same text is {padded[STOCK]:,} tokens, so "
        f"**{100 * waste[STOCK]:.0f} % of the work is padding**; sorted first, {100 * waste[SORTED]:.0f} %."
    )
    section.table(
        *_wide(records),
        f"Medians and quartiles of {facts['rounds']} rounds, {facts['clock']} clock, {main.environment.threads} "
        f"thread{'s' if main.environment.threads > 1 else ''}.",
    )
    section.text(
        "All candidates ran in one interleaved run and ratios are taken pair by pair. Pooling and normalisation are "
        "timed, tokenisation is not. Share of roof: operations on real tokens only, over the "
        f"{main.roof_gflops:.0f} GFLOP/s that a 1024 x 1024 matrix product reached in the same rounds. Peak memory: "
        "the most expensive batch, weights not counted."
    )
    section.figure(
        _histogram(facts), "The distance between the two lines is what padding adds to the average sentence."
    )
    section.figure(
        _time_by_length(facts),
        "Single batches. A padded sentence costs what the longest of its batch costs; a packed one what it holds.",
    )
    section.figure(
        _roof_bars(records, facts),
        "Bars count operations on real tokens only; the dashed line is what a large matrix product reaches here.",
    )
    predicted = facts["predicted"]
    measured = {"sort": _measured(records, SORTED), "pack": _measured(records, OURS)}
    section.text(
        f"**What `explain` said before anything ran**, from the lengths, the sizes of the model and rates measured in "
        f"a second: *{predicted['choice']}*, because {predicted['reason']}."
    )
    section.table(
        ("way", "predicted", "measured"),
        [(way, f"{predicted['speedup'][way]:.2f}x", found) for way, found in measured.items()],
        "Speed-up over padding in file order.",
    )
    section.text(
        "**Where packing has little to give.** With all lengths equal there is no padding to save, and a sentence on "
        "its own has none either: what remains is the cost or gain of the other kernels."
    )
    section.table(("case", "how", "time", "against padded", "share of roof"), _limits(records))
    section.text("**Checked before timing**, on every sentence:")
    section.table(("check", "found", "limit"), [(check.name, check.value, check.limit) for check in result.checks])
