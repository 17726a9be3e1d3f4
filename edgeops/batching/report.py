# SPDX-License-Identifier: Apache-2.0
"""What a session did: nodes, batches, flushes and where they came from, bytes copied, times."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

from edgeops._common.errors import message
from edgeops.batching.schedule import Graph, lower_bound

COPIES = ("weights", "activations", "products", "indices")
_MANY_TYPES = 64
_SITES = 3  # of a summary
_MANY_BATCHES = 20  # fewer say nothing about how well a program batches


@dataclass
class Report:
    """Counts of a session so far; times in seconds of wall time. `print(report)` gives a summary.

    Attributes:
        nodes: cell calls that ran.
        types: kinds of calls, the most in any flush.
        batches: kernel batches.
        single: batches of one call.
        flushes: how often recorded calls were run.
        sites: where flushes were asked for, `file:line` outside of edgeops, and how often.
        cache_hits: flushes whose schedule came from the session's plan cache.
        copied_bytes: what was written to bring operands together, each copy once, forward: `"weights"` joined or packed
            for the kernels, `"activations"` gathered row by row for cells without native kernels, `"products"` with
            inputs that were made ahead of a recurrence and that its steps begin with, `"indices"` of rows and integer
            operands.
        record_s: inside of the `with` block, flushes left out: recording and what else the program does there.
        schedule_s: choosing batches and table rows.
        execute_s: running them, forward.
    """

    nodes: int = 0
    types: int = 0
    batches: int = 0
    single: int = 0
    flushes: int = 0
    sites: dict[str, int] = field(default_factory=dict)
    cache_hits: int = 0
    copied_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COPIES, 0))
    record_s: float = 0.0
    schedule_s: float = 0.0
    execute_s: float = 0.0
    _graphs: list[Graph] = field(default_factory=list, repr=False)
    _warned: bool = field(default=False, repr=False)

    @property
    def lower_bound(self) -> int:
        """Batches that no schedule of these flushes goes below (App. A.3)."""
        return sum(lower_bound(graph) for graph in self._graphs)

    def add_flush(self, graph: Graph, counts: list[int], site: str, schedule_s: float, execute_began: float) -> None:
        """Count one flush that ends now; `counts` are the calls of its batches."""
        self._graphs.append(graph)
        self.nodes += len(graph)
        self.types = max(self.types, len(graph.keys))
        self.batches += len(counts)
        self.single += counts.count(1)
        self.flushes += 1
        self.sites[site] = self.sites.get(site, 0) + 1
        self.schedule_s += schedule_s
        self.execute_s += time.perf_counter() - execute_began
        self._warn()

    def add_copies(self, weights: int, activations: int, products: int, indices: int) -> None:
        """Count the bytes that a flush has copied."""
        for name, size in zip(COPIES, (weights, activations, products, indices), strict=True):
            self.copied_bytes[name] += size

    @property
    def gathered_bytes(self) -> int:
        """Activations that were copied: `copied_bytes["activations"]`."""
        return self.copied_bytes["activations"]

    def _warn(self) -> None:
        """Say once that a program hardly batches, and why that may be."""
        if self._warned:
            return
        if self.types > _MANY_TYPES:
            rule, got = f"more than {_MANY_TYPES} kinds of calls rarely run together", f"{self.types} kinds"
            advice = "Give operands of one shape; use a list operand for what varies in number."
        elif self.batches >= _MANY_BATCHES and self.single > self.batches // 2 and self.flushes > self.batches // 4:
            rule, got = (
                "results asked for one at a time stop batching",
                f"{self.flushes} flushes, most at {self._most()}",
            )
            advice = "Collect values and stack them, or yield them in Session.run."
        else:
            return
        self._warned = True
        warnings.warn(message("batching.session", rule, got, advice), stacklevel=4)

    def _most(self) -> str:
        return max(self.sites, key=lambda site: self.sites[site])

    def as_dict(self) -> dict[str, Any]:
        """All facts, for JSON."""
        facts = {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
        bound = self.lower_bound
        return {**facts, "lower_bound": bound, "batches_over_bound": self.batches / bound if bound else 1.0}

    def __str__(self) -> str:
        bound = self.lower_bound
        over = f"{self.batches / bound:.2f}x the lower bound {bound}" if bound else "nothing ran"
        sites = sorted(self.sites.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{site} ({times}x)" for site, times in sites[:_SITES])
        more = f" and {len(sites) - _SITES} more places" if len(sites) > _SITES else ""
        lines = [
            f"calls     {self.nodes} of {self.types} kinds",
            f"batches   {self.batches}, {self.single} of them of one call; {over}",
            f"flushes   {self.flushes}, {self.cache_hits} with a schedule from the cache"
            + (f"; asked for at {shown}{more}" if sites else ""),
            "copied    " + ", ".join(f"{name} {_size(count)}" for name, count in self.copied_bytes.items()),
            f"time      {1e3 * self.record_s:.2f} ms recording, {1e3 * self.schedule_s:.2f} ms scheduling, "
            f"{1e3 * self.execute_s:.2f} ms running forward",
        ]
        return "\n".join(lines)


def _size(count: int) -> str:
    """Bytes for people.

    >>> _size(999), _size(20480), _size(3_000_000)
    ('999 B', '20.5 kB', '3.0 MB')
    """
    if count < 1000:
        return f"{count} B"
    value, unit = (count / 1e3, "kB") if count < 1e6 else (count / 1e6, "MB")
    return f"{value:.1f} {unit}"
