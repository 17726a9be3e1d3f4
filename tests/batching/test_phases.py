# SPDX-License-Identifier: Apache-2.0
"""Phases of programs: batches counted by hand, waiting at a phase, every scheduler, wrong use."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeops import batching
from edgeops.batching import _reference_schedule as twins
from edgeops.batching.schedule import SCHEDULERS, FSMPolicy, Graph, lower_bound, schedule
from tests.batching.graphs import graphs
from tests.batching.models import TreeLSTM, random_trees
from tests.messages import refused

word = batching.cell(lambda i: i[:, None] * torch.ones(2))
step = batching.cell(lambda x: x + 1)
out = batching.cell(lambda x: 2 * x)
last = batching.cell(lambda x: x - 1)


class EarlyExit(torch.nn.Module):
    """One layer again and again until a unit says stop: what happens next depends on a result."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = batching.cell(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh()))
        self.stop = batching.cell(torch.nn.Linear(6, 1))
        self.most = 5

    async def forward(self, x: Any) -> tuple[Any, int]:
        for step in range(self.most):
            x = self.layer(x)
            if (await self.stop(x)).item() > 0:
                return x, step + 1
        return x, self.most


def test_outputs_in_the_midst_of_a_program_run_once() -> None:
    counts = {}
    for phases in (True, False):
        with batching.session("depth", phases=phases) as s:
            for length in (2, 4):
                h = word(length)
                for _ in range(length):
                    h = step(h)
                    with s.phase("output"):
                        last(out(h))
        s.flush()
        counts[phases] = s.report.batches
    # word, 4 steps, then out and last: once each, or at each of 4 depths
    assert counts == {True: 1 + 4 + 2, False: 1 + 4 + 4 + 4}


def test_phases_run_in_the_order_of_their_names() -> None:
    def first_calls(early: tuple[str, ...]) -> list[int]:
        with batching.session() as s:
            for name in early:
                s.phase(name)
            x = word(0)
            with s.phase("b"):
                y = step(x)
            with s.phase("a"):
                z = out(x)
        s.flush()
        s.stack([y, z])
        (graph,) = s.report._graphs
        return graph.types[schedule(graph).order].tolist()

    assert first_calls(()) == [0, 1, 2]
    assert first_calls(("a", "b")) == [0, 2, 1]


def test_nested_phases_and_the_way_back() -> None:
    with batching.session() as s:
        x = word(0)
        with s.phase("output") as output:
            with s.phase("first"):
                x = step(x)
            with output:
                pass
        x = word(1)
        with output:
            out(x)
    s.flush()
    (graph,) = s.report._graphs
    assert graph.phases.tolist() == [0, 2, 0, 1]


def test_one_phase_alone_is_none() -> None:
    with batching.session() as s, s.phase("all"):
        step(word(0))
    s.flush()
    assert s.report._graphs[0].phases.size == 0


def test_a_later_phase_must_not_be_read_before_it_is_flushed() -> None:
    with batching.session() as s:
        h = word(0)
        with s.phase("output"):
            y = out(h)
        before = s._recording.pending
        with refused(
            ValueError, "batching.session", "must not read what a later phase", r"of phase output in phase \(first\)"
        ):
            step(y)
        with s.phase("last"):
            z = step(y)
        with s.phase("output"), refused(ValueError, "batching.session", ".*", "of phase last in phase output"):
            step(z)
        assert s._recording.pending == before + 1  # what was refused is not there
        s.flush()
        assert s.tensor(step(z)).tolist() == [2.0, 2.0]


def test_a_phase_of_another_session_is_refused() -> None:
    with batching.session() as other:
        foreign = other.phase("a")
    with (
        batching.session() as s,
        refused(ValueError, "batching.session", "of its own session", "Phase.'a'. of another"),
    ):
        s.run([iter_of(foreign)])


def iter_of(wanted: Any) -> Any:
    yield wanted


def test_names_are_text() -> None:
    with batching.session() as s, refused(TypeError, "batching.phase", "must be text", "int 3"):
        s.phase(3)  # type: ignore[arg-type]


def test_programs_wait_at_a_phase_for_all_others() -> None:
    torch.manual_seed(3)
    model = EarlyExit().double()
    classes = batching.cell(torch.nn.Linear(6, 3)).double()

    async def program(x: Any) -> tuple[Any, int]:
        x, steps = await model.forward(x)
        await batching.phase("output")
        return classes(x), steps

    async def without(x: Any) -> tuple[Any, int]:
        x, steps = await model.forward(x)
        return classes(x), steps

    rows = list(torch.randn(9, 6, dtype=torch.float64))
    counts = []
    for way, switches in ((program, {}), (program, {"phases": False}), (without, {})):
        with batching.session(**switches) as s:
            ended = s.run(way(x) for x in rows)
            ours = s.stack([y for y, _ in ended])
        counts.append(s.report.batches)
        rounds = sorted({n for _, n in ended})
        want = []
        for row in rows:
            x = row
            for _ in range(model.most):
                x = model.layer(x)
                if model.stop(x).item() > 0:
                    break
            want.append(classes(x))
        torch.testing.assert_close(ours, torch.stack(want))
    assert len(rounds) > 2
    deepest = rounds[-1]
    # the first layer reads tensors, the others values: still one kind a round; then the classes
    assert counts[0] == 2 * deepest + 1
    assert counts[2] == 2 * deepest + len(rounds)
    assert counts[1] == counts[2]


