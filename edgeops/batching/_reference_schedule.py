# SPDX-License-Identifier: Apache-2.0
"""Plain twins of the schedulers: the specification of which node runs in which batch.

Each gives a list of batches, a batch being a list of nodes. What the native schedulers keep up to date step by step is
computed anew here at every step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from edgeops.batching.graph import Graph

Batches = list[list[int]]
Rank = tuple[Fraction, int, int]


class Run:
    """A graph part of which has run."""

    def __init__(self, graph: Graph) -> None:
        self.types: list[int] = graph.types.tolist()
        bounds = graph.arg_start.tolist()
        self.args: list[list[int]] = [graph.args[a:b].tolist() for a, b in itertools.pairwise(bounds)]
        self.lone = set(graph.lone)
        self.keys = graph.keys
        self.consumers: list[list[int]] = [[] for _ in self.types]
        for node, args in enumerate(self.args):
            for arg in args:
                self.consumers[arg].append(node)
        self.ran: set[int] = set()
        self.batches: Batches = []
        self.ready: list[int] = []  # in the order in which nodes become ready
        for node, args in enumerate(self.args):
            if not args:
                self.ready.append(node)
        self._run_lone()

    def copy(self) -> Run:
        new = object.__new__(Run)
        new.__dict__.update(self.__dict__)
        new.ran, new.batches, new.ready = set(self.ran), list(self.batches), list(self.ready)
        return new

    def active(self) -> list[int]:
        """Types with ready nodes."""
        return sorted({self.types[node] for node in self.ready})

    def frontier(self, kind: int) -> list[int]:
        """Ready nodes of a type."""
        return [node for node in self.ready if self.types[node] == kind]

    def run(self, kind: int) -> None:
        """Run the ready nodes of a type, then lone nodes as long as any is ready."""
        self._finish(self.frontier(kind))
        self._run_lone()

    def left(self) -> list[int]:
        return [node for node in range(len(self.types)) if node not in self.ran]

    def _run_lone(self) -> None:
        while single := [node for node in self.ready if self.types[node] in self.lone]:
            self._finish(single[:1])

    def _finish(self, batch: list[int]) -> None:
        self.batches.append(batch)
        self.ready = [node for node in self.ready if node not in batch]
        missing = {c: sum(a not in self.ran for a in self.args[c]) for b in batch for c in self.consumers[b]}
        self.ran.update(batch)
        for node in batch:
            for consumer in self.consumers[node]:
                missing[consumer] -= 1
                if missing[consumer] == 0:
                    self.ready.append(consumer)

    def typed_frontier(self, kind: int) -> list[int]:
        """Nodes of a type that have not run and come after no other such node."""
        below: set[int] = set()  # at or below a node of the type that has not run
        found = []
        for node in self.left():
            after = any(arg in below for arg in self.args[node])
            if self.types[node] == kind and not after:
                found.append(node)
            if self.types[node] == kind or after:
                below.add(node)
        return found

    def share(self, kind: int) -> Fraction:
        """How much of the typed frontier is ready; 1 makes the type a safe choice (Lemma 2.1)."""
        return Fraction(len(self.frontier(kind)), len(self.typed_frontier(kind)))

    def bound(self) -> int:
        """Sum of typed depths of what has not run, lone types left out."""
        return sum(_chain(self, kind) for kind in set(self.types) - self.lone)


def _chain(run: Run, kind: int) -> int:
    """The longest chain of nodes of a type that have not run, other nodes in between or not."""
    length = [0] * len(run.types)
    for node in run.left():
        length[node] = (run.types[node] == kind) + max((length[a] for a in run.args[node]), default=0)
    return max(length, default=0)


def lower_bound(graph: Graph) -> int:
    """Sum over types of the longest chain counted in nodes of the type; lone nodes count one each."""
    run = Run(Graph(graph.types, graph.arg_start, graph.args))
    singles = [kind for kind in run.types if kind in graph.lone]
    return len(singles) + sum(_chain(run, kind) for kind in set(run.types) - set(graph.lone))


def _depths(run: Run) -> list[int]:
    found: list[int] = []
    for args in run.args:
        found.append(max((found[arg] + 1 for arg in args), default=0))
    return found


def _all(run: Run, choose: Callable[[], int]) -> Batches:
    while run.ready:
        run.run(choose())
    return run.batches


def depth(graph: Graph) -> Batches:
    """By depth, then type, then node."""
    run = Run(graph)
    return _by_level(run, _depths(run))


def inline(graph: Graph) -> Batches:
    """By phase and recorded depth, then type, then node."""
    if not graph.depths.size:
        return by_phase(graph, depth)
    phases = graph.phases.tolist() or [0] * len(graph)
    return _by_level(Run(graph), list(zip(phases, graph.depths.tolist())))


def _by_level(run: Run, levels: Sequence[Any]) -> Batches:
    found: Batches = []
    last = None
    for node in sorted(range(len(run.types)), key=lambda node: (levels[node], run.types[node])):
        kind = run.types[node]
        if (levels[node], kind) == last and kind not in run.lone:
            found[-1].append(node)
        else:
            found.append([node])
        last = (levels[node], kind)
    return found


def by_phase(graph: Graph, plan: Callable[[Graph], Batches]) -> Batches:
    """Phase after phase, each as a graph of its own."""
    if not graph.phases.size:
        return plan(graph)
    run, phases, found = Run(graph), graph.phases.tolist(), []
    for phase in sorted(set(phases)):
        nodes = [node for node in range(len(graph)) if phases[node] == phase]
        number = {node: i for i, node in enumerate(nodes)}
        args = [[number[a] for a in run.args[node] if a in number] for node in nodes]
        starts = itertools.accumulate(map(len, args), initial=0)
        part = Graph(
            [run.types[n] for n in nodes], [*starts], [*itertools.chain(*args)], lone=run.lone, keys=graph.keys
        )
        found += [[nodes[node] for node in batch] for batch in plan(part)]
    return found


def type_after(graph: Graph) -> dict[int, int]:
    """Types, and those that follow them when a graph is coarsened (`edgeops.batching.coarsen`)."""
    run, after = Run(graph), {}
    phases = graph.phases.tolist() or [0] * len(graph)
    kinds = set(run.types) - run.lone
    for first, second in itertools.permutations(kinds, 2):
        pairs = [(u, set(run.consumers[u])) for u, kind in enumerate(run.types) if kind == first]
        if not all(len(readers) == 1 and run.types[v] == second for u, readers in pairs for v in [*readers, u][:1]):
            continue
        reader = {u: readers.pop() for u, readers in pairs}
        read = {v: u for u, v in reader.items()}
        follow = [v for v, kind in enumerate(run.types) if kind == second]
        if len(read) == len(pairs) and all(
            v in read
            and {read[v]} <= set(run.args[v]) <= {read[v], *run.args[read[v]]}
            and phases[v] == phases[read[v]]
            for v in follow
        ):
            after[first] = second
    return after


def agenda(graph: Graph, remaining: bool = False) -> Batches:
    """The type of the smallest average depth, over all its nodes or over those left; ties: the smaller type."""
    run = Run(graph)
    depths = _depths(run)

    def average(kind: int) -> Fraction:
        nodes = run.left() if remaining else range(len(run.types))
        own = [depths[node] for node in nodes if run.types[node] == kind]
        return Fraction(sum(own), len(own))

    return _all(run, lambda: min(run.active(), key=lambda kind: (average(kind), kind)))


def _best(run: Run, kinds: list[int]) -> int:
    """The type with the largest share; ties: more ready nodes, then the smaller type."""
    return max(kinds, key=lambda kind: (run.share(kind), len(run.frontier(kind)), -kind))


def _after(run: Run, kind: int) -> Run:
    """A copy that has run a batch, but no lone node that this makes ready."""
    after = run.copy()
    after._finish(after.frontier(kind))
    return after


def sufficient(graph: Graph) -> Batches:
    """The sufficient condition as a priority."""
    run = Run(graph)
    return _all(run, lambda: _best(run, run.active()))


def lookahead(graph: Graph) -> Batches:
    """As `sufficient`, but without a share of 1, types that lower the bound of what is left go first."""
    run = Run(graph)

    def choose() -> int:
        best = _best(run, run.active())
        lowering = [kind for kind in run.active() if _after(run, kind).bound() < run.bound()]
        return best if run.share(best) == 1 or not lowering else _best(run, lowering)

    return _all(run, choose)


def encode(run: Run, state: str, phases: int) -> tuple[object, ...]:
    """What a policy sees: keys of the ready types."""
    often = sorted(run.active(), key=lambda kind: (-len(run.frontier(kind)), run.keys[kind]))
    keys = [run.keys[kind] for kind in often]
    seen: list[object] = [*(keys if state == "sort" else sorted(keys))]
    if state == "max":
        seen.append(keys[0])
    if phases > 1:
        seen.insert(0, len(run.ran) * phases // len(run.types))
    return tuple(seen)


def fsm(graph: Graph, state: str, phases: int, table: Mapping[tuple[object, ...], bytes]) -> Batches:
    """What the table says; as `sufficient` for states that it does not hold."""
    run = Run(graph)

    def choose() -> int:
        key = table.get(encode(run, state, phases))
        return _best(run, run.active()) if key is None else run.keys.index(key)

    return _all(run, choose)


def beam(graph: Graph, width: int) -> Batches:
    """The `width` best partial schedules, of equally many batches.

    They are ranked by the lower bound of what is left plus a quarter of `lost`, what the shares of their batches lacked
    to 1 (in units of 2^-20, rounded down, a batch), then by nodes left.
    """
    runs, lost = [Run(graph)], [0]
    while not any(len(run.ran) == len(run.types) for run in runs):
        moves = []
        for parent, run in enumerate(runs):
            best = _best(run, run.active())
            for kind in [best] if run.share(best) == 1 else run.active():
                after = _after(run, kind)
                total = lost[parent] + math.floor((1 - run.share(kind)) * 2**20)
                score = after.bound() * 2**22 + total
                moves.append((score, len(after.left()), parent, kind, total, frozenset(after.ran)))
        kept: dict[frozenset[int], tuple[int, int, int]] = {}
        for *_, parent, kind, total, ran in sorted(moves, key=lambda move: move[:4]):
            if len(kept) < width:
                kept.setdefault(ran, (parent, kind, total))
        lost = [total for *_, total in kept.values()]
        following = []
        for parent, kind, _ in kept.values():
            following.append(runs[parent].copy())
            following[-1].run(kind)
        runs = following
    return next(run.batches for run in runs if len(run.ran) == len(run.types))
