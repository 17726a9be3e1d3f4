# SPDX-License-Identifier: Apache-2.0
"""Coarsening: small cases, its twin, and what it must not do on random graphs."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeops import batching
from edgeops.batching import _reference_schedule as twins
from edgeops.batching.schedule import Graph, schedule
from tests.batching.graphs import fewest, graphs
from tests.batching.test_phases import phased
from tests.messages import refused


def nodes(graph: Graph, **options: Any) -> int:
    return len(batching.coarsen(graph).graph)


def test_chains_become_one_node() -> None:
    chain = [("a", ()), ("b", (0,)), ("c", (1,))]
    graph = Graph.of([*chain, *((name, [x + 3 for x in args]) for name, args in chain), ("sum", (2, 5))])
    coarse = batching.coarsen(graph)
    assert coarse.graph.keys == (b"'a'>'b'>'c'", b"'sum'")
    assert (len(coarse.graph), coarse.graph.args.tolist()) == (3, [0, 1])
    plan = coarse.expand(schedule(coarse.graph))
    plan.validate()
    assert [b.tolist() for b in plan] == [[0, 3], [1, 4], [2, 5], [6]]
    assert plan.scheduler == "sufficient"


def test_what_the_first_reads_may_be_read_again() -> None:
    # a residual: c reads b and what b reads
    assert nodes(Graph.of([("a", ()), ("a", ()), ("b", (0, 1)), ("c", (2, 1)), ("c2", (3,)), ("a", ())])) == 4
    assert nodes(Graph.of([("a", ()), ("b", (0,)), ("x", ()), ("c", (1, 2))])) == 3  # a > b; c needs x besides


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (Graph.of([("a", ()), ("b", (0,)), ("b", (0,))]), "two consumers"),
        (Graph.of([("a", ()), ("b", (0,)), ("a", ())]), "an `a` without a consumer"),
        (Graph.of([("a", ()), ("b", (0,)), ("a", ()), ("c", (2,))]), "consumers of two types"),
        (Graph.of([("a", ()), ("b", (0,)), ("b", ())]), "a `b` without an argument"),
        (Graph.of([("a", ()), ("a", (0,))]), "of its own type"),
        (Graph.of([("a", ()), ("x", ()), ("b", (0, 1))]), "two arguments"),
        (Graph.of([("a", ()), ("b", (0,))], lone=["a"]), "lone first"),
        (Graph.of([("a", ()), ("b", (0,))], lone=["b"]), "lone second"),
        (Graph([0, 1], [0, 0, 1], [0], phases=[0, 1]), "two phases"),
        (Graph([], [0], []), "nothing"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_stays_apart(graph: Graph, why: str) -> None:
    assert nodes(graph) == len(graph), why


def spread(base: Graph, lengths: list[int]) -> Graph:
    """Every node of a type as a chain of that type's length."""
    bounds, args, types, starts, edges, end = base.arg_start.tolist(), base.args.tolist(), [], [0], [], []
    first = [sum(lengths[:t]) for t in range(len(lengths))]
    for v, kind in enumerate(base.types.tolist()):
        for link in range(lengths[kind]):
            edges += [len(types) - 1] if link else [end[a] for a in args[bounds[v] : bounds[v + 1]]]
            types.append(first[kind] + link)
            starts.append(len(edges))
        end.append(len(types) - 1)
    return Graph(types, starts, edges, keys=[b"%d" % t for t in range(sum(lengths))])