def test_waiting_inside_a_phase_keeps_it_to_the_program() -> None:
    async def program(row: int) -> Any:
        h = word(row)
        for _ in range(row):
            h = step(h)
            await h
        with batching.phase("output"):
            y = out(h)
            await y
            return last(y)

    with batching.session() as s:
        values = s.run(program(n) for n in range(4))
        assert s._recording.phase == 0
        step(word(0))
        ours = s.stack(values)
    assert ours[:, 0].tolist() == [2.0 * (n + n) - 1 for n in range(4)]


def test_phases_of_waiting_programs_advance_one_by_one() -> None:
    seen = []

    def program(row: int) -> Any:
        for name in ("a", "b", "c")[row:]:
            yield batching.phase(name)
            seen.append((name, row))
        return row

    with batching.session() as s:
        for name in ("a", "b", "c"):
            s.phase(name)
        assert s.run(program(n) for n in range(3)) == [0, 1, 2]
    assert seen == [("a", 0), ("b", 1), ("b", 0), ("c", 2), ("c", 1), ("c", 0)]


def test_an_error_in_a_program_leaves_its_phase() -> None:
    def program() -> Any:
        with batching.phase("a"):
            yield word(0)
            raise KeyError("mine")

    with batching.session() as s:
        with pytest.raises(KeyError):
            s.run([program()])
        assert s._recording.phase == 0


def test_plans_of_other_phases_are_others() -> None:
    cache = batching.PlanCache()
    for name in ("a", "b", "a"):
        with batching.session(cache=cache) as s:
            for p in ("a", "b"):
                s.phase(p)
            x = word(0)
            with s.phase("a"):
                y = step(x)
            with s.phase(name):
                out(x)
        s.tensor(y)
    assert (cache.hits, cache.misses) == (1, 2)


@st.composite
def phased(draw: st.DrawFn, **options: Any) -> Graph:
    """A random graph with phases, some numbers left out."""
    graph = draw(graphs(**options))
    bounds, args, phases = graph.arg_start.tolist(), graph.args.tolist(), []
    for v in range(len(graph)):
        least = max((phases[a] for a in args[bounds[v] : bounds[v + 1]]), default=0)
        phases.append(least + draw(st.sampled_from([0, 0, 0, 1, 40])))
    return Graph(graph.types, bounds, args, lone=graph.lone, keys=graph.keys, phases=phases)


@settings(max_examples=200, deadline=None)
@given(phased())
def test_every_scheduler_keeps_to_phases(graph: Graph) -> None:
    for name in SCHEDULERS:
        policy = FSMPolicy.train(graph, name[4:], iterations=10) if name.startswith("fsm") else None
        plan = schedule(graph, name, policy=policy)
        plan.validate()
        assert len(plan) >= lower_bound(graph)
    for name in ("depth", "inline", "sufficient"):
        want = twins.by_phase(
            graph, {"depth": twins.depth, "inline": twins.depth, "sufficient": twins.sufficient}[name]
        )
        assert [b.tolist() for b in schedule(graph, name)] == want


def test_trees_with_losses_in_a_phase_equal_those_without() -> None:
    torch.manual_seed(0)
    model = TreeLSTM().double()
    inner = model.loss

    def loss(*operands: Any) -> Any:
        with batching.phase("loss"):
            return inner(*operands)

    sums, batches = [], []
    for cell in (inner, loss):
        model.loss = cell
        losses: list[Any] = []
        with batching.session("depth") as s:
            for t in random_trees(5, 6):
                model(t, losses)
        sums.append(s.sum(losses))
        batches.append(s.report.batches)
    torch.testing.assert_close(*sums)
    assert batches[1] < batches[0]


def test_graphs_refuse_wrong_marks() -> None:
    with refused(ValueError, "Graph", "must not be of a later phase", "1 and 0 at argument 0 of node 1"):
        Graph([0, 0], [0, 0, 1], [0], phases=[1, 0])
    with refused(ValueError, "Graph", "of a phase must be less deep", "3 and 3 at argument 0 of node 1"):
        Graph([0, 0], [0, 0, 1], [0], depths=[3, 3])
    Graph([0, 0], [0, 0, 1], [0], depths=[3, 0], phases=[0, 1])
    with refused(ValueError, "Graph", "phases must have one entry a node", "1 entries for 2 nodes"):
        Graph([0, 0], [0, 0, 0], [], phases=[0])
    with refused(ValueError, "Graph", "depths must have one entry a node", "3 entries for 2 nodes"):
        Graph([0, 0], [0, 0, 0], [], depths=[0, 1, 2])
    for marks in ({"depths": [-1]}, {"phases": [-1]}):
        with refused(ValueError, "Graph", "must not be negative", "node 0"):
            Graph([0], [0, 0], [], **marks)
    with refused(TypeError, "Graph", "phases must be a list of integers", "0.5"):
        Graph([0], [0, 0], [], phases=[0.5])


def test_schedules_that_break_phases_are_found() -> None:
    graph = Graph([0, 0, 1], [0, 0, 0, 0], [], phases=[0, 1, 0])
    plan = schedule(graph)
    plan.validate()
    assert [b.tolist() for b in plan] == [[0], [2], [1]]

    def changed(order: list[int], start: list[int]) -> Any:
        return dataclasses.replace(plan, order=np.array(order, np.int32), start=np.array(start, np.int64))

    with refused(ValueError, r"Schedule \(sufficient\)", "phases must run one after another", "phase 0 after phase 1"):
        changed([0, 1, 2], [0, 1, 2, 3]).validate()
    with refused(ValueError, r"Schedule \(sufficient\)", "a batch must be of one phase"):
        changed([2, 0, 1], [0, 1, 3]).validate()
