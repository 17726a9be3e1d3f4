# SPDX-License-Identifier: Apache-2.0
"""Batches and cost of every scheduler on graphs of real mini-batches, ED-Batch section 5.3.

    python -m bench.batching.schedule             # one line a graph and scheduler
    python -m bench.batching.schedule --rounds 50

A policy is trained on the first 32 inputs of the training file and used on every graph of its family. Seconds are
process CPU time, the best of several runs, set-up of the scheduler included.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.batching import graphs
from bench.registry import Unavailable
from edgeops.batching.schedule import FSMPolicy, Graph, lower_bound, schedule

Figures = dict[str, float]

PLAIN = ("depth", "agenda", "agenda_remaining", "sufficient", "lookahead")
LEARNED = ("fsm-base", "fsm-sort", "fsm-max")
# up to 50,000 nodes
_LARGE = (("tree", "train", 640), ("tree2", "train", 640), ("lattice", "train", 320), ("ragged lattice", "train", 320))


@dataclass(frozen=True)
class Row:
    """One scheduler on one graph."""

    graph: str
    nodes: int
    bound: int
    scheduler: str
    batches: int
    seconds: float

    @property
    def ratio(self) -> float:
        """Batches over the lower bound."""
        return self.batches / self.bound

    @property
    def cost(self) -> float:
        """Microseconds a node."""
        return 1e6 * self.seconds / self.nodes


def best_seconds(call: Callable[[], object], rounds: int) -> float:
    """Process CPU time of the fastest of several calls."""
    best = float("inf")
    for _ in range(rounds):
        before = time.process_time()
        call()
        best = min(best, time.process_time() - before)
    return best


def rows(rounds: int) -> Iterator[Row]:
    """All schedulers on all graphs whose data is there."""
    policies: dict[str, dict[str, FSMPolicy]] = {}
    for name, split, count in (*graphs.COUNTS, *_LARGE):
        family = graphs.FAMILIES[name]
        if not graphs.have(family.data):
            continue
        if name not in policies:
            learned = family.build("train", 32)
            policies[name] = {s: FSMPolicy.train(learned, s.removeprefix("fsm-")) for s in LEARNED}
        yield from _graph_rows(f"{name} {split}{count}", family.build(split, count), policies[name], rounds)


def _graph_rows(label: str, graph: Graph, policies: dict[str, FSMPolicy], rounds: int) -> Iterator[Row]:
    bound = lower_bound(graph)
    options: dict[str, dict] = {s: {} for s in PLAIN}
    options |= {s: {"policy": policies[s]} for s in LEARNED}
    options |= {"beam": {}, "auto": {"policy": policies["fsm-sort"]}}
    for scheduler, given in options.items():
        plan = schedule(graph, scheduler, **given)
        plan.validate()
        few = max(1, rounds // 5) if scheduler in ("beam", "auto") else rounds
        seconds = best_seconds(functools.partial(schedule, graph, scheduler, **given), few)
        yield Row(label, len(graph), bound, scheduler, len(plan), seconds)


def _needed() -> None:
    for data in ("trees", "lattice"):
        if not graphs.have(data):
            raise Unavailable(graphs.skip_reason(data))


def counts() -> Figures:
    """Batches against the published counts, and against the lower bound on random graphs.

    Raises:
        Unavailable: the data is not there.
    """
    _needed()
    wrong = above = auto = behind = 0
    for (name, split, count), want in graphs.COUNTS.items():
        graph = graphs.FAMILIES[name].build(split, count)
        got = {s: len(schedule(graph, s)) for s in (*PLAIN, "beam", "auto")}
        seen = (len(graph), lower_bound(graph), got["depth"], got["agenda"], got["agenda_remaining"])
        wrong += sum(a != b for a, b in zip(seen, want))
        above += got["sufficient"] > want.sufficient
        behind += got["lookahead"] > got["sufficient"]
        auto += got["auto"] > min(got.values())
    return {
        "published figures that differ": float(wrong),
        "graphs where sufficient needs more than published": float(above),
        "graphs where lookahead needs more than sufficient": float(behind),
        "graphs where auto is not the least": float(auto),
        "random graphs with fewer batches than the bound": float(sum(map(_below_bound, range(1000)))),
    }


def _below_bound(seed: int) -> bool:
    draw = np.random.default_rng(seed)
    size = int(draw.integers(1, 200))
    degrees = np.minimum(draw.integers(0, 4, size), np.arange(size))
    args = np.concatenate([draw.integers(0, v, d) for v, d in enumerate(degrees) if d] or [np.zeros(0, int)])
    types = draw.integers(0, draw.integers(1, 12), size)
    graph = Graph(types, np.cumsum([0, *degrees]), args, lone=[0] if seed % 3 == 0 and (types == 0).any() else [])
    bound = lower_bound(graph)
    return any(len(schedule(graph, s)) < bound for s in (*PLAIN, "beam", "auto"))


def costs() -> Figures:
    """Cost of the single-pass schedulers of section 4 on all graphs.

    Raises:
        Unavailable: the data is not there.
    """
    _needed()
    worst = dict.fromkeys(("sufficient", "lookahead"), 0.0)
    for family, split, count in (*graphs.COUNTS, *_LARGE):
        graph = graphs.FAMILIES[family].build(split, count)
        for name in worst:
            seconds = best_seconds(functools.partial(schedule, graph, name), 30)
            worst[name] = max(worst[name], 1e6 * seconds / len(graph))
    return {f"{name}, slowest graph of 2,000 to 50,000 nodes": cost for name, cost in worst.items()}


def held_out() -> Figures:
    """Batches on lattices that no policy has seen.

    Raises:
        Unavailable: the data is not there.
    """
    _needed()
    plain = {count: graphs.lattice("dev", count) for count in (32, 128)}
    ragged = {count: graphs.lattice("dev", count, ragged_sum=True) for count in (32, 128)}
    return {
        **{f"sufficient, dev{count}": float(len(schedule(graph))) for count, graph in plain.items()},
        **{f"auto, ragged sums, dev{count}": float(len(schedule(g, "auto"))) for count, g in ragged.items()},
        "beam over the bound, ragged sums, dev32": len(schedule(ragged[32], "beam")) / lower_bound(ragged[32]),
    }


def learning() -> Figures:
    """What policies reach and how long they learn.

    Raises:
        Unavailable: the data is not there.
    """
    _needed()
    tree, chains = graphs.tree("train", 32), graphs.tagger(range(3, 35))
    learned = {"trees": FSMPolicy.train(tree), "taggers": FSMPolicy.train(chains)}
    return {
        **{f"iterations on {name}": float(policy.iterations) for name, policy in learned.items()},
        "trees over the bound": learned["trees"].batches / lower_bound(tree),
        "taggers over the bound": learned["taggers"].batches / lower_bound(chains),
        "batches on trees of two kinds": float(FSMPolicy.train(graphs.tree2("train", 32)).batches),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 1 where there is no data."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.batching.schedule", description="Batches and cost of every scheduler."
    )
    parser.add_argument("--rounds", type=int, default=20, help="runs a figure, of which the fastest counts")
    given = parser.parse_args(argv)
    last = ""
    for row in rows(given.rounds):
        if row.graph != last:
            print(f"\n{row.graph}: {row.nodes:,} nodes, lower bound {row.bound}")
            last = row.graph
        print(f"  {row.scheduler:17s} {row.batches:5d} batches  {row.ratio:5.2f} x bound  {row.cost:7.3f} µs a node")
    if not last:
        print(f"bench.batching.schedule: {graphs.skip_reason('trees')}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
