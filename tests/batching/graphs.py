# SPDX-License-Identifier: Apache-2.0
"""Graphs that the tests of scheduling share."""

from __future__ import annotations

import functools

from hypothesis import strategies as st

from edgeops.batching.schedule import Graph


@st.composite
def graphs(draw: st.DrawFn, max_nodes: int = 24, max_types: int = 5, lone: bool = True) -> Graph:
    """Random DAGs: nodes with up to three arguments, now and then the same one twice; some lone types."""
    count = draw(st.integers(0, max_nodes))
    kinds = draw(st.integers(1, max_types))
    types = [draw(st.integers(0, kinds - 1)) for _ in range(count)]
    starts, args = [0], []
    for node in range(count):
        args += draw(st.lists(st.integers(0, node - 1), max_size=3)) if node else []
        starts.append(len(args))
    single = draw(st.sets(st.integers(0, kinds - 1), max_size=1)) if lone else set()
    # keys in another order than the numbers, so that a mix-up of the two shows
    return Graph(types, starts, args, lone=single, keys=[f"{7 * t % 5} type {t}".encode() for t in range(kinds)])


def two_phases(trees: int = 8, height: int = 5) -> Graph:
    """The adversarial graph of App. A.4: trees, then trees in which inner and output types swap their roles.

    Combs stand for the trees: an inner node reads the one below and a leaf, and has an output.
    """
    nodes: list[tuple[str, list[int]]] = []
    gate: list[int] = []

    def add(kind: str, *operands: int) -> int:
        nodes.append((kind, list(operands)))
        return len(nodes) - 1

    for inner, output in (("I", "O"), ("O", "I")):
        outputs = []
        for tree in range(trees):
            state = add("leaf", *gate)
            for _ in range(height + tree % 3):
                state = add(inner, state, add("leaf", *gate))
                outputs.append(add(output, state))
        gate = [add("sum", *outputs)]
    return Graph.of(nodes)


def fewest(graph: Graph) -> int:
    """The fewest batches of any schedule of a graph without lone types, by enumeration.

    Whole ready sets suffice: a node that runs earlier in a batch of its type delays nothing.
    """
    bounds, args = graph.arg_start.tolist(), graph.args.tolist()
    needs = [set(args[bounds[v] : bounds[v + 1]]) for v in range(len(graph))]
    types = graph.types.tolist()

    @functools.cache
    def rest(ran: frozenset[int]) -> int:
        if len(ran) == len(types):
            return 0
        ready: dict[int, set[int]] = {}
        for node in range(len(types)):
            if node not in ran and needs[node] <= ran:
                ready.setdefault(types[node], set()).add(node)
        return 1 + min(rest(ran | batch) for batch in ready.values())

    return rest(frozenset())
