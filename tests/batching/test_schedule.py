# SPDX-License-Identifier: Apache-2.0
"""Schedulers: published batch counts on real graphs, small worked cases, errors."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from bench.batching import graphs as real
from edgeops.batching.policy import FSMPolicy
from edgeops.batching.schedule import SCHEDULERS, Graph, Schedule, lower_bound, schedule
from tests.batching.graphs import two_phases
from tests.messages import refused

CHAIN = Graph([0, 1, 0, 1], [0, 0, 1, 2, 3], [0, 1, 2])


@pytest.mark.parametrize(
    ("name", "split", "count"), list(real.COUNTS), ids=[f"{name} {split}{count}" for name, split, count in real.COUNTS]
)
def test_batch_counts_of_real_graphs(name: str, split: str, count: int) -> None:
    if not real.have(real.FAMILIES[name].data):
        pytest.skip(real.skip_reason(real.FAMILIES[name].data))
    want = real.COUNTS[name, split, count]
    graph = real.FAMILIES[name].build(split, count)
    assert (len(graph), lower_bound(graph)) == (want.nodes, want.bound)
    plans = {s: schedule(graph, s) for s in SCHEDULERS if not s.startswith("fsm")}
    for plan in plans.values():
        plan.validate()
    assert [len(plans[s]) for s in ("depth", "agenda", "agenda_remaining")] == [
        want.depth,
        want.agenda,
        want.agenda_remaining,
    ]
    assert want.bound <= len(plans["lookahead"]) <= len(plans["sufficient"]) <= want.sufficient
    assert len(plans["auto"]) == min(len(plan) for plan in plans.values())


@pytest.mark.skipif(not real.have("lattice"), reason=real.skip_reason("lattice"))
def test_portfolio_and_beam_on_lattices_with_one_sum_type() -> None:
    small, large = real.lattice("dev", 32, ragged_sum=True), real.lattice("dev", 128, ragged_sum=True)
    assert len(schedule(small, "beam", beam_width=4)) == lower_bound(small) == 294
    assert len(schedule(small, "auto")) <= 346
    assert len(schedule(large, "auto")) <= 360


def test_taggers_reach_the_lower_bound() -> None:
    graph = real.tagger([3, 17, 9, 1])
    assert len(graph) == 30 * 6 + 1
    assert len(schedule(graph)) == lower_bound(graph) == 1 + 4 * 17 + 1 + 1


def test_trees_are_read_in_post_order() -> None:
    assert real.parse_tree("(1 (2 (0 x) (0 y)) (3 \\/))") == ["x", "y", (0, 1), "\\/", (2, 3)]
    with pytest.raises(ValueError, match="no or two children"):
        real.parse_tree("(1 (2 (0 x) (0 y) (0 z)))")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_runs_edge_cases(scheduler: str) -> None:
    for graph in (
        Graph([], [0], []),
        Graph([0], [0, 0], []),
        CHAIN,
        Graph([2, 2, 2], [0, 0, 0, 3], [0, 0, 1]),
        Graph([0, 0, 1, 0], [0, 0, 0, 2, 3], [0, 1, 2], lone=[0]),
    ):
        policy = FSMPolicy.train(graph, scheduler[4:]) if scheduler.startswith("fsm") else None
        plan = schedule(graph, scheduler, policy=policy)
        plan.validate()
        assert len(plan) >= lower_bound(graph)
        assert [len(batch) for batch in plan] == np.diff(plan.start).tolist()


def test_lone_nodes_run_singly_and_first() -> None:
    graph = Graph.of([("a", ()), ("f", ()), ("f", (1,)), ("a", ()), ("f", (0,)), ("b", (2,))], lone=["f"])
    assert lower_bound(graph) == 5
    assert [batch.tolist() for batch in schedule(graph)] == [[1], [2], [0, 3], [4], [5]]


def test_many_types_and_large_in_degrees() -> None:
    # more than 64 self-reaching types, and a node with more arguments than a 16-bit counter holds
    kinds, wide = 150, 70_000
    nodes: list[tuple[int, list[int]]] = [(k % kinds, [k - 1] if k else []) for k in range(3 * kinds)]
    first = len(nodes)
    nodes += [(0, [first - 1])] * wide
    nodes.append((1, list(range(first, first + wide))))
    graph = Graph.of(nodes)
    for scheduler in ("sufficient", "lookahead", "beam"):
        plan = schedule(graph, scheduler)
        plan.validate()
        assert len(plan) == lower_bound(graph) == 3 * kinds + 2


def test_costs_choose_the_schedule() -> None:
    graph = two_phases()
    for costs in ([1.0] * 4, [100, 1, 1, 1], [0, 0, 50, 1], [0] * 4):
        best = sum(costs[t] for t in schedule(graph, "auto", costs=costs).types)
        plans = (schedule(graph, s) for s in SCHEDULERS if s != "auto" and not s.startswith("fsm"))
        assert best == min(sum(costs[t] for t in plan.types) for plan in plans)


def test_threads_schedule_side_by_side() -> None:
    graph = two_phases(16, 12)
    want = {s: schedule(graph, s).order.tolist() for s in ("sufficient", "beam")}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for s, order in want.items():
            for plan in pool.map(lambda _, s=s: schedule(graph, s), range(40)):
                assert plan.order.tolist() == order


def _with(plan: Schedule, **changes: object) -> Schedule:
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def test_validate_finds_every_fault() -> None:
    graph = Graph.of([("a", ()), ("a", ()), ("b", (0, 1)), ("b", ()), ("f", ()), ("f", ())], lone=["f"])
    plan = schedule(graph)
    plan.validate()
    ints, longs = (lambda *x: np.array(x, np.int32)), (lambda *x: np.array(x, np.int64))
    with refused(ValueError, r"Schedule \(sufficient\)", "every node must run once", "6 entries"):
        _with(plan, order=ints(0, 1, 2, 3, 4, 4)).validate()
    with refused(ValueError, ".*", "batches must be non-empty and cover", "0 4 4 6"):
        _with(plan, order=ints(0, 1, 2, 3, 4, 5), start=longs(0, 4, 4, 6)).validate()
    with refused(ValueError, ".*", "a batch must have one type", "batch 2 with"):
        _with(plan, order=ints(4, 5, 0, 1, 2, 3), start=longs(0, 1, 2, 6)).validate()
    with refused(ValueError, ".*", "lone types must run singly", "batch 2 of 2"):
        _with(plan, order=ints(0, 1, 2, 3, 4, 5), start=longs(0, 2, 4, 6)).validate()
    with refused(ValueError, ".*", "arguments must run before", "node 2 no later than 0"):
        _with(plan, order=ints(4, 5, 2, 3, 0, 1), start=longs(0, 1, 2, 4, 6)).validate()


def test_schedules_and_graphs_do_not_change() -> None:
    plan = schedule(CHAIN)
    for array in (plan.order, plan.start, plan.types, CHAIN.types, CHAIN.arg_start, CHAIN.args):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.scheduler = "depth"  # type: ignore[misc]
    types = np.zeros(2, np.int32)
    graph = Graph(types, [0, 0, 0], [])
    types[:] = 5
    assert graph.types.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("make", "rule", "got"),
    [
        (lambda: Graph([0, 0], [0, 0], []), "nodes . 1 entries", "2 entries for 2 nodes"),
        (lambda: Graph([0, 0], [], []), "nodes . 1 entries", "0 entries for 2 nodes"),
        (lambda: Graph([0, 0], [0, 0, 2], [0]), "from 0 to the number of arguments", "from 0 to 2"),
        (lambda: Graph([0, 0], [1, 0, 1], [0]), "from 0 to the number of arguments", "from 1 to 1"),
        (lambda: Graph([0, 0, 0], [0, 1, 0, 1], [0]), "argument|must not decrease", ".*"),
        (lambda: Graph([0, 0, 0], [0, 0, 5, 1], [0]), "within the arguments", "5 of 1 at node 1"),
        (lambda: Graph([0, 0, 0], [0, 0, 1, 0], []), "", ".*"),
        (lambda: Graph([0, -1], [0, 0, 0], []), r"types must lie in 0\.\.0", "-1 at node 1"),
        (lambda: Graph([0, 3], [0, 0, 0], [], keys=[b"a", b"b"]), r"types must lie in 0\.\.1", "3 at node 1"),
        (lambda: Graph([0, 0], [0, 0, 1], [1]), "before their consumer", "argument 1 of node 1"),
        (lambda: Graph([0, 0], [0, 0, 1], [-1]), "before their consumer", "argument -1 of node 1"),
        (lambda: Graph([2**40], [0, 0], []), "types must fit int32", "1099511627776"),
        (lambda: Graph([0], [0, 0], [], lone=[1]), r"lone must name types in 0\.\.0", "1"),
        (lambda: Graph([0], [0, 0], [], lone=[-1]), r"lone must name types in 0\.\.0", "-1"),
        (lambda: Graph([0], [0, 0], [], keys=[b"a", b"a"]), "keys of different types must differ", "b'a' twice"),
    ],
)
def test_graph_refuses(make: Callable[[], Graph], rule: str, got: str) -> None:
    with refused(ValueError, "Graph", rule, got):
        make()


def test_graph_refuses_types() -> None:
    with refused(TypeError, "Graph", "types must be a list of integers", "0.5"):
        Graph([0.5], [0, 0], [])
    with refused(TypeError, "Graph", "args must be a list of integers", "None"):
        Graph([0], [0, 0], None)  # type: ignore[arg-type]
    with refused(TypeError, "Graph", "arg_start must be a list of integers"):
        Graph([0], [[0, 0]], [])
    with refused(TypeError, "Graph", "keys must be bytes", "str 'a'"):
        Graph([0], [0, 0], [], keys=["a"])  # type: ignore[list-item]
    with refused(ValueError, "Graph.of", "lone must name types", "loss"):
        Graph.of([("a", ())], lone=["loss"])


def test_schedule_refuses() -> None:
    policy = FSMPolicy.train(CHAIN, "base")
    with refused(TypeError, "schedule", "needs a Graph", "list"):
        schedule([])  # type: ignore[arg-type]
    with refused(ValueError, "schedule", "scheduler must be one of depth, agenda", "'greedy'"):
        schedule(CHAIN, "greedy")
    with refused(ValueError, "schedule", "'depth' reads no policy", "FSMPolicy"):
        schedule(CHAIN, "depth", policy=policy)
    with refused(ValueError, "schedule", "'depth' reads no beam_width", "3"):
        schedule(CHAIN, "depth", beam_width=3)
    with refused(ValueError, "schedule", "'beam' reads no costs"):
        schedule(CHAIN, "beam", costs=[1, 1])
    with refused(TypeError, "schedule", "'fsm-sort' needs an FSMPolicy", "None"):
        schedule(CHAIN, "fsm-sort")
    with refused(TypeError, "schedule", "'auto' needs an FSMPolicy", "str 'sort'"):
        schedule(CHAIN, "auto", policy="sort")  # type: ignore[arg-type]
    with refused(ValueError, "schedule", "'fsm-sort' needs a policy of that state", "fsm-base"):
        schedule(CHAIN, "fsm-sort", policy=policy)
    for width in (0, -1, 2000, 1.5):
        with refused(ValueError, "schedule", r"beam_width must lie in 1\.\.1024", str(width)):
            schedule(CHAIN, "beam", beam_width=width)  # type: ignore[arg-type]
    for costs in ([1], [1, -1], [1, float("nan")], [[1, 1]]):
        with refused(ValueError, "schedule", "costs must be 2 finite numbers"):
            schedule(CHAIN, "auto", costs=costs)  # type: ignore[arg-type]
