# SPDX-License-Identifier: Apache-2.0
"""PQ trees against all permutations."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeops._runtime.batching import PQTree
from tests.messages import refused

Order = tuple[int, ...]


@functools.cache
def permutations(n: int) -> frozenset[Order]:
    return frozenset(itertools.permutations(range(n)))


def consecutive(order: Order, members: frozenset[int]) -> bool:
    places = [i for i, v in enumerate(order) if v in members]
    return not places or places[-1] - places[0] == len(places) - 1


def orders(tree: PQTree) -> list[Order]:
    """Every order that a tree stands for."""
    nodes: Iterator[tuple[str, int, int]] = iter(tree.structure())

    def read() -> list[Order]:
        kind, count, variable = next(nodes)
        if kind == "leaf":
            return [(variable,)]
        children = [read() for _ in range(count)]
        ways = itertools.permutations(range(count)) if kind == "P" else [range(count), range(count)[::-1]]
        return [sum(parts, ()) for way in ways for parts in itertools.product(*(children[i] for i in way))]

    return read() if tree.structure() else [()]


def check(n: int, sets: list[list[int]]) -> None:
    """Reduce by each set: what is left are exactly the permutations in which all accepted sets are consecutive."""
    tree, left = PQTree(n), permutations(n)
    for members in sets:
        before = tree.structure(), tree.frontier()
        now = frozenset(p for p in left if consecutive(p, frozenset(members)))
        assert tree.reduce(members) == bool(now), f"{n} variables, {sets}, at {members}"
        if now:
            left = now
        else:
            assert (tree.structure(), tree.frontier()) == before, "a failed reduce must change nothing"
    got = orders(tree)
    assert len(set(got)) == len(got)
    assert set(got) == left, f"{n} variables, {sets}"
    assert tuple(tree.frontier()) in left


@given(st.data())
def test_frontiers_are_the_permutations_that_keep_all_sets_consecutive(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    check(n, data.draw(st.lists(st.lists(st.integers(0, n - 1), max_size=n), max_size=8)))


def test_the_same_for_many_random_sets() -> None:
    generator = random.Random(0)
    for case in range(600):
        n = 7 if case % 20 == 0 else generator.randint(2, 6)
        check(n, [generator.sample(range(n), generator.randint(1, n)) for _ in range(generator.randint(1, 7))])


def test_all_pairs_and_triples_of_five() -> None:
    sets = [list(s) for k in (2, 3) for s in itertools.combinations(range(5), k)]
    for pair in itertools.product(sets, repeat=2):
        check(5, list(pair))


@settings(max_examples=60)
@given(st.integers(2, 60), st.integers(0, 2**31))
def test_intervals_of_a_hidden_order_are_always_accepted(n: int, seed: int) -> None:
    generator = random.Random(seed)
    hidden = generator.sample(range(n), n)
    tree = PQTree(n)
    sets = []
    for _ in range(40):
        first = generator.randrange(n)
        sets.append(hidden[first : first + generator.randint(1, n)])
        generator.shuffle(sets[-1])
        assert tree.reduce(sets[-1])
    assert all(consecutive(tuple(tree.frontier()), frozenset(s)) for s in sets)


def test_all_pairs_of_a_hidden_order_leave_it_and_its_reverse() -> None:
    hidden = random.Random(3).sample(range(50), 50)
    tree = PQTree(50)
    for pair in itertools.pairwise(hidden):
        assert tree.reduce(list(pair))
    assert tree.structure()[0] == ("Q", 50, -1)
    assert tree.frontier() in (hidden, hidden[::-1])
    assert not tree.reduce([hidden[0], hidden[2]])
    assert tree.frontier() in (hidden, hidden[::-1])


def test_deep_trees_do_not_recurse() -> None:
    """Nested sets: a tree as high as it has leaves; cutting through all levels makes one Q node of it."""
    n = 1000
    tree = PQTree(n)
    for size in range(2, n, 2):
        assert tree.reduce(list(range(size)))
    assert sorted(tree.frontier()) == list(range(n))
    assert tree.reduce([0, n - 1])
    assert len(tree.structure()) > n


def test_subtree_of_a_set() -> None:
    tree = PQTree(6)
    assert tree.subtree([2]) == ("leaf", [])
    assert tree.subtree([0, 5]) == ("P", [[0], [1], [2], [3], [4], [5]])
    for pair in ([0, 1], [1, 2], [2, 3]):
        tree.reduce(pair)
    kind, children = tree.subtree([2, 1])
    assert kind == "Q"
    assert sorted(children) == [[1], [2]]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_small_trees(n: int) -> None:
    tree = PQTree(n)
    assert tree.reduce([])
    assert tree.reduce(list(range(n)))
    assert tree.frontier() == list(range(n))
    assert orders(tree) == sorted(permutations(n))


def test_bad_ids_are_refused() -> None:
    tree = PQTree(3)
    with refused(ValueError, "layout", "ids must be below 3 and not negative", "3", "Number the variables from 0\\."):
        tree.reduce([0, 3])
    with refused(ValueError, "layout", "ids must be below 3 and not negative", "-1", "Number the variables from 0\\."):
        tree.subtree([-1])
    with refused(ValueError, "PQTree", "a set needs variables", "an empty one", "Give at least one\\."):
        tree.subtree([])
    with refused(ValueError, "PQTree", "variables must be at least 0", "-1", "Give their number\\."):
        PQTree(-1)
