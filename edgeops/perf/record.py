# SPDX-License-Identifier: Apache-2.0
"""The one result record of edgeops, and its file format: one JSON object a line.

A record is complete on its own: what was run, on what, how often, against what, and which share of the machine it used.
Reading is strict. A file with a torn or edited line is reported with its name and line number and never half used.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .environment import Environment
from .stats import Ratio, Samples, paired_ratio

LABELS = ("measured", "emulated", "simulated")
SCHEMA = 1


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Record:
    """One candidate of one workload on one case.

    Args:
        workload: what was run, such as `"ragged_attention"`.
        case: which input of it, such as `"CoLA/32"`.
        candidate: whose implementation, such as `"edgeops"` or `"sdpa loop"`.
        shapes: sizes by name, JSON values only.
        source: where the shapes come from, in words.
        dtype: such as `"float32"`.
        environment: machine, versions, commit, thread count.
        samples: seconds per call, one a round.
        label: `"measured"`, `"emulated"` or `"simulated"`.
        baseline: name of the candidate the ratio is against, or `None`.
        ratio: baseline time / own time, pair by pair; `None` without a baseline.
        flops: useful floating-point operations of a call (multiply and add counted apart), or `None`.
        bytes: useful bytes moved by a call, or `None`.
        roof_gflops: sgemm rate measured in the same run on the same clock, GFLOP/s, or `None`.
        roof_gbps: rate of a copy that moves as many bytes, measured in the same run on the same clock, GB/s, or `None`.
        paired_roof_share: median over the rounds of own rate / roof rate of the same round, or `None`.
        peak_memory: bytes above the level before the call, or `None`.
        notes: further figures or remarks by name, JSON values only.
        time: when, UTC, ISO 8601.

    Derived: `median` and `iqr` (seconds), `gflops`, `gbps`, `roof_share` (0..1).

    Raises:
        ValueError: an unknown label, an empty name, a figure that is not finite and positive, or a ratio without a
            baseline.
    """

    workload: str
    case: str
    candidate: str
    shapes: Mapping[str, Any]
    source: str
    dtype: str
    environment: Environment
    samples: Samples
    label: str = "measured"
    baseline: str | None = None
    ratio: Ratio | None = None
    flops: float | None = None
    bytes: float | None = None
    roof_gflops: float | None = None
    roof_gbps: float | None = None
    paired_roof_share: float | None = None
    peak_memory: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    time: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise ValueError(
                f"Record: label must be one of {', '.join(LABELS)}; got {self.label!r}. Say how it came about."
            )
        for name in ("workload", "case", "candidate", "source", "dtype"):
            if not getattr(self, name):
                raise ValueError(f"Record: {name} must not be empty; got {getattr(self, name)!r}. Name it.")
        for name in ("flops", "bytes", "roof_gflops", "roof_gbps", "paired_roof_share"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"Record: {name} must be positive and finite; got {value}. Pass None where it is unknown."
                )
        if self.peak_memory is not None and self.peak_memory < 0:
            raise ValueError(
                f"Record: peak_memory must be 0 or more bytes; got {self.peak_memory}. Pass None if unknown."
            )
        if (self.ratio is None) != (self.baseline is None):
            raise ValueError(
                f"Record: baseline and ratio belong together; got baseline={self.baseline!r}, ratio={self.ratio}. "
                "Use Record.against to fill both."
            )

    @property
    def median(self) -> float:
        """Median, seconds per call."""
        return self.samples.median

    @property
    def iqr(self) -> float:
        """Interquartile range, seconds per call."""
        return self.samples.iqr

    @property
    def gflops(self) -> float | None:
        """Useful 1e9 FLOP/s at the median."""
        return None if self.flops is None else self.flops / self.median / 1e9

    @property
    def gbps(self) -> float | None:
        """Useful 1e9 bytes/s at the median."""
        return None if self.bytes is None else self.bytes / self.median / 1e9

    @property
    def roof_share(self) -> float | None:
        """Share of the roof of the same run: of sgemm where flops are known, of a copy where only bytes are.

        The median over the rounds where `paired_roof_share` holds it, else a quotient of medians.
        """
        if self.paired_roof_share is not None:
            return self.paired_roof_share
        if self.gflops is not None:
            return None if self.roof_gflops is None else self.gflops / self.roof_gflops
        return None if self.gbps is None or self.roof_gbps is None else self.gbps / self.roof_gbps

    def against(self, name: str, baseline: Samples) -> Record:
        """This record with `baseline` and the pair-by-pair `ratio` filled in."""
        return dataclasses.replace(self, baseline=name, ratio=paired_ratio(baseline, self.samples))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the derived figures included for readers without this library."""
        data = dataclasses.asdict(self)
        data["samples"]["seconds"] = list(self.samples.seconds)
        derived = {k: getattr(self, k) for k in _DERIVED}
        return {"schema": SCHEMA, **data, "derived": derived}

    @staticmethod
    def from_dict(data: object) -> Record:
        """Inverse of `to_dict`, exact.

        Raises:
            ValueError: missing or unknown fields, wrong types, another schema version.
        """
        if isinstance(data, dict) and data.get("schema") != SCHEMA:
            raise ValueError(
                f"Record.from_dict: schema must be {SCHEMA}; got {data.get('schema')!r}. Re-run the benchmark."
            )
        top = _fields(data, Record, extra=("schema", "derived"))
        top["environment"] = Environment(**_fields(top["environment"], Environment))
        top["samples"] = Samples(**_fields(top["samples"], Samples))
        if top["ratio"] is not None:
            top["ratio"] = Ratio(**_fields(top["ratio"], Ratio))
        return Record(**top)


