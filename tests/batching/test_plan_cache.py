# SPDX-License-Identifier: Apache-2.0
"""Plan cache: right plans whatever the hash, least recently used out first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeops.batching.plan_cache import PlanCache
from edgeops.batching.policy import FSMPolicy
from edgeops.batching.schedule import Graph, schedule
from tests.batching.graphs import graphs, two_phases
from tests.messages import refused


def chain(length: int, lone: bool = False) -> Graph:
    return Graph([0] * length, [0, *range(length)], range(length - 1), lone=[0] if lone else [])


@pytest.mark.parametrize("bits", [0, 1, 64])
@settings(max_examples=40)
@given(st.lists(graphs(max_nodes=6, max_types=2), max_size=12))
def test_collisions_give_right_plans(bits: int, drawn: list[Graph]) -> None:
    cache = PlanCache(capacity=5, hash_bits=bits)
    for graph in drawn * 2:
        for scheduler in ("depth", "sufficient"):
            plan, want = cache.schedule(graph, scheduler), schedule(graph, scheduler)
            assert (plan.order.tolist(), plan.start.tolist()) == (want.order.tolist(), want.start.tolist())
            assert plan.graph.lone == graph.lone
    assert len(cache) <= 5
    assert cache.hits + cache.misses == 4 * len(drawn)


@pytest.mark.parametrize("bits", [0, 64])
def test_least_recently_used_goes_first(bits: int) -> None:
    cache = PlanCache(2, hash_bits=bits)
    first = cache.schedule(chain(1))
    cache.schedule(chain(2))
    assert cache.schedule(chain(1)) is first
    cache.schedule(chain(3))  # chain(2) goes
    assert cache.schedule(chain(1)) is first
    assert (cache.hits, cache.misses, len(cache)) == (2, 3, 2)
    cache.schedule(chain(2))
    assert (cache.hits, cache.misses, len(cache)) == (2, 4, 2)
    cache.clear()
    assert len(cache) == 0
    assert cache.schedule(chain(1)) is not first


@pytest.mark.parametrize("bits", [0, 64])
def test_what_tells_entries_apart(bits: int) -> None:
    cache = PlanCache(hash_bits=bits)
    graph = two_phases()
    policies = [FSMPolicy.train(graph, "sort", phases=p) for p in (1, 2)]
    renamed = Graph(graph.types, graph.arg_start, graph.args, keys=graph.keys[::-1])
    calls = [
        lambda: cache.schedule(graph),
        lambda: cache.schedule(Graph(graph.types, graph.arg_start, graph.args, lone=[0])),
        lambda: cache.schedule(graph, "depth"),
        lambda: cache.schedule(graph, "beam"),
        lambda: cache.schedule(graph, "beam", beam_width=1),
        lambda: cache.schedule(graph, "fsm-sort", policy=policies[0]),
        lambda: cache.schedule(graph, "fsm-sort", policy=policies[1]),
        lambda: cache.schedule(renamed, "fsm-sort", policy=policies[1]),
        lambda: cache.schedule(graph, "auto", costs=[1, 2, 3, 4]),
        lambda: cache.schedule(graph, "auto", costs=[4, 3, 2, 1]),
    ]
    plans = [call() for call in calls]
    assert (cache.hits, cache.misses) == (0, len(calls))
    assert all(call() is plan for call, plan in zip(calls, plans))
    assert (cache.hits, cache.misses) == (len(calls), len(calls))


def test_refuses() -> None:
    for capacity in (0, -1, 2.0):
        with refused(ValueError, "PlanCache", r"capacity must lie in 1\.\.", str(capacity)):
            PlanCache(capacity)  # type: ignore[arg-type]
    with refused(ValueError, "PlanCache", r"hash_bits must lie in 0\.\.64", "65"):
        PlanCache(hash_bits=65)
    cache = PlanCache()
    with refused(TypeError, "PlanCache.schedule", "needs a Graph", "None"):
        cache.schedule(None)  # type: ignore[arg-type]
    with refused(TypeError, "schedule", "'auto' needs an FSMPolicy", "str 'sort'"):
        cache.schedule(chain(2), "auto", policy="sort")  # type: ignore[arg-type]
    assert len(cache) == 0
