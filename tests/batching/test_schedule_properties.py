# SPDX-License-Identifier: Apache-2.0
"""Schedulers on random graphs: valid, no better than the lower bound, equal to their twins, Lemma 2.1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeops.batching import _reference_schedule as twins
from edgeops.batching.policy import STATES, FSMPolicy
from edgeops.batching.schedule import Graph, Schedule, lower_bound, schedule
from tests.batching.graphs import fewest, graphs


def batches(plan: Schedule) -> twins.Batches:
    return [batch.tolist() for batch in plan]


def all_plans(graph: Graph) -> list[Schedule]:
    plain = ("depth", "agenda", "agenda_remaining", "sufficient", "lookahead", "beam", "auto")
    learned = [(f"fsm-{state}", FSMPolicy.train(graph, state, iterations=30)) for state in STATES]
    return [schedule(graph, s) for s in plain] + [schedule(graph, s, policy=p) for s, p in learned]


@settings(max_examples=1000)
@given(graphs())
def test_valid_and_no_better_than_the_bound(graph: Graph) -> None:
    bound = lower_bound(graph)
    assert bound == twins.lower_bound(graph)
    for plan in all_plans(graph):
        plan.validate()
        assert len(plan) >= bound, plan.scheduler


@settings(max_examples=150)
@given(graphs())
def test_twins(graph: Graph) -> None:
    assert batches(schedule(graph, "depth")) == twins.depth(graph)
    assert batches(schedule(graph, "agenda")) == twins.agenda(graph)
    assert batches(schedule(graph, "agenda_remaining")) == twins.agenda(graph, remaining=True)
    assert batches(schedule(graph, "sufficient")) == twins.sufficient(graph)
    assert batches(schedule(graph, "lookahead")) == twins.lookahead(graph)


@settings(max_examples=60)
@given(graphs(max_nodes=16), st.integers(1, 5))
def test_beam_twin(graph: Graph, width: int) -> None:
    assert batches(schedule(graph, "beam", beam_width=width)) == twins.beam(graph, width)


@pytest.mark.parametrize("state", STATES)
@settings(max_examples=60)
@given(learned=graphs(), graph=graphs(), phases=st.integers(1, 3))
def test_fsm_twin_on_a_graph_it_was_not_trained_on(state: str, learned: Graph, graph: Graph, phases: int) -> None:
    policy = FSMPolicy.train(learned, state, phases=phases, iterations=20)
    table = {}
    keys = policy._native.keys
    for seen, action in policy._native.table:
        head = seen[:1] if phases > 1 else []
        table[(*head, *(keys[s] for s in seen[len(head) :]))] = keys[action]
    got = schedule(graph, f"fsm-{state}", policy=policy)
    assert batches(got) == twins.fsm(graph, state, phases, table)


@settings(max_examples=150)
@given(graphs(max_nodes=12, max_types=4, lone=False))
def test_optimum_confirms_the_bound_and_the_lemma(graph: Graph) -> None:
    best = fewest(graph)
    assert lower_bound(graph) <= best
    assert all(len(plan) >= best for plan in all_plans(graph))
    # Lemma 2.1: a type whose typed frontier is ready starts some optimal schedule
    run = twins.Run(graph)
    for kind in run.active():
        if run.share(kind) == 1:
            after = run.copy()
            after.run(kind)
            assert 1 + fewest(_rest(graph, after)) == best


def _rest(graph: Graph, run: twins.Run) -> Graph:
    """What has not run, as a graph of its own."""
    left = run.left()
    number = {node: i for i, node in enumerate(left)}
    args = [[number[a] for a in run.args[node] if a in number] for node in left]
    return Graph([run.types[node] for node in left], np.cumsum([0, *map(len, args)]), [a for row in args for a in row])


@settings(max_examples=100)
@given(graphs(lone=False), st.permutations(range(5)))
def test_numbers_of_types_mean_nothing_to_a_policy(graph: Graph, numbers: list[int]) -> None:
    kinds = len(graph.keys)
    rank = [n for n in numbers if n < kinds]
    keys = [b""] * kinds
    for old, new in enumerate(rank):
        keys[new] = graph.keys[old]
    other = Graph([rank[t] for t in graph.types], graph.arg_start, graph.args, keys=keys)
    for state in STATES:
        policy = FSMPolicy.train(graph, state, iterations=20)
        same = FSMPolicy.train(other, state, iterations=20)
        assert policy.to_json() == same.to_json()
        if policy.unseen(graph) == 0:
            name = f"fsm-{state}"
            assert batches(schedule(graph, name, policy=policy)) == batches(schedule(other, name, policy=policy))
