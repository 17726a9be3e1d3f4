# SPDX-License-Identifier: Apache-2.0
"""What a session did: nodes, batches, flushes and where they came from, bytes copied, times."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

from edgeops._common.errors import message
from edgeops.batching.schedule import Graph, lower_bound

_MANY_TYPES = 64
_MANY_BATCHES = 20  # fewer say nothing about how well a program batches


@dataclass
class Report:
    """Counts of a session so far; times in seconds.

    Attributes:
        nodes: cell calls that ran.
        types: kinds of calls, the most in any flush.
        batches: kernel batches.
        single: batches of one call.
        flushes: how often recorded calls were run.
        sites: where flushes were asked for, `file:line` outside of edgeops, and how often.
        gathered_bytes: operands of cells without native kernels that were copied row by row into one tensor.
        schedule_s: choosing batches and table rows.
        execute_s: running them, forward.
    """

    nodes: int = 0
    types: int = 0
    batches: int = 0
    single: int = 0
    flushes: int = 0
    sites: dict[str, int] = field(default_factory=dict)
    gathered_bytes: int = 0
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