@settings(max_examples=200, deadline=None)
@given(graphs(max_types=4, lone=False), st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_chains_that_were_put_in_are_found(base: Graph, lengths: list[int]) -> None:
    graph = spread(base, lengths[: len(base.keys)])
    coarse = batching.coarsen(graph)
    assert len(coarse.graph) <= len(base)
    for name in ("depth", "agenda", "sufficient", "inline", "auto"):
        coarse.expand(schedule(coarse.graph, name)).validate()


@settings(max_examples=300, deadline=None)
@given(st.one_of(graphs(max_nodes=10), phased(max_nodes=10)), st.lists(st.integers(1, 2), min_size=5, max_size=5))
def test_twin(graph: Graph, lengths: list[int]) -> None:
    if not graph.phases.size and not graph.lone:
        graph = spread(graph, lengths[: len(graph.keys)])
    after = dict(enumerate(batching.coarsen(graph)._native.type_after))
    assert {s: t for s, t in after.items() if t >= 0} == twins.type_after(graph)
    for name in ("depth", "agenda_remaining", "sufficient", "lookahead"):
        coarse = batching.coarsen(graph)
        plan = coarse.expand(schedule(coarse.graph, name))
        plan.validate()
        assert plan.graph is graph


@settings(max_examples=60, deadline=None)
@given(graphs(max_nodes=6, max_types=3, lone=False), st.lists(st.integers(1, 2), min_size=3, max_size=3))
def test_the_optimum_stays(base: Graph, lengths: list[int]) -> None:
    graph = spread(base, lengths[: len(base.keys)])
    coarse = batching.coarsen(graph)
    links = [key.count(b">") + 1 for key in coarse.graph.keys]
    assert fewest_links(coarse.graph, links) == fewest(graph)


def fewest_links(graph: Graph, links: list[int]) -> int:
    """The fewest batches of what a coarse graph stands for, by enumeration."""
    bounds, args, types = graph.arg_start.tolist(), graph.args.tolist(), graph.types.tolist()
    needs = [set(args[bounds[v] : bounds[v + 1]]) for v in range(len(graph))]

    @functools.cache
    def rest(ran: frozenset[int]) -> int:
        ready: dict[int, set[int]] = {}
        for v in range(len(types)):
            if v not in ran and needs[v] <= ran:
                ready.setdefault(types[v], set()).add(v)
        return min((links[kind] + rest(ran | batch) for kind, batch in ready.items()), default=0)

    return rest(frozenset())


def test_sessions_schedule_fewer_nodes_and_give_the_same() -> None:
    torch.manual_seed(0)
    one, two, add = (batching.cell(f) for f in (lambda x: x.sin(), lambda x: 3 * x, torch.add))

    def model(rng: random.Random, leaves: int) -> Any:
        if leaves == 1:
            return add(torch.full((2,), rng.random()), torch.ones(2))
        left = rng.randrange(1, leaves)
        return two(one(add(model(rng, left), model(rng, leaves - left))))

    results, batches = [], []
    for coarsen in (False, True):
        rng = random.Random(0)
        with batching.session(coarsen=coarsen) as s:
            values = [model(rng, 9) for _ in range(4)]
        results.append(s.stack(values))
        batches.append(s.report.batches)
    assert torch.equal(*results)
    assert batches[0] == batches[1]
    assert s.report.nodes == 4 * (9 + 3 * 8)
    assert nodes(s.report._graphs[0]) == 4 * (9 + 8)


def test_plans_of_coarse_graphs_are_kept() -> None:
    one, two = batching.cell(lambda x: x + 1), batching.cell(lambda x: 2 * x)
    cache = batching.PlanCache()
    for _ in range(2):
        with batching.session(cache=cache, coarsen=True) as s:
            y = two(one(torch.ones(2)))
        assert s.tensor(y).tolist() == [4.0, 4.0]
    assert (cache.hits, cache.misses) == (1, 1)


def test_policies_learn_coarse_graphs() -> None:
    one, two = batching.cell(lambda x: x + 1), batching.cell(lambda x: 2 * x)

    def record(s: batching.Session) -> Any:
        with s:
            return two(one(two(one(torch.ones(2)))))

    plain = batching.session()
    y = record(plain)
    assert plain.tensor(y).tolist() == [10.0, 10.0]
    policy = batching.FSMPolicy.train(batching.coarsen(plain.report._graphs[0]).graph)
    learned = batching.session("fsm-sort", policy=policy, coarsen=True)
    y = record(learned)
    assert learned.tensor(y).tolist() == [10.0, 10.0]
    assert learned.report.batches == plain.report.batches


def test_wrong_use() -> None:
    with refused(TypeError, "coarsen", "needs a Graph", "list"):
        batching.coarsen([])  # type: ignore[arg-type]
    graph = Graph.of([("a", ()), ("b", (0,))])
    with refused(ValueError, "Coarse.expand", "needs a schedule of the coarse graph", "2 nodes"):
        batching.coarsen(graph).expand(schedule(graph))
