# SPDX-License-Identifier: Apache-2.0
"""Memory layouts of batches: against all orders, an independent check in plain Python, and the errors."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeops._runtime import batching as native
from edgeops.batching.layout import MAX_VARIABLES, Layout, judge_order, plan_layout
from tests.messages import refused

Batches = list[list[list[int]]]
PAPER: Batches = [[[3, 4], [0, 2], [1, 0]], [[7, 5, 6], [2, 3, 4]]]


def verify(variables: int, batches: Batches, layout: Layout) -> None:
    """Adjacency and alignment of every operand in place, and the reason of every other verdict."""
    assert sorted(layout.order) == list(range(variables))
    assert [layout.order[p] for p in layout.position] == list(range(variables))
    copies = copied = 0
    assert len(layout.verdicts) == len(layout.members) == len(batches)
    for batch, members, verdicts in zip(batches, layout.members, layout.verdicts):
        assert sorted(members) == list(range(len(batch[0])))
        assert len(verdicts) == len(batch)
        agreed = sum(v.kind == "in_place" for v in verdicts)
        rivals: Counter[tuple[int, ...]] = Counter()
        for operand, verdict in zip(batch, verdicts):
            outside, size = [v for v in operand if v < 0], len(operand)
            places = [layout.position[v] for v in operand if v >= 0]
            run = len(places) == size and sorted(places) == list(
                range(min(places, default=0), min(places, default=0) + size)
            )
            if run:
                rivals[tuple(np.argsort(places))] += 1
            if verdict.kind == "in_place":
                assert not outside
                assert [places[m] for m in members] == [(verdict.start or 0) + t for t in range(size)]
            elif verdict.kind == "broadcast":
                assert len(set(operand)) == 1
                assert size > 1
                assert verdict.start == (places[0] if places else None)
            elif verdict.kind == "external":
                assert len(outside) == size
                assert size == 1 or set(outside) == {-1}
            else:
                copies, copied = copies + 1, copied + size
                named = Counter(v for v in operand if v != -1)
                assert verdict.start is None
                assert {
                    "external": bool(outside),
                    "repeated": max(named.values(), default=0) > 1,
                    "adjacency": not run,
                    "alignment": run and [places[m] for m in members] != sorted(places),
                }[verdict.reason.split(":")[0]], (verdict, operand)
        if len(batch[0]) > 1:
            assert agreed == max(rivals.values(), default=0), "more operands agree on another order of the members"
    assert (layout.copies, layout.copied_elements) == (copies, copied)


def random_batches(n: int, generator: random.Random) -> Batches:
    """Half of them as programs make them (different variables in a batch), half as odd as they come."""
    batches: Batches = []
    for _ in range(generator.randint(1, 6)):
        size, operands = generator.randint(1, max(1, min(n, 4))), generator.randint(1, 3)
        if generator.random() < 0.5 and n >= size * operands:
            ids = generator.sample(range(n), size * operands)
            batches.append([ids[i * size : (i + 1) * size] for i in range(operands)])
        elif generator.random() < 0.85 and n >= size:
            batches.append([generator.sample(range(n), size) for _ in range(operands)])
        else:
            batches.append([[generator.randrange(-3, n) for _ in range(size)] for _ in range(operands)])
    return batches


def test_the_example_of_the_paper() -> None:
    layout = plan_layout(8, PAPER)
    verify(8, PAPER, layout)
    assert (layout.copies, layout.copied_elements, layout.minimal) == (0, 0, True)
    assert judge_order([1, 0, 2, 3, 4, 7, 5, 6], PAPER).copies == 0, "the order that the paper gives"
    assert judge_order(range(8), PAPER).copies == 3, "the order of the labels"


def test_fuzz_10000_batch_sets_against_an_independent_check() -> None:
    generator = random.Random(7)
    proven = 0
    for _ in range(10_000):
        n = generator.randint(1, 14)
        batches = random_batches(n, generator)
        layout = plan_layout(n, batches)
        verify(n, batches, layout)
        proven += layout.minimal
    assert proven >= 9_900  # measured: 9,955; the rest ends its search unproven


def test_fewest_copies_of_all_orders() -> None:
    """Measured: the optimum in 3,000 of 3,000 sets (seed 12), 2,180 of which need copies; a proof must be true."""
    generator = random.Random(11)
    all_orders = {n: [list(p) for p in itertools.permutations(range(n))] for n in range(1, 7)}
    optimal, cases = 0, 800
    for _ in range(cases):
        n = generator.randint(2, 6)
        batches = random_batches(n, generator)
        layout = plan_layout(n, batches)
        best = min(native.judge_order(order, batches)[3:5] for order in all_orders[n])
        got = (layout.copies, layout.copied_elements)
        assert got >= best
        assert not layout.minimal or got == best, f"{n} variables, {batches}: {got}, best {best}"
        optimal += got == best
    assert optimal >= 0.99 * cases


@given(st.data())
def test_any_batches_give_a_proven_layout(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 9))
    batches = []
    for _ in range(data.draw(st.integers(0, 5))):
        size = data.draw(st.integers(0, 5))
        operand = st.lists(st.integers(-4, n - 1), min_size=size, max_size=size)
        batches.append(data.draw(st.lists(operand, min_size=1, max_size=4)))
    layout = plan_layout(n, batches)
    verify(n, batches, layout)
    order = data.draw(st.permutations(range(n)))
    given_order = judge_order(order, batches)
    verify(n, batches, given_order)
    assert not layout.minimal or layout.copies <= given_order.copies
    assert plan_layout(n, batches) == layout, "the same twice"


@given(st.data())
def test_batches_cut_from_a_hidden_order_need_no_copy(data: st.DataObject) -> None:
    """Operands are intervals of one order, members shuffled alike: every one must end in place."""
    n = data.draw(st.integers(4, 40))
    hidden = data.draw(st.permutations(range(n)))
    batches = []
    for _ in range(data.draw(st.integers(1, 8))):
        size = data.draw(st.integers(2, max(2, n // 3)))
        members = data.draw(st.permutations(range(size)))
        starts = data.draw(st.lists(st.integers(0, n - size), min_size=1, max_size=3))
        batches.append([[hidden[start + m] for m in members] for start in starts])
    layout = plan_layout(n, batches)
    verify(n, batches, layout)
    assert (layout.copies, layout.minimal) == (0, True)


def kinds(layout: Layout) -> list[list[str]]:
    return [[v.reason.split(":")[0] if v.kind == "copy" else v.kind for v in row] for row in layout.verdicts]


@pytest.mark.parametrize(
    ("batch", "want"),
    [
        ([[0], [1]], ["in_place", "in_place"]),
        ([[0], [-1], [-2]], ["in_place", "external", "external"]),
        ([[0, 1], [2, 2]], ["in_place", "broadcast"]),
        ([[0, 1], [-2, -2]], ["in_place", "broadcast"]),
        ([[0, 1], [-1, -1]], ["in_place", "external"]),
        ([[0, 1], [-2, -3]], ["in_place", "external"]),
        ([[0, 1, 2], [3, 3, 4]], ["in_place", "repeated"]),
        ([[0, 1], [2, -1]], ["in_place", "external"]),
        ([[0, 1], [2, 3], [3, 2]], ["in_place", "in_place", "alignment"]),
        ([[0, 1], [2, 3], [2, 3]], ["in_place", "in_place", "in_place"]),
        ([[0, 1], [2, 3], [3, 4]], ["in_place", "in_place", "in_place"]),
        ([[0, 1, 2], [2, 3, 0]], ["in_place", "adjacency"]),
        ([[], []], ["in_place", "in_place"]),
    ],
)
def test_edge_cases(batch: list[list[int]], want: list[str]) -> None:
    layout = plan_layout(5, [batch])
    verify(5, [batch], layout)
    mixed = [v.kind for v in layout.verdicts[0]] if set(batch[-1]) == {-2, -3} else None
    assert kinds(layout) == [want]
    assert mixed is None or mixed[-1] == "copy"
    assert layout.minimal


def test_a_triangle_of_aligned_pairs_gives_up_one_operand() -> None:
    """a with b, b with c, c with reversed a: the last one contradicts, and one of six operands is copied."""
    a, b, c = [0, 1, 2], [3, 4, 5], [6, 7, 8]
    batches = [[a, b], [b, c], [c, a[::-1]]]
    layout = plan_layout(9, batches)
    verify(9, batches, layout)
    assert (layout.copies, layout.minimal) == (1, True)


def test_permutations_of_one_set_agree_through_several_batches() -> None:
    """A P node whose permutation comes back changed has no order; one that comes back as it was has."""
    a, b, c = [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]
    shuffled = [c[i] for i in (2, 0, 3, 1)]
    back = [a[i] for i in (2, 0, 3, 1)]
    assert plan_layout(12, [[a, b], [b, c], [shuffled, back]]).copies == 0
    assert plan_layout(12, [[a, b], [b, c], [shuffled, a]]).copies == 1


def test_large_input_ends_in_bounded_time() -> None:
    """2,000 variables that fit, then 300 that cannot: bounded by steps, not by luck."""
    hidden = random.Random(5).sample(range(2000), 2000)
    fits = [[hidden[i : i + 20], hidden[i + 20 : i + 40]] for i in range(0, 1960, 20)]
    assert plan_layout(2000, fits).copies == 0
    generator = random.Random(6)
    wild = [[generator.sample(range(300), 12) for _ in range(3)] for _ in range(60)]
    layout = plan_layout(300, wild)
    verify(300, wild, layout)
    assert not layout.minimal
    assert layout.copies < 180


def test_numbers_of_other_libraries_are_taken() -> None:
    batches = [[np.array([3, 4]), np.array([0, 2]), np.array([1, 0])]]
    assert plan_layout(np.int64(8), batches).copies == 0  # type: ignore[arg-type]
    assert plan_layout(8, (tuple(b) for b in PAPER)) == plan_layout(8, PAPER)  # type: ignore[arg-type]


def test_layouts_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="cannot assign"):
        plan_layout(8, PAPER).copies = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("variables", "batches", "kind", "rule", "got"),
    [
        ("3", [], TypeError, "variables must be an integer", "str '3'"),
        (True, [], TypeError, "variables must be an integer", "bool True"),
        (None, [], TypeError, "variables must be an integer", "NoneType None"),
        (-1, [], ValueError, "variables must be in 0..65536", "-1"),
        (MAX_VARIABLES + 1, [], ValueError, "variables must be in 0..65536", "65537"),
        (2**40, [], ValueError, "variables must be in 0..65536", "1099511627776"),
        (3, None, TypeError, "batches must be a sequence", "NoneType None"),
        (3, [3], TypeError, "batch 0 must be a sequence", "int 3"),
        (3, [[0, 1]], TypeError, "an operand of batch 0 must be a sequence of integers", "int 0"),
        (3, [[[0.5, 1]]], TypeError, "an operand of batch 0 must be a sequence of integers", r"\[0.5, 1\]"),
        (3, [[["a"]]], TypeError, "an operand of batch 0 must be a sequence of integers", r"\['a'\]"),
        (3, [[]], ValueError, "a batch needs operands", "none in batch 0"),
        (3, [[[0], [1]], [[0, 1], [2]]], ValueError, "operands of a batch must have equal", r"\[2, 1\] in batch 1"),
        (3, [[[0, 3]]], ValueError, "ids must be below the number of variables, 3", "3 in batch 0"),
        (3, [[[0, 2**33]]], ValueError, "ids must be below the number of variables, 3", "8589934592 in batch 0"),
        (3, [[[0, -(2**33)]]], ValueError, "ids must be below", "-8589934592 in batch 0"),
    ],
)
def test_bad_input_is_refused(variables: Any, batches: Any, kind: type[Exception], rule: str, got: str) -> None:
    with refused(kind, "plan_layout", rule, got):
        plan_layout(variables, batches)


@pytest.mark.parametrize("order", [[0, 0], [1], [0, 2]])
def test_an_order_must_be_a_permutation(order: list[int]) -> None:
    with refused(ValueError, "judge_order", "order must name each variable", r"list \[", "Give a permutation\\."):
        judge_order(order, [])
    with refused(ValueError, "layout", "an order must name each variable once", "another one"):
        native.judge_order(order, [])


def test_the_native_entry_checks_too() -> None:
    with refused(ValueError, "layout", "ids must be below 3", "3"):
        native.plan_layout(3, [[[0, 3]]], 10)
    with refused(ValueError, "layout", "operands of a batch must have equal lengths", "2 and 1"):
        native.plan_layout(3, [[[0, 1], [2]]], 10)
