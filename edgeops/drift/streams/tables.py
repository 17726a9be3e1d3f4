# SPDX-License-Identifier: Apache-2.0
"""Any table with a label as a stream: CSV, ARFF, Parquet or a pandas frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgeops._common import message, missing_extra
from edgeops.drift.streams.stream import DriftStream

if TYPE_CHECKING:
    from pandas import DataFrame


def _pandas(who: str) -> Any:
    try:
        import pandas
    except ImportError as error:
        raise missing_extra(who, "pandas", "drift") from error
    return pandas


def _refuse(who: str, rule: str, got: str, advice: str) -> ValueError:
    return ValueError(message(who, rule, got, advice))


def read_csv(
    path: str | Path,
    *,
    label: str,
    time: str | None = None,
    positive: object = None,
    drop: Sequence[str] = (),
    batches: int = 100,
    name: str | None = None,
) -> DriftStream:
    """A labelled table as a stream: `.arff` and `.parquet` by what they are called, anything else as CSV with a head.

    Args:
        path: the file; CSV may be compressed.
        label: column of the labels.
        time: column by which rows are put in order, stably; `None` where they are. It is no feature.
        positive: the label that counts as 1, all others as -1; `None` where there are two, of which the larger one is.
        drop: columns that are no features.
        batches: how many.
        name: what tables call the stream; the file's name without.

    Returns:
        A stream of float64: columns of numbers as they are, all others as one indicator a value, in the order of the
        columns and of their values.

    Raises:
        ValueError: no such column, a missing value, not two labels, or what `DriftStream` refuses.
        ImportError: pandas is not installed, or pyarrow for Parquet, or scipy for ARFF.
        OSError: the file cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "a.csv")
    ...     _ = file.write_text("day,wind,rain\\n2,N,yes\\n1,S,no\\n")
    ...     stream = read_csv(file, label="rain", time="day", batches=2)
    >>> stream.x.tolist(), stream.y.tolist()
    ([[0.0, 1.0], [1.0, 0.0]], [-1.0, 1.0])
    """
    pandas, path = _pandas("read_csv"), Path(path)
    if path.suffix == ".arff":
        frame = _arff(pandas, path)
    elif path.suffix == ".parquet":
        frame = pandas.read_parquet(path)
    else:
        try:
            frame = pandas.read_csv(path)
        except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
            first = str(error).strip().splitlines()[0]
            rule = "needs rows of equal length under a head"
            raise _refuse("read_csv", rule, f"{path.name}: {first}", "Mend the file.") from error
    return from_frame(
        frame, label=label, time=time, positive=positive, drop=drop, batches=batches, name=name or path.stem
    )


def _arff(pandas: Any, path: Path) -> DataFrame:
    try:
        from scipy.io import arff
    except ImportError as error:
        raise missing_extra("read_csv", "scipy", "drift") from error
    try:
        rows, _ = arff.loadarff(str(path))
    except (arff.ParseArffError, NotImplementedError, StopIteration, ValueError) as error:
        raise _refuse("read_csv", "needs an ARFF file with a head", f"{path.name}: {error}", "Or write CSV.") from error
    frame = pandas.DataFrame(rows)
    for column in frame.columns:
        if len(frame) and isinstance(frame[column].iloc[0], bytes):
            frame[column] = frame[column].str.decode("utf-8")
    return frame


def from_frame(
    frame: DataFrame,
    *,
    label: str,
    time: str | None = None,
    positive: object = None,
    drop: Sequence[str] = (),
    batches: int = 100,
    name: str = "table",
) -> DriftStream:
    """A pandas frame as a stream; arguments and errors as those of `read_csv`."""
    who = "read_csv"
    pandas = _pandas(who)
    for column in (label, *([] if time is None else [time]), *drop):
        if column not in frame.columns:
            listed = ", ".join(map(str, frame.columns[:20]))
            raise _refuse(who, f"the table must have a column {column!r}", listed or "no column", "Name one of these.")
    unused = [*drop, label, *([] if time is None else [time])]
    missing = frame.drop(columns=list(drop)).isna().sum()
    if bool(missing.any()):
        counts = ", ".join(f"{column}: {count}" for column, count in missing[missing > 0].items())
        raise _refuse(who, "no value may be missing", counts, "Fill or leave out these rows, or `drop` the column.")
    if time is not None:
        frame = frame.sort_values(time, kind="stable")
    y = _labels(who, frame[label], positive)
    parts = []
    for column in frame.columns.drop(unused):
        values = frame[column]
        if pandas.api.types.is_numeric_dtype(values):
            parts.append(torch.tensor(values.to_numpy(dtype="float64", copy=True))[:, None])
        else:
            codes, _ = pandas.factorize(values, sort=True)
            parts.append(torch.nn.functional.one_hot(torch.tensor(codes)).double())
    if not parts:
        raise _refuse(who, "the table must have a feature beside label and time", "none", "Do not drop them all.")
    x = torch.cat(parts, dim=1)
    if not bool(x.isfinite().all()):
        raise _refuse(who, "features must be finite", "infinite ones", "Leave out these rows.")
    return DriftStream(name, x, y, batches)


def _labels(who: str, values: Any, positive: object) -> Tensor:
    found = sorted(values.unique().tolist(), key=lambda v: (str(type(v)), v))
    shown = ", ".join(map(repr, found[:8])) + (", ..." if len(found) > 8 else "")
    if positive is None:
        if len(found) != 2:
            raise _refuse(who, "there must be two labels", shown, "Say which one is positive; the others are negative.")
        chosen = found[1]
    else:
        chosen = next((v for v in found if v == positive or str(v) == str(positive)), None)
        if chosen is None:
            raise _refuse(who, f"{positive!r} must be a label", shown, "Name one of these.")
    return torch.tensor((values == chosen).to_numpy(dtype="float64", copy=True)) * 2 - 1
