# SPDX-License-Identifier: Apache-2.0
"""What a session did: nodes, batches, flushes, times."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Report:
    """Counts of a session so far; times in seconds.

    Attributes:
        nodes: cell calls that ran.
        types: kinds of calls, the most in any flush.
        batches: kernel batches.
        flushes: how often recorded calls were run.
        schedule_s: choosing batches and table rows.
        execute_s: running them, forward.
    """

    nodes: int = 0
    types: int = 0
    batches: int = 0
    flushes: int = 0
    schedule_s: float = 0.0
    execute_s: float = 0.0

    def add_flush(self, nodes: int, types: int, batches: int, schedule_s: float, execute_began: float) -> None:
        """Count one flush that ends now."""
        self.nodes += nodes
        self.types = max(self.types, types)
        self.batches += batches
        self.flushes += 1
        self.schedule_s += schedule_s
        self.execute_s += time.perf_counter() - execute_began

    def as_dict(self) -> dict[str, Any]:
        """All facts, for JSON."""
        return asdict(self)
