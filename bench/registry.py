# SPDX-License-Identifier: Apache-2.0
"""What a benchmark is: a workload with its cases, candidates, correctness gate, and counts of useful work.

A workload is described once, in `bench/<subsystem>/<name>.py`, as an entry of that file's `WORKLOADS`. The runner, the
checks, the README tables and the op-contract test (`ops_covered`) all read it from here.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SUITES = ("smoke", "full", "gpu")


class Unavailable(RuntimeError):
    """A workload or case cannot run on this machine; the text says what is missing."""


@dataclass(frozen=True)
class Case:
    """One input of a workload.

    Args:
        name: such as `"CoLA/32"`.
        source: where the shapes come from, in words.
        lengths: tokens per sequence, empty where the workload is not ragged.
        params: further sizes, JSON values.
        synthetic: whether `lengths` were drawn because the real list is absent.
    """

    name: str
    source: str
    lengths: tuple[int, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    synthetic: bool = False


def _same(result: Any) -> Tensor:
    return result


@dataclass(frozen=True)
class Candidate:
    """One way to do the work.

    Args:
        run: the timed call, without arguments.
        view: turns its result into the form of `Built.expected` for the gate; not timed.
        note: how it was tuned, such as the form of mask or the micro-batch that won.
        gate: compare its result with the reference; off only for work that is timed as a yardstick.
        default: run without being asked for; slow peers that only inform are shown on request.
    """

    run: Callable[[], Any]
    view: Callable[[Any], Tensor] = _same
    note: str = ""
    gate: bool = True
    default: bool = True


@dataclass(frozen=True)
class Built:
    """A case made ready: candidates on the same input, the expected result, and the useful work of one call.

    Args:
        candidates: name -> `Candidate`; must hold the workload's `ours` and `baseline`.
        expected: computes the reference result with the readable twin, usually in float64.
        tolerance: largest allowed absolute difference from `expected`.
        shapes: sizes by name, JSON values.
        dtype: of the inputs.
        flops: useful floating-point operations of a call, or `None`.
        bytes: useful bytes moved by a call, or `None`.
    """

    candidates: Mapping[str, Candidate]
    expected: Callable[[], Tensor]
    tolerance: float
    shapes: Mapping[str, Any]
    dtype: str = "float32"
    flops: float | None = None
    bytes: float | None = None

    def chosen(self, names: Sequence[str] | None = None) -> dict[str, Candidate]:
        """The candidates to run: the defaults, or those named.

        Raises:
            ValueError: a name that is not a candidate.
        """
        if names is None:
            return {name: c for name, c in self.candidates.items() if c.default}
        unknown = [name for name in names if name not in self.candidates]
        if unknown:
            raise ValueError(
                f"Built.chosen: candidates must be among {', '.join(self.candidates)}; got {unknown}. Drop the others."
            )
        return {name: c for name, c in self.candidates.items() if name in names}


@dataclass(frozen=True)
class Workload:
    """A benchmark described once.

    Args:
        name: unique; what records, tables and the command line call it.
        ops: names in `torch.ops.edgeops` that it measures, the public ones.
        summary: one line for humans.
        ours: name of our candidate.
        baseline: name of the candidate that records give ratios against.
        cases: suite name -> its cases.
        build: makes a case ready for the given device; raises `Unavailable` where it cannot.
        threads: whether its candidates set thread counts themselves, so that the runner must not.
    """

    name: str
    ops: tuple[str, ...]
    summary: str
    ours: str
    baseline: str
    cases: Callable[[str], Sequence[Case]]
    build: Callable[[Case, torch.device], Built]
    threads: bool = False


class GateFailed(AssertionError):
    """A candidate's result differs from the reference: nothing is timed."""


def check_gate(workload: Workload, case: Case, built: Built, names: Sequence[str] | None = None) -> dict[str, float]:
    """Largest absolute difference of each candidate from the reference.

    Raises:
        GateFailed: a difference above the tolerance, another shape, or a value that is not finite.
    """
    expected = built.expected()
    worst = {}
    for name, candidate in built.chosen(names).items():
        if not candidate.gate:
            continue
        got = candidate.view(candidate.run())
        where = f"{workload.name}, {case.name}, candidate {name!r}"
        if got.shape != expected.shape:
            raise GateFailed(f"{where}: the result must have shape {tuple(expected.shape)}; got {tuple(got.shape)}.")
        difference = (got.double().cpu() - expected.double().cpu()).abs()
        worst[name] = float(difference.max()) if difference.numel() else 0.0
        if not worst[name] <= built.tolerance:
            raise GateFailed(
                f"{where}: the result must be within {built.tolerance:g} of the reference; got a difference of "
                f"{worst[name]:g}. Nothing was timed: fix the candidate first."
            )
    return worst


def _modules() -> Iterator[str]:
    import bench

    for found in pkgutil.walk_packages(bench.__path__, prefix="bench."):
        if not found.ispkg and found.name.count(".") >= 2 and ".ladders" not in found.name:
            yield found.name


@functools.cache
def workloads() -> dict[str, Workload]:
    """All workloads by name, from every `bench/<subsystem>/*.py` that has `WORKLOADS`.

    Raises:
        ValueError: two workloads of one name.
    """
    found: dict[str, Workload] = {}
    for name in _modules():
        for workload in getattr(importlib.import_module(name), "WORKLOADS", ()):
            if workload.name in found:
                raise ValueError(
                    f"workloads: names must be unique; got {workload.name!r} twice, again in {name}. Rename one."
                )
            found[workload.name] = workload
    return dict(sorted(found.items()))


def workload(name: str) -> Workload:
    """The workload called `name`, or the one that measures the op of that name.

    Raises:
        ValueError: neither exists.
    """
    known = workloads()
    if name in known:
        return known[name]
    for candidate in known.values():
        if name in candidate.ops:
            return candidate
    raise ValueError(f"workload: must be one of {', '.join(known)}; got {name!r}. See `python -m bench.run --list`.")


def ops_covered() -> frozenset[str]:
    """Names in `torch.ops.edgeops` that have a benchmark entry."""
    return frozenset(op for entry in workloads().values() for op in entry.ops)
