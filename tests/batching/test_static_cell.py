# SPDX-License-Identifier: Apache-2.0
"""Batches and layouts of static cells."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops.batching._static_cells import CELLS
from edgeops.batching.layout import MAX_OPS, plan_layout
from edgeops.batching.static_cell import CellGraph, CellPlan, plan_cell
from tests.batching.test_layout import verify
from tests.messages import refused


def check_plan(plan: CellPlan, place_inputs: bool) -> None:
    """Every operation once, after its arguments, in batches of one type; the layout is that of those batches."""
    ops = {op.name: op for op in plan.cell.ops}
    assert sorted(name for batch in plan.batches for name in batch) == sorted(ops)
    done: set[str] = {*plan.cell.inputs, *plan.cell.weights}
    for batch in plan.batches:
        assert len({ops[name].type for name in batch}) == 1
        assert all(a in done for name in batch for a in ops[name].args)
        assert len(batch) == 1 or not set(batch) & set(plan.cell.outputs)
        done |= set(batch)
    ids = {name: i for i, name in enumerate(plan.names)}
    assert set(ids) == set(ops) | (set(plan.cell.inputs) if place_inputs else set())
    ids |= dict.fromkeys(plan.cell.weights, -1)
    ids |= {name: -2 - i for i, name in enumerate(plan.cell.inputs) if name not in ids}
    batches = []
    for batch in plan.batches:
        slots = [list(slot) for slot in zip(*([ids[a] for a in ops[name].args] for name in batch))]
        batches.append([[ids[name] for name in batch], *slots])
    verify(len(plan.names), batches, plan.layout)


@pytest.mark.parametrize("place_inputs", [False, True])
@pytest.mark.parametrize(
    ("name", "batches", "placed", "unplaced"),
    [
        ("lstm", 8, 1, 2),
        ("gru", 9, 1, 1),
        ("treelstm_leaf", 6, 0, 0),
        ("treelstm_internal", 9, 1, 2),
        ("treegru", 11, 1, 2),
    ],
)
def test_cells_copy_only_what_no_order_avoids(
    name: str, batches: int, placed: int, unplaced: int, place_inputs: bool
) -> None:
    """One operand repeats the inputs for all gates; with inputs elsewhere, one more mixes them with results."""
    plan = plan_cell(CELLS[name](), place_inputs=place_inputs)
    check_plan(plan, place_inputs)
    assert (plan.fewest, plan.layout.minimal) == (True, True)
    assert len(plan.batches) == batches
    assert plan.layout.copies == plan.unavoidable == (placed if place_inputs else unplaced)
    if place_inputs:
        reasons = {v.reason.split(":")[0] for row in plan.layout.verdicts for v in row if v.kind == "copy"}
        assert reasons <= {"repeated"}


def test_the_leaf_broadcasts_its_word() -> None:
    plan = plan_cell(CELLS["treelstm_leaf"]())
    assert (plan.broadcasts, plan.layout.copies) == (1, 0)
    assert plan.batches[0] == ("xi", "xo", "xu")


def test_the_types_that_save_a_batch_are_found() -> None:
    """a b a / b a b: taking a first costs four batches, as taking b first; greedily by type it may cost more."""
    ops = [("p1", "a", ("x",)), ("p2", "b", ("p1",)), ("p3", "a", ("p2",))]
    ops += [("q1", "b", ("x",)), ("q2", "a", ("q1",)), ("q3", "b", ("q2",))]
    plan = plan_cell(CellGraph(ops, ["x"]))
    check_plan(plan, False)
    assert (len(plan.batches), plan.fewest) == (4, True)


def random_cell(generator: random.Random, size: int, types: int) -> CellGraph:
    arity = [generator.randint(1, 2) for _ in range(types)]
    known, ops = ["x", "y"], []
    for i in range(size):
        kind = generator.randrange(types)
        ops.append((f"v{i}", f"t{kind}", tuple(generator.choice(known) for _ in range(arity[kind]))))
        known.append(f"v{i}")
    outputs = [f"v{i}" for i in range(size) if generator.random() < 0.15]
    return CellGraph(ops, ["x", "y"], [], outputs)


def fewest_batches(cell: CellGraph) -> int:
    """Exhaustive: any non-empty part of the ready operations of one type."""
    ops = cell.ops
    index = {op.name: i for i, op in enumerate(ops)}
    needs = [sum(1 << index[a] for a in set(op.args) if a in index) for op in ops]
    kinds = [(op.type, op.name if op.name in cell.outputs else "") for op in ops]

    @functools.cache
    def rest(done: int) -> int:
        if done == (1 << len(ops)) - 1:
            return 0
        best = len(ops)
        ready = [i for i in range(len(ops)) if not done >> i & 1 and needs[i] & ~done == 0]
        for kind in {kinds[i] for i in ready}:
            members = [i for i in ready if kinds[i] == kind]
            for part in range(1, 1 << len(members)):
                taken = sum(1 << m for k, m in enumerate(members) if part >> k & 1)
                best = min(best, 1 + rest(done | taken))
        return best

    return rest(0)


def test_random_cells_have_the_fewest_batches() -> None:
    generator = random.Random(4)
    for _ in range(150):
        cell = random_cell(generator, generator.randint(1, 9), generator.randint(1, 3))
        plan = plan_cell(cell)
        check_plan(plan, False)
        assert plan.fewest
        assert len(plan.batches) == fewest_batches(cell), cell


def shortest_sets_of_batches(cell: CellGraph, length: int) -> list[list[tuple[int, ...]]]:
    """Every way to run the cell in `length` batches, each of all operations of a type that are ready."""
    index = {op.name: i for i, op in enumerate(cell.ops)}
    needs = [sum(1 << index[a] for a in set(op.args) if a in index) for op in cell.ops]
    kinds = [(op.type, op.name if op.name in cell.outputs else "") for op in cell.ops]
    found: set[tuple[tuple[int, ...], ...]] = set()

    def run(done: int, batches: list[tuple[int, ...]]) -> None:
        if done == (1 << len(needs)) - 1:
            found.add(tuple(sorted(batches)))
        elif len(batches) < length:
            ready = [i for i in range(len(needs)) if not done >> i & 1 and needs[i] & ~done == 0]
            for kind in sorted({kinds[i] for i in ready}):
                members = tuple(i for i in ready if kinds[i] == kind)
                run(done | sum(1 << m for m in members), [*batches, members])

    run(0, [])
    return [list(batches) for batches in found]


def test_of_equally_short_sequences_the_best_layout_is_taken() -> None:
    generator = random.Random(1)
    differ = 0
    for _ in range(150):
        cell = random_cell(generator, generator.randint(3, 10), generator.randint(2, 4))
        plan = plan_cell(cell, place_inputs=True)
        ids = {name: i for i, name in enumerate(plan.names)}
        args = [[ids[a] for a in op.args] for op in cell.ops]
        costs = []
        for batches in shortest_sets_of_batches(cell, len(plan.batches)):
            layout = plan_layout(len(ids), [[list(b), *map(list, zip(*(args[v] for v in b)))] for b in batches])
            costs.append((layout.copies, layout.copied_elements))
        assert (plan.layout.copies, plan.layout.copied_elements) == min(costs), cell
        differ += min(costs) != max(costs)
    assert differ >= 5, "the cells drawn must put the choice to a test"


@given(st.integers(0, 2**31), st.integers(0, 30), st.integers(1, 5), st.booleans())
def test_any_cell_has_a_proven_plan(seed: int, size: int, types: int, place_inputs: bool) -> None:
    cell = random_cell(random.Random(seed), size, types)
    plan = plan_cell(cell, place_inputs=place_inputs)
    check_plan(plan, place_inputs)
    assert plan_cell(cell, place_inputs=place_inputs) == plan, "the same twice"
    assert plan.unavoidable <= plan.layout.copies


def test_the_largest_cell() -> None:
    plan = plan_cell(random_cell(random.Random(2), MAX_OPS, 8))
    check_plan(plan, False)


def test_empty_cells() -> None:
    plan = plan_cell(CellGraph([]))
    assert (plan.batches, plan.order, plan.layout.copies, plan.fewest) == ((), (), 0, True)
    plan = plan_cell(CellGraph([], ["x"]), place_inputs=True)
    assert plan.order == ("x",)
    plan = plan_cell(CellGraph([("one", "constant", ())]))
    assert plan.batches == (("one",),)


@pytest.mark.parametrize(
    ("arguments", "kind", "rule", "got"),
    [
        (([("a", "t")],), TypeError, r"an operation must be \(name, type, args\)", r"tuple \('a', 't'\)"),
        (([3],), TypeError, r"an operation must be \(name, type, args\)", "int 3"),
        (([("a", 1, ())],), TypeError, r"an operation must be \(name, type, args\)", "tuple"),
        (([("a", "t", "x")],), TypeError, "the arguments of 'a' must be a sequence of names", "str 'x'"),
        (([("a", "t", (1,))],), TypeError, "the arguments of 'a' must be a sequence of names", r"tuple \(1,\)"),
        (([], "x"), TypeError, "inputs must be a sequence of names", "str 'x'"),
        (([("a", "t", ("x",))],), ValueError, "an argument must be an input", "'x' in 'a'"),
        (([("a", "t", ("b",)), ("b", "t", ())],), ValueError, "an argument must be an input", "'b' in 'a'"),
        (([("a", "t", ("a",))],), ValueError, "an argument must be an input", "'a' in 'a'"),
        (([("a", "t", ()), ("a", "t", ())],), ValueError, "a name must stand for one thing", "'a' twice"),
        (([], ["x"], ["x"]), ValueError, "a name must stand for one thing", "'x' twice"),
        (([("a", "t", ()), ("b", "t", ("a",))],), ValueError, "of type 't' must have equal numbers", "0 and 1 in 'b'"),
        (([], [], [], ["y"]), ValueError, "outputs must be operations", "'y'"),
        (([(f"a{i}", "t", ()) for i in range(MAX_OPS + 1)],), ValueError, "has at most 512 operations", "513"),
    ],
)
def test_bad_cells_are_refused(arguments: Any, kind: type[Exception], rule: str, got: str) -> None:
    with refused(kind, "CellGraph", rule, got):
        CellGraph(*arguments)


def test_plan_cell_wants_a_cell() -> None:
    with refused(TypeError, "plan_cell", "cell must be a CellGraph", "list"):
        plan_cell([("a", "t", ())])  # type: ignore[arg-type]
