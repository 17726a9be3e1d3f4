# SPDX-License-Identifier: Apache-2.0
"""Graphs of real mini-batches: sentiment trees, word lattices, taggers.

The definitions are those behind the published batch counts of ED-Batch's workloads (ICML 2023), so that counts can be
compared exactly:

* `tree`: one leaf (type 0) or inner node (1) per tree node, an output per tree node (2), one sum of all outputs (4).
* `tree2`: inner nodes are of type 1 or 3, drawn in post-order, 3 with probability one half.
* `lattice`: a start state (0); an arc is a character cell (1) where it comes from the position before, else a word
  cell (2); a position with several arcs sums them, one type per number of arcs (4 + arcs - 2), or type 4 for any
  number with `ragged_sum`; an output per position (20), one sum of all outputs (21).
* `tagger`: embeddings, two layers of forward and backward steps, outputs, a sum, each one type.

Data lies beside a developer's checkout (`bench.inputs.SHARED`) and never inside the repository.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench import inputs
from edgeops.batching.schedule import Graph

LEAF, INNER, TREE_OUTPUT, INNER2, TREE_SUM = range(5)
START, CHAR, WORD, SUM2, LATTICE_OUTPUT, LATTICE_SUM = 0, 1, 2, 4, 20, 21
EMBED, FORWARD1, BACKWARD1, FORWARD2, BACKWARD2, TAG, TAG_SUM = range(7)

# in post-order: a word, or the indices of two children
Tree = list[tuple[int, int] | str]
# a lattice: for every position its tag and its arcs, each the position it comes from and the id of its word
Lattice = tuple[tuple[int, tuple[tuple[int, int], ...]], ...]


@dataclass
class Nodes:
    """Nodes in topological order, as they are added."""

    types: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    args: list[int] = field(default_factory=list)

    def add(self, kind: int, args: Iterable[int] = ()) -> int:
        """Append a node, return its id."""
        self.types.append(kind)
        self.args.extend(args)
        self.starts.append(len(self.args))
        return len(self.types) - 1

    def graph(self) -> Graph:
        """The graph of these nodes."""
        return Graph(self.types, self.starts, self.args)


def _lines(path: Path, count: int, first: int = 0) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return list(itertools.islice(file, first, first + count))


def have(kind: str) -> bool:
    """Whether the data of `"trees"`, `"lattice"` or `"tags"` lies beside this checkout."""
    return (inputs.SHARED / kind / "train.txt").is_file()


def skip_reason(kind: str) -> str:
    """Why a test or a check on this data cannot run here."""
    return f"no real data beside this checkout (../shared/data/{kind}); it is for developers and CI"


def parse_tree(line: str) -> Tree:
    """A bracketed binary tree in post-order: a word, or the post-order indices of two children.

    >>> parse_tree("(3 (2 a) (1 (2 b) (0 c)))")
    ['a', 'b', 'c', (1, 2), (0, 3)]
    """
    nodes: Tree = []
    stack: list[list[int]] = []
    word = ""
    for token in line.replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            stack.append([])
            word = ""
        elif token == ")":
            children = stack.pop()
            if len(children) not in (0, 2):
                raise ValueError(f"parse_tree: a node has no or two children; got {len(children)}. Binarise the tree.")
            nodes.append((children[0], children[1]) if children else word)
            if stack:
                stack[-1].append(len(nodes) - 1)
        else:
            word = token
    return nodes


def trees(split: str, count: int) -> list[Tree]:
    """The first `count` trees of `"train"` or `"dev"`."""
    return [parse_tree(line) for line in _lines(inputs.SHARED / "trees" / f"{split}.txt", count)]


def lattices(split: str, count: int) -> list[Lattice]:
    """The first `count` lattices of `"train"` or `"dev"`, or all of a shorter file."""
    lines = (inputs.SHARED / "lattice" / f"{split}.txt").read_text(encoding="utf-8").split("\n")
    total, at = int(lines[0]), 1
    found: list[Lattice] = []
    for _ in range(min(count, total)):
        size = int(lines[at])
        tags = [int(tag) for tag in lines[at + 1].split()]
        rows = [[int(x) for x in line.split()] for line in lines[at + 2 : at + 2 + size]]
        found.append(tuple((tag, tuple(zip(row[1::2], row[2::2]))) for tag, row in zip(tags, rows, strict=True)))
        at += 2 + size
        while at < len(lines) and not lines[at].strip():
            at += 1
    return found


def tree(split: str, count: int) -> Graph:
    """TreeLSTM with an output per tree node."""
    return _tree(split, count, lambda: INNER)


def tree2(split: str, count: int) -> Graph:
    """TreeLSTM with two kinds of inner nodes, drawn with seed 0 (train) or 1 (dev)."""
    draw = random.Random(0 if split == "train" else 1)
    return _tree(split, count, lambda: INNER2 if draw.random() < 0.5 else INNER)


def _tree(split: str, count: int, inner: Callable[[], int]) -> Graph:
    nodes = Nodes()
    outputs = []
    for parsed in trees(split, count):
        ids: list[int] = []
        for node in parsed:
            ids.append(nodes.add(LEAF) if isinstance(node, str) else nodes.add(inner(), (ids[c] for c in node)))
            outputs.append(nodes.add(TREE_OUTPUT, ids[-1:]))
    nodes.add(TREE_SUM, outputs)
    return nodes.graph()


def lattice(split: str, count: int, ragged_sum: bool = False) -> Graph:
    """LatticeLSTM: a cell per arc, a sum where arcs meet, an output per position."""
    nodes = Nodes()
    outputs = []
    for rows in lattices(split, count):
        states: list[int] = []
        for position, (_, incoming) in enumerate(rows):
            arcs = [nodes.add(CHAR if s == position - 1 else WORD, (states[s],)) for s, _ in incoming]
            if not arcs:
                states.append(nodes.add(START))
            elif len(arcs) == 1:
                states.append(arcs[0])
            else:
                states.append(nodes.add(SUM2 if ragged_sum else SUM2 + len(arcs) - 2, arcs))
            outputs.append(nodes.add(LATTICE_OUTPUT, states[-1:]))
    nodes.add(LATTICE_SUM, outputs)
    return nodes.graph()


def tagger(lengths: Sequence[int]) -> Graph:
    """Two-layer bidirectional LSTM over sentences of these lengths, an output per token."""
    nodes = Nodes()
    outputs = []
    for length in lengths:
        row = [nodes.add(EMBED) for _ in range(length)]
        pairs = [(word,) for word in row]
        for forward, backward in ((FORWARD1, BACKWARD1), (FORWARD2, BACKWARD2)):
            left = _chain(nodes, forward, pairs)
            right = _chain(nodes, backward, pairs[::-1])[::-1]
            pairs = list(zip(left, right))
        outputs += [nodes.add(TAG, pair) for pair in pairs]
    nodes.add(TAG_SUM, outputs)
    return nodes.graph()


def _chain(nodes: Nodes, kind: int, inputs_: Sequence[tuple[int, ...]]) -> list[int]:
    states: list[int] = []
    for operands in inputs_:
        states.append(nodes.add(kind, (*operands, *states[-1:])))
    return states


class Family(NamedTuple):
    """A kind of graph: how to build it and which data that needs."""

    build: Callable[[str, int], Graph]
    data: str


class Counts(NamedTuple):
    """Figures of a graph: nodes, the lower bound, batches by scheduler (`sufficient`: at most)."""

    nodes: int
    bound: int
    depth: int
    agenda: int
    agenda_remaining: int
    sufficient: int


FAMILIES = {
    "tree": Family(tree, "trees"),
    "tree2": Family(tree2, "trees"),
    "lattice": Family(lattice, "lattice"),
    "ragged lattice": Family(functools.partial(lattice, ragged_sum=True), "lattice"),
}
# Family, split, mini-batch. The dev lattices are 113.
COUNTS = {
    ("tree", "train", 32): Counts(2113, 20, 37, 37, 30, 20),
    ("tree", "dev", 128): Counts(9961, 21, 39, 39, 31, 21),
    ("tree", "train", 128): Counts(10277, 27, 51, 51, 40, 27),
    ("tree2", "train", 32): Counts(2113, 28, 52, 93, 40, 31),
    ("tree2", "dev", 32): Counts(2369, 23, 49, 87, 37, 29),
    ("tree2", "dev", 128): Counts(9961, 25, 56, 109, 42, 33),
    ("lattice", "train", 32): Counts(4671, 217, 637, 519, 512, 309),
    ("lattice", "dev", 32): Counts(5169, 305, 837, 831, 641, 384),
    ("lattice", "dev", 128): Counts(17328, 306, 1019, 1141, 807, 445),
    ("lattice", "train", 128): Counts(15417, 245, 777, 907, 587, 341),
    ("ragged lattice", "train", 32): Counts(4671, 210, 586, 481, 435, 257),
    ("ragged lattice", "dev", 32): Counts(5169, 294, 761, 634, 564, 348),
}
