# SPDX-License-Identifier: Apache-2.0
"""Sentiment trees, a loss at every node. ED-Batch, section 5."""

from __future__ import annotations

from typing import Any

from edgeops.batching.cells import MVRNN, BinaryTreeGRU, BinaryTreeLSTM, Classifier, Embedding
from edgeops.batching.models.model import Model

Tree = tuple[Any, ...]  # (label, word) or (label, left, right)
State = tuple[Any, ...]


class TreeModel(Model):
    """A leaf cell, an inner cell and a loss at every node; instances are `Tree`s of integers."""

    read = 0  # which part of a state is classified
    tree: Any  # has cells `leaf(word)` and `inner(*left, *right)`, which give the parts of a state

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classes = Classifier(width, classes)

    def leaf(self, word: int) -> State:
        """The state of a word."""
        state: State = self.tree.leaf(word)
        return state

    def inner(self, left: State, right: State) -> State:
        """The state of a node from its children's."""
        state: State = self.tree.inner(*left, *right)
        return state

    async def program(self, instance: Tree) -> list[Any]:
        """One loss a node, children first."""
        losses: list[Any] = []
        self._visit(instance, losses)
        return losses

    def _visit(self, tree: Tree, losses: list[Any]) -> State:
        if len(tree) == 2:
            state = self.leaf(tree[1])
        else:
            state = self.inner(self._visit(tree[1], losses), self._visit(tree[2], losses))
        losses.append(self.classes.loss(state[self.read], tree[0]))
        return state


class TreeLSTM(TreeModel):
    """`BinaryTreeLSTM` on trees. Instances: `(label, word)` or `(label, left, right)`."""

    def __init__(self, words: int, width: int, classes: int = 5) -> None:
        super().__init__(width, classes)
        self.tree = BinaryTreeLSTM(width, width, num_embeddings=words)


class TreeGRU(TreeModel):
    """`BinaryTreeGRU` on trees. Instances: `(label, word)` or `(label, left, right)`."""

    def __init__(self, words: int, width: int, classes: int = 5) -> None:
        super().__init__(width, classes)
        self.words = Embedding(words, width)
        self.tree = BinaryTreeGRU(width, width)

    def leaf(self, word: int) -> State:
        """h."""
        return (self.tree.leaf(self.words.look_up(word)),)

    def inner(self, left: State, right: State) -> State:
        """h."""
        return (self.tree.inner(*left, *right),)


class MVRNNTree(TreeModel):
    """`MVRNN` on trees. Instances: `(label, word)` or `(label, left, right)`."""

    read = 1

    def __init__(self, words: int, width: int, classes: int = 5) -> None:
        super().__init__(width, classes)
        self.tree = MVRNN(words, width)
