# SPDX-License-Identifier: Apache-2.0
"""Coarsening: calls that always follow one another are scheduled as one node. ACRoBat's grain size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeops._common.errors import describe, message
from edgeops.batching._runtime import runtime
from edgeops.batching.graph import Graph
from edgeops.batching.schedule import Schedule


class Coarse:
    """A graph whose chains of calls are single nodes, and the way back. See `coarsen`.

    Attributes:
        fine: the graph that was coarsened.
        graph: the coarse graph; the key of a chain's type is the keys of its links, joined by `>`.
    """

    def __init__(self, fine: Graph, native: Any) -> None:
        self._native = native
        self.fine = fine
        after, keys = native.type_after, []
        for kind in native.head_type:
            links = [kind]
            while after[links[-1]] >= 0:
                links.append(after[links[-1]])
            keys.append(b">".join(fine.keys[k] for k in links))
        self.graph = Graph._of_native(native.graph, tuple(keys))

    def expand(self, plan: Schedule) -> Schedule:
        """A schedule of the coarse graph as one of the fine graph: a batch of chains gives one for each link.

        Raises:
            ValueError: a schedule of another graph.
        """
        if plan.graph is not self.graph and len(plan.order) != len(self.graph):
            rule, advice = "needs a schedule of the coarse graph", "Schedule coarse.graph."
            raise ValueError(message("Coarse.expand", rule, f"one of {plan.graph!r}", advice))
        order, start = self._native.expand(plan.order, plan.start)
        return Schedule(self.fine, order, start, plan.scheduler)


def coarsen(graph: Graph) -> Coarse:
    """Make one node of calls that always follow one another: fewer nodes to schedule.

    A type T follows a type S if every node of S is read by one node alone, of type T, and every node of T reads one
    node of S and besides it at most what that reads. The two run as one unit, and so do longer chains. Lone types and
    nodes of different phases stay apart. The fewest batches of any schedule stay the same or fewer: a batch of S can
    wait for the batch of T that reads it, or T run right after S. What a scheduler finds may differ. It pays where
    chains have two calls or more on the average: finding them costs about half of what `"sufficient"` does.

    Raises:
        TypeError: no graph.

    >>> from edgeops.batching import Graph, schedule
    >>> graph = Graph.of([("word", ()), ("word", ()), ("project", (0,)), ("project", (1,)), ("sum", (2, 3))])
    >>> coarse = coarsen(graph)
    >>> coarse.graph, coarse.graph.keys
    (Graph(3 nodes, 2 types, 2 edges), (b"'word'>'project'", b"'sum'"))
    >>> [batch.tolist() for batch in coarse.expand(schedule(coarse.graph))]
    [[0, 1], [2, 3], [4]]
    """
    if not isinstance(graph, Graph):
        raise TypeError(message("coarsen", "needs a Graph", describe(graph), "Build one, e.g. with Graph.of(nodes)."))
    return Coarse(graph, runtime().coarsen(graph._native))


def coarsened(plan: Callable[..., Schedule]) -> Callable[..., Schedule]:
    """`plan`, on the coarse graph."""

    def plan_coarse(graph: Graph, *args: Any, **options: Any) -> Schedule:
        coarse = coarsen(graph)
        return coarse.expand(plan(coarse.graph, *args, **options))

    return plan_coarse
