# SPDX-License-Identifier: Apache-2.0
"""Schedules of graphs seen before: fixed topologies, epochs over the same data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgeops._common.errors import describe, message
from edgeops.batching._runtime import runtime
from edgeops.batching.graph import Graph
from edgeops.batching.policy import FSMPolicy
from edgeops.batching.schedule import Schedule, schedule


class PlanCache:
    """Keeps the schedules of the graphs used last, by structure: types, edges and lone types.

    A graph found by its hash is compared in full, so a collision costs time and never gives a wrong schedule.

    Args:
        capacity: schedules kept, from 1.
        hash_bits: of the hash, 0..64; fewer only to test collisions.

    >>> cache = PlanCache()
    >>> plans = [cache.schedule(Graph.of([("leaf", ()), ("root", (0,))])) for _ in range(3)]
    >>> plans[0] is plans[2], cache.hits, cache.misses
    (True, 2, 1)
    """

    def __init__(self, capacity: int = 64, *, hash_bits: int = 64) -> None:
        if not isinstance(capacity, int) or not 1 <= capacity < 2**31:
            raise ValueError(
                message("PlanCache", "capacity must lie in 1..2147483647", describe(capacity), "Use e.g. 64.")
            )
        if not isinstance(hash_bits, int) or not 0 <= hash_bits <= 64:
            raise ValueError(message("PlanCache", "hash_bits must lie in 0..64", describe(hash_bits), "Leave it out."))
        self.capacity = capacity
        self._plans = runtime().PlanCache(capacity, hash_bits)

    def schedule(
        self,
        graph: Graph,
        scheduler: str = "sufficient",
        *,
        policy: FSMPolicy | None = None,
        beam_width: int | None = None,
        costs: Sequence[float] | npt.NDArray | None = None,
    ) -> Schedule:
        """As `edgeops.batching.schedule.schedule`, from memory where an equal graph was scheduled in the same way.

        Raises:
            TypeError, ValueError: as `schedule`.
        """
        if not isinstance(graph, Graph):
            raise TypeError(
                message("PlanCache.schedule", "needs a Graph", describe(graph), "Build one, e.g. with Graph.of(nodes).")
            )
        how: tuple[object, ...] = (scheduler, beam_width)
        if costs is not None:
            how += (np.asarray(costs, np.float64).tolist(),)
        if policy is not None:
            # a policy knows types by their keys, which are no part of the structure
            how += (getattr(policy, "_serial", repr(policy)), graph.keys)
        tag = repr(how)
        found = self._plans.find(graph._native, tag)
        if found is None:
            found = schedule(graph, scheduler, policy=policy, beam_width=beam_width, costs=costs)
            self._plans.keep(graph._native, tag, found)
        return found

    def clear(self) -> None:
        """Forget all schedules; the counts stay."""
        self._plans.clear()

    @property
    def hits(self) -> int:
        """Calls answered from memory."""
        return int(self._plans.hits)

    @property
    def misses(self) -> int:
        """Calls that had to schedule."""
        return int(self._plans.misses)

    def __len__(self) -> int:
        return len(self._plans)
