# SPDX-License-Identifier: Apache-2.0
"""Small dynamic models as a user writes them: the same code runs eagerly and in a session."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeops import batching

Tree = tuple[Any, ...]  # (label, word) or (label, left, right)


def random_tree(rng: random.Random, leaves: int) -> Tree:
    if leaves == 1:
        return rng.randrange(5), rng.randrange(30)
    left = rng.randrange(1, leaves)
    return rng.randrange(5), random_tree(rng, left), random_tree(rng, leaves - left)


def random_trees(seed: int, count: int, most: int = 15) -> list[Tree]:
    rng = random.Random(seed)
    return [random_tree(rng, rng.randrange(1, most)) for _ in range(count)]


class TreeLSTM(nn.Module):
    """Binary TreeLSTM with a loss at every node."""

    def __init__(self, width: int = 8, words: int = 30) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.of_word = nn.Linear(width, 3 * width)
        self.of_children = nn.Linear(2 * width, 5 * width)
        self.classes = nn.Linear(width, 5)
        self.leaf = batching.cell(self._leaf)
        self.inner = batching.cell(self._inner)
        self.loss = batching.cell(self._loss)

    def _leaf(self, word: Tensor) -> tuple[Tensor, Tensor]:
        i, o, u = self.of_word(self.words(word)).chunk(3, -1)
        c = i.sigmoid() * u.tanh()
        return o.sigmoid() * c.tanh(), c

    def _inner(self, h1: Tensor, c1: Tensor, h2: Tensor, c2: Tensor) -> tuple[Tensor, Tensor]:
        i, o, u, f1, f2 = self.of_children(torch.cat([h1, h2], -1)).chunk(5, -1)
        c = i.sigmoid() * u.tanh() + f1.sigmoid() * c1 + f2.sigmoid() * c2
        return o.sigmoid() * c.tanh(), c

    def _loss(self, h: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self.classes(h), label, reduction="none")

    def forward(self, tree: Tree, losses: list[Any]) -> tuple[Any, Any]:
        if isinstance(tree[1], int):
            h, c = self.leaf(tree[1])
        else:
            h, c = self.inner(*self(tree[1], losses), *self(tree[2], losses))
        losses.append(self.loss(h, tree[0]))
        return h, c
