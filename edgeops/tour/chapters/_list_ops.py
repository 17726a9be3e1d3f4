# SPDX-License-Identifier: Apache-2.0
"""ListOps, nested lists of digits to evaluate, and a tree network for them, run three ways.

The task is that of "ListOps: A Diagnostic Dataset for Latent Tree Learning" (NAACL 2018): maximum, minimum, median and
sum modulo ten of nested lists. It needs no download: every machine draws the same trees from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeops import batching
from edgeops.batching.cells import LSTM, Embedding, RaggedSum

Node = int | tuple[int, list[Any]]  # a digit, or (operation, nodes)
OPERATIONS = ("maximum", "minimum", "median", "sum modulo 10")


def draw(rng: random.Random, depth: int) -> Node:
    """A random expression: at most `depth` operations deep, two to five arguments each."""
    if depth == 0 or rng.random() < 0.4:
        return rng.randrange(10)
    return rng.randrange(len(OPERATIONS)), [draw(rng, depth - 1) for _ in range(rng.randrange(2, 6))]


def evaluate(node: Node) -> int:
    """What an expression is worth.

    >>> evaluate((0, [3, (3, [9, 4]), 1]))
    3
    """
    if isinstance(node, int):
        return node
    values = sorted(evaluate(child) for child in node[1])
    return (values[-1], values[0], values[len(values) // 2], sum(values) % 10)[node[0]]


def size(node: Node) -> int:
    """Nodes of an expression."""
    return 1 if isinstance(node, int) else 1 + sum(size(child) for child in node[1])


class ListOpsNet(nn.Module):
    """A child-sum tree network: an LSTM step on the node's symbol, from the sum of its children's states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.symbols = Embedding(10 + len(OPERATIONS), width)
        self.cell = LSTM(width, width)
        self.classes = nn.Linear(width, 10)
        self.total = RaggedSum()
        self.leaf = batching.cell(self.leaf_rows)

    def leaf_rows(self, digit: Tensor) -> tuple[Tensor, Tensor]:
        """State of digits `[m]`."""
        zero = self.classes.weight.new_zeros(len(digit), self.cell.hidden_size)
        return self.cell.step_rows(self.symbols.rows(digit), zero, zero)

    def _recorded(self, node: Node) -> tuple[Any, Any]:
        if isinstance(node, int):
            return self.leaf(node)
        states = [self._recorded(child) for child in node[1]]
        h, c = self.total([h for h, _ in states], [c for _, c in states])
        return self.cell.step(self.symbols.look_up(10 + node[0]), h, c)

    def batched(self, trees: Sequence[Node]) -> Tensor:
        """Logits `[n, 10]`: the program as it is, inside a session."""
        with batching.session() as s:
            roots = [self._recorded(tree)[0] for tree in trees]
        return self.classes(s.stack(roots))

    def _eager(self, node: Node) -> tuple[Tensor, Tensor]:
        if isinstance(node, int):
            return self.leaf_rows(torch.tensor([node]))
        states = [self._eager(child) for child in node[1]]
        h, c = (torch.stack(part).sum(0) for part in zip(*states))
        return self.cell.step_rows(self.symbols.rows(torch.tensor([10 + node[0]])), h, c)

    def eager(self, trees: Sequence[Node]) -> Tensor:
        """The same, one node at a time."""
        return self.classes(torch.cat([self._eager(tree)[0] for tree in trees]))

    def by_hand(self, trees: Sequence[Node]) -> Tensor:
        """The same, level by level, as a person would batch it."""
        levels: list[list[tuple[int, list[tuple[int, int]]]]] = [[]]  # (symbol, children as (level, place))

        def visit(node: Node) -> tuple[int, int]:
            if isinstance(node, int):
                children: list[tuple[int, int]] = []
                level, entry = 0, (node, children)
            else:
                children = [visit(child) for child in node[1]]
                level, entry = 1 + max(at for at, _ in children), (10 + node[0], children)
            while level >= len(levels):
                levels.append([])
            levels[level].append(entry)
            return level, len(levels[level]) - 1

        roots = [visit(tree) for tree in trees]
        first = [0]
        for level in levels:
            first.append(first[-1] + len(level))
        h, c = self.leaf_rows(torch.tensor([symbol for symbol, _ in levels[0]]))
        for level in levels[1:]:
            parents = torch.tensor([i for i, (_, children) in enumerate(level) for _ in children])
            rows = torch.tensor([first[at] + place for _, children in level for at, place in children])
            zero = h.new_zeros(len(level), h.shape[1])
            before = zero.index_add(0, parents, h[rows]), zero.index_add(0, parents, c[rows])
            symbols = self.symbols.rows(torch.tensor([symbol for symbol, _ in level]))
            new_h, new_c = self.cell.step_rows(symbols, *before)
            h, c = torch.cat([h, new_h]), torch.cat([c, new_c])
        return self.classes(h[torch.tensor([first[at] + place for at, place in roots])])

    def loss(self, way: str, trees: Sequence[Node], answers: Tensor) -> Tensor:
        """Cross entropy; `way` is `"batched"`, `"eager"` or `"by_hand"`."""
        return F.cross_entropy(getattr(self, way)(trees), answers)
