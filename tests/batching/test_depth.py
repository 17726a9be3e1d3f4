# SPDX-License-Identifier: Apache-2.0
"""Depth kept while recording: batches counted by hand, random programs under every switch, wrong use."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeops import batching
from edgeops.batching import _reference_schedule as twins
from edgeops.batching.schedule import Graph, schedule
from tests.batching.graphs import graphs
from tests.batching.models import TreeLSTM, random_trees
from tests.batching.programs import Cells, run
from tests.messages import refused

word = batching.cell(lambda i: i[:, None] * torch.ones(2))
step = batching.cell(lambda x: x + 1)
other = batching.cell(lambda x: 2 * x)
add = batching.cell(torch.add)


def counted(record: Callable[[Any], Any], **switches: Any) -> int:
    """Batches of what is recorded, by program unless the switches say otherwise."""
    options: dict[str, Any] = {"depth": "program", "hoist": False, **switches}
    with batching.session("inline", **options) as s:
        record(s)
    s.flush()
    return s.report.batches


def tree(s: Any, height: int) -> Any:
    if height == 0:
        return word(1)
    left, right = (tree(s, height - 1) for _ in s.each(range(2)))
    return add(left, right)


def test_parts_that_do_not_need_one_another_begin_at_one_depth() -> None:
    assert counted(lambda s: tree(s, 2)) == 3
    assert counted(lambda s: [tree(s, 2) for _ in s.each(range(5))]) == 3
    # every call of the one instance is a step of its own: 4 words and 3 sums
    assert counted(lambda s: [tree(s, 2) for _ in s.each(range(5))], forks=False) == 7
    assert counted(lambda s: tree(s, 2), depth="data") == 3


def test_what_follows_parts_begins_after_the_deepest() -> None:
    def record(s: Any) -> None:
        for rows in s.each([1, 3]):
            x = word(0)
            for n in s.each([rows, 1]):
                y = x
                for _ in range(n):
                    y = step(y)
            other(x)  # needs the word alone, but comes after the loop: after 1 step here, after 3 there

    assert counted(record) == 1 + 3 + 2
    assert counted(record, depth="data") == 1 + 3 + 1


def chains(s: Any, lengths: list[int]) -> None:
    for length in s.each(lengths):
        h = word(0)
        for i in range(length):
            h = add(h, word(i))


def test_kinds_that_depend_on_constants_alone_are_hoisted() -> None:
    # a word, then (word, sum) three times, the words at different depths
    assert counted(lambda s: chains(s, [2, 3])) == 7
    # all words first; the very first sum reads words alone and runs with them; then three more in a row
    assert counted(lambda s: chains(s, [2, 3]), hoist=True) == 1 + 1 + 3

    def project(s: Any) -> None:
        for i in s.each(range(3)):
            h = word(0)
            for _ in range(i):
                h = add(h, step(word(i)))  # two constant kinds, one after the other

    assert counted(project) == 1 + 2 * 3
    assert counted(project, hoist=True) == 1 + 1 + 2


def test_a_kind_that_reads_itself_is_not_hoisted() -> None:
    def record(s: Any) -> None:
        for skip in s.each([0, 3]):
            h = step(word(0))
            for _ in range(3):
                h = step(h)
            s.ghost(skip)
            other(h)

    # word; the first step of all, before it is known that steps read steps; four more; `other` after 3 and after 7
    assert counted(record, hoist=True) == 1 + 1 + 4 + 2


def test_ghost_steps_level_arms() -> None:
    def record(s: Any, ghost: Callable[[Any], Any]) -> None:
        for row in s.each(range(4)):
            x = step(word(row))
            if row % 2:
                x = other(other(x))
            else:
                ghost(s)
            step(step(x))

    # word, step, other twice, then two steps: at equal depth, or at 2, 3 and 4, 5
    assert counted(lambda s: record(s, lambda s: s.ghost(2))) == 6
    assert counted(lambda s: record(s, lambda s: None)) == 8
    assert counted(lambda s: record(s, lambda s: s.ghost(2)), ghosts=False) == 8
    assert counted(lambda s: record(s, lambda s: s.ghost(2)), depth="data") == 8


def test_balanced_branches_end_level() -> None:
    def record(s: Any) -> None:
        for row in s.each(range(4)):
            x = word(row)
            with s.balanced(2):
                for _ in range(row):
                    x = other(x)
            step(x)

    # word, other three times, step after 2 calls or after 3
    assert counted(record) == 1 + 3 + 2
    assert counted(record, ghosts=False) == 1 + 3 + 4


def test_depth_begins_again_after_a_flush() -> None:
    def record(s: Any) -> None:
        values = []
        for row in s.each(range(3)):
            x = word(row)
            for _ in range(row):
                x = step(x)
            values.append(x)
        s.flush()
        for x in s.each(values):
            other(x)

    assert counted(record) == 1 + 2 + 1


def test_a_flush_inside_parts() -> None:
    def record(s: Any) -> None:
        for row in s.each(range(3)):
            x = step(word(row))
            if row == 1:
                s.flush()
            step(x)

    # word, step, (step 0); then step 1 and the program of row 2, whose steps stand at 1 and 2
    assert counted(record) == 3 + 4


def test_programs_that_wait_begin_each_round_level() -> None:
    async def waits(rows: int) -> Any:
        x = step(word(rows))
        for _ in range(rows):
            x = step(x)
        await x
        return other(x)

    with batching.session("inline", depth="program", hoist=False) as s:
        s.run(waits(n) for n in range(3))
    s.flush()
    assert s.report.batches == 1 + 1 + 2 + 1
    assert s.report.flushes == 2


def test_values_of_other_instances_come_first_whatever_the_steps() -> None:
    def record(s: Any) -> None:
        shared = None
        for row in s.each(range(3)):
            x = word(row) if shared is None else add(shared, shared)
            shared = step(x)

    assert counted(record) == 1 + 5


def test_breaking_out_of_a_loop_ends_it() -> None:
    def record(s: Any) -> None:
        for row in s.each(range(2)):
            x = word(row)
            for _ in s.each(range(10)):
                x = step(x)
                break
            other(x)

    assert counted(record) == 3
    assert counted(record, forks=False) == 3


def recorded(s: batching.Session) -> list[batching.Schedule]:
    """The plans that a session makes from now on."""
    plans: list[batching.Schedule] = []
    inner = s._schedule

    def plan(graph: Graph, *args: Any, **options: Any) -> batching.Schedule:
        plans.append(inner(graph, *args, **options))
        return plans[-1]

    s._schedule = plan
    return plans


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    instances=st.integers(1, 6),
    scheduler=st.sampled_from(["inline", "depth", "sufficient", "agenda", "auto"]),
    depth=st.sampled_from(["data", "program"]),
    switches=st.fixed_dictionaries({name: st.booleans() for name in ("forks", "hoist", "phases", "ghosts", "coarsen")}),
)
def test_random_programs_equal_eager_whatever_the_switches(
    seed: int, instances: int, scheduler: str, depth: str, switches: dict[str, bool]
) -> None:
    torch.manual_seed(seed)
    cells = Cells().double()
    with batching.session(scheduler, depth=depth, **switches) as s:
        plans = recorded(s)
        values = run(cells, seed, instances)
    ours, theirs = s.stack(values), torch.stack(run(cells, seed, instances))
    torch.testing.assert_close(ours, theirs)
    for plan in plans:
        plan.validate()
    upstream = torch.randn_like(ours)
    params = list(cells.parameters())
    grads = [torch.autograd.grad((x * upstream).sum(), params, materialize_grads=True) for x in (ours, theirs)]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
def test_depth_by_data_is_the_depth_of_the_graph(seed: int, count: int) -> None:
    model, losses = TreeLSTM(), []
    with batching.session("inline") as s:
        for t in random_trees(seed, count):
            model(t, losses)
    s.sum(losses)
    (graph,) = s.report._graphs
    ours, theirs = schedule(graph, "inline"), schedule(graph, "depth")
    assert ours.order.tolist() == theirs.order.tolist()
    assert ours.start.tolist() == theirs.start.tolist()
    assert graph.phases.size == 0


@settings(max_examples=150)
@given(graphs(), st.data())
def test_inline_twin(graph: Graph, data: st.DataObject) -> None:
    bounds, args, depths = graph.arg_start.tolist(), graph.args.tolist(), []
    for v in range(len(graph)):
        least = max((depths[a] + 1 for a in args[bounds[v] : bounds[v + 1]]), default=0)
        depths.append(least + data.draw(st.sampled_from([0, 0, 1, 5, 10**6])))
    deep = Graph(graph.types, bounds, args, lone=graph.lone, keys=graph.keys, depths=depths)
    for g in (graph, deep):
        plan = schedule(g, "inline")
        plan.validate()
        assert [b.tolist() for b in plan] == twins.inline(g)


def test_far_depths_cost_nothing() -> None:
    def record(s: Any) -> None:
        x = word(0)
        for _ in range(8):
            s.ghost(2**27 - 9)
            x = step(x)

    assert counted(record) == 9


def test_marks_do_nothing_outside_of_sessions() -> None:
    with batching.phase("a"), batching.balanced(3):
        batching.ghost(2)
        assert list(batching.each("ab")) == ["a", "b"]
    assert isinstance(step(torch.ones(2)), Tensor)


def test_wrong_use() -> None:
    with refused(ValueError, "batching.session", "depth must be one of data, program", "'inline'"):
        batching.session(depth="inline")
    with batching.session(depth="program") as s:
        for wrong in (1.5, None, True):
            with refused(TypeError, "batching.ghost", "steps must be an integer", str(wrong)):
                s.ghost(wrong)  # type: ignore[arg-type]
        for steps in (-1, 2**40):
            with refused(ValueError, "batching.ghost", r"steps must lie in 0\.\.1073741824", str(steps)):
                batching.ghost(steps)
        with refused(ValueError, "batching.ghost", "steps must lie in"), s.balanced(-2):
            pass


@pytest.mark.parametrize("seed", range(3))
def test_every_rung_of_the_ladder_gives_the_same(seed: int) -> None:
    rungs = [
        {"forks": False, "hoist": False, "ghosts": False},
        {"hoist": False, "ghosts": False},
        {"ghosts": False},
        {},
    ]
    cells = Cells()
    want = torch.stack(run(cells, seed, 4))
    random.seed(seed)
    for switches in rungs:
        with batching.session("inline", depth="program", **switches) as s:
            values = run(cells, seed, 4)
        torch.testing.assert_close(s.stack(values), want)