_DERIVED = ("median", "iqr", "gflops", "gbps", "roof_share")


def _accepts(hint: object, value: object) -> bool:
    """Whether a JSON value fits a field annotated with `hint`; nested records are judged where they are built."""
    if isinstance(hint, types.UnionType):
        return any(_accepts(part, value) for part in typing.get_args(hint))
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is Mapping:
        return isinstance(value, dict)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list) and all(_accepts(float, v) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)  # type: ignore[arg-type]


def _fields(data: object, of: type, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a JSON object as keyword arguments for `of`, after checking their names and types."""
    if not isinstance(data, dict):
        raise ValueError(
            f"{of.__name__}: a JSON object is needed; got {type(data).__name__}. Write it with append_jsonl."
        )
    hints = typing.get_type_hints(of)
    wanted = {f.name for f in dataclasses.fields(of)}
    missing, unknown = sorted(wanted - set(data)), sorted(set(data) - wanted - set(extra))
    if missing or unknown:
        raise ValueError(
            f"{of.__name__}: exactly the known fields are allowed; got missing {missing}, unknown {unknown}. "
            "The line was edited or comes from another version: re-run the benchmark."
        )
    for name in wanted:
        if not _accepts(hints[name], data[name]):
            raise ValueError(
                f"{of.__name__}: field {name} must be {hints[name]}; got {data[name]!r}. "
                "The line was edited: re-run the benchmark."
            )
    return {name: data[name] for name in wanted}


def _encode(records: Iterable[Record]) -> str:
    return "".join(json.dumps(r.to_dict(), allow_nan=False, sort_keys=True) + "\n" for r in records)


def replace_text(path: str | Path, text: str) -> None:
    """Write a text file atomically: readers see the old content or the new one, never a part, whatever interrupts.

    The parent folder is created; the file is UTF-8.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; results and reports are for everybody the folder is for.
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write records to a JSON-lines file, atomically, replacing what was there."""
    replace_text(path, _encode(records))


def append_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Add records to a JSON-lines file, atomically: all of them or none. One writer at a time.

    Args:
        path: created with its parent folder where absent.
        records: kept in order.

    Raises:
        ValueError: the file ends in a torn line.
    """
    target = Path(path)
    before = target.read_text(encoding="utf-8") if target.exists() else ""
    if before and not before.endswith("\n"):
        line = before.count("\n") + 1
        raise ValueError(
            f"append_jsonl: the file must end with a complete line; got a torn line {line} in {target}. Delete it."
        )
    replace_text(target, before + _encode(records))


def _no_constant(name: str) -> float:
    raise ValueError(f"a figure is {name}")


def read_jsonl(path: str | Path) -> list[Record]:
    """Read every record of a JSON-lines file.

    Raises:
        ValueError: a line that is not a complete, unaltered record; the message names the file and the line.
        FileNotFoundError: no such file.
    """
    target = Path(path)
    records = []
    lines = target.read_text(encoding="utf-8").split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(Record.from_dict(json.loads(line, parse_constant=_no_constant)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"read_jsonl: every line must be one complete record; got {target}, line {number}: {error} "
                "Delete that line or run the benchmark again."
            ) from error
    return records
