# SPDX-License-Identifier: Apache-2.0
"""The streams of DriftSurf's experiments from their files, preprocessed as there. Drift spec, section 7."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from edgeops._common import message, missing_extra
from edgeops.drift.streams.stream import DriftStream


def read_rows(path: str | Path) -> list[list[str]]:
    """The fields of every row of an ARFF file or of plain comma-separated rows, whatever the file is called.

    A trailing comma counts for nothing, as in the readers of the experiments.

    Raises:
        ImportError: an ARFF file with a header, and scipy is not installed.
    """
    with open(path, newline="") as file:
        first = file.read(1)
        file.seek(0)
        if first not in "@%":
            return [row[:-1] if row[-1] == "" else row for row in csv.reader(file) if row]
    try:
        from scipy.io import arff
    except ImportError as error:
        raise missing_extra("read_rows", "scipy", "drift") from error
    data, _ = arff.loadarff(str(path))
    return [[v.decode() if isinstance(v, bytes) else repr(float(v)) for v in row] for row in data]


def _numbers(rows: list[list[str]], columns: slice) -> Tensor:
    return torch.tensor([[float(v) for v in row[columns]] for row in rows], dtype=torch.float64)


def _labels(rows: list[list[str]], positive: str) -> Tensor:
    return torch.tensor([1.0 if row[-1] == positive else -1.0 for row in rows], dtype=torch.float64)


def sine1(path: str | Path) -> DriftStream:
    """SINE1: 10,000 points of the unit square, labels swapped every 2,000."""
    rows = read_rows(path)
    return DriftStream("SINE1", _numbers(rows, slice(2)), _labels(rows, "p"), 100, (20, 40, 60, 80))


def circles(path: str | Path) -> DriftStream:
    """Circles: 10,000 points, four circles, with the generator's fault that explains its six drifts."""
    rows = read_rows(path)
    return DriftStream("Circles", _numbers(rows, slice(2)), _labels(rows, "p"), 100, (25, 30, 50, 55, 75, 80))


def mixed(path: str | Path) -> DriftStream:
    """Mixed: 100,000 points of two Boolean and two real features, labels swapped every 20,000."""
    rows = read_rows(path)
    flags = torch.tensor([[float(v == "True") for v in row[:2]] for row in rows], dtype=torch.float64)
    x = torch.cat([flags, _numbers(rows, slice(2, 4))], dim=1)
    return DriftStream("Mixed", x, _labels(rows, "p"), 100, (20, 40, 60, 80))


def electricity(path: str | Path) -> DriftStream:
    """Electricity, normalised: the day of the week as 7 indicators, then period, prices, demands, transfer."""
    rows = read_rows(path)
    rows = rows[1:] if rows[0][-1] == "class" else rows
    day = torch.tensor([int(row[1]) - 1 for row in rows])
    x = torch.cat([torch.nn.functional.one_hot(day, 7).double(), _numbers(rows, slice(2, 8))], dim=1)
    return DriftStream("Electricity", x, _labels(rows, "UP"), 34, (20,))


def powersupply(path: str | Path) -> DriftStream:
    """PowerSupply: two loads over their maximum, hour by hour; positive before noon."""
    rows = read_rows(path)
    x = _numbers(rows, slice(2))
    y = torch.tensor([1.0 if int(row[2]) < 12 else -1.0 for row in rows], dtype=torch.float64)
    return DriftStream("PowerSupply", x / x.amax(0), y, 100, (17, 47, 76))


def weather(path: str | Path) -> DriftStream:
    """Weather of 18,159 days, eight readings each, rain or not; the labels lie beside in weather_class.csv.

    Fifty batches of 363 days. The readings keep their units: `DriftStream.standardised` brings them to one scale.
    """
    x = _numbers(read_rows(path), slice(8))
    y = torch.tensor([float(row[0]) for row in read_rows(Path(path).with_name("weather_class.csv"))], dtype=x.dtype)
    return DriftStream("Weather", x, 2 * y - 1, 50)


READERS: dict[str, tuple[str, Callable[[str | Path], DriftStream]]] = {
    "SINE1": ("sine1.arff", sine1),
    "Mixed": ("MIXED.arff", mixed),
    "Circles": ("circles.arff", circles),
    "Electricity": ("electricity-normalized.csv", electricity),
    "PowerSupply": ("powersupply.arff", powersupply),
    "Weather": ("weather_data.csv", weather),
}
"""Name of a set -> its file's name and its reader."""


def read_stream(name: str, folder: str | Path) -> DriftStream:
    """One of `READERS` out of a folder of files named as their authors do.

    Raises:
        ValueError: an unknown set.
        FileNotFoundError: the folder lacks its file.
    """
    if name not in READERS:
        raise ValueError(message("read_stream", f"name must be one of {', '.join(READERS)}", repr(name), "Choose one."))
    file, reader = READERS[name]
    path = Path(folder) / file
    if not path.exists():
        advice = "The sets are in the repository Ashraf-T/DriftSurf, Weather in vlosing/driftDatasets."
        raise FileNotFoundError(message("read_stream", f"the folder must hold {file}", "no such file", advice))
    return reader(path)
