# SPDX-License-Identifier: Apache-2.0
"""A doubly recurrent network: trees grown from the root, downwards and sideways. ACRoBat, spec section 7.2."""

from __future__ import annotations

import math
import random
from typing import Any

from torch import nn

from edgeops.batching.cells import GRU, DecisionLoss, Dense, Embedding
from edgeops.batching.models.model import Model
from edgeops.batching.programs import gather, wait


class DRNN(Model):
    """Every node's state comes from its parent's and its former sibling's; it decides whether it has a child and a next
    sibling. Its loss is `-log` of the probability of what it decided.

    Instances: `(word, seed)`, what the root is about and a seed of the draws. A decision is a draw against a
    probability that must be known first; draws depend on the seed and the node's place alone, so they are the same in
    any order. A node's child and its next sibling grow at the same time.

    Args:
        words: how many there are.
        width: of all states.
        deepest: the depth of the lowest nodes; a node at depth d has at most `deepest + 1 - d` siblings.
    """

    def __init__(self, words: int, width: int, deepest: int = 3) -> None:
        super().__init__()
        self.words, self.start = Embedding(words, width), Embedding(1, width)
        self.down, self.along = GRU(width, width), GRU(width, width)
        self.state, self.scores = Dense(2 * width, width, "tanh"), Dense(width, 2)  # `tanh(A a + F f)`; child, sibling
        nn.init.ones_(self.scores.bias)  # trees of some size before training
        self.loss = DecisionLoss()
        self.deepest = deepest

    async def program(self, instance: tuple[int, int]) -> list[Any]:
        """One loss a decision."""
        word, seed = instance
        return await self._grow(self.words.look_up(word), self.start.look_up(0), str(seed), 0, 0)

    async def _grow(self, above: Any, beside: Any, parent: str, depth: int, rank: int) -> list[Any]:
        """A node, all below it and all its later siblings; `parent` is where it hangs, `rank` which child it is."""
        may_have_child = depth < self.deepest
        may_have_sibling = depth > 0 and rank < self.deepest + 1 - depth
        if not (may_have_child or may_have_sibling):
            return []
        place = f"{parent}.{rank}"
        draws = random.Random(place)
        state = self.state.mix(above, beside)
        scores = self.scores.mix(state)
        child, sibling = (_probability(score) > draws.random() for score in (await wait(scores)).tolist())
        branches = []
        if child and may_have_child:
            below = self.down.step(state, above)
            branches.append(self._grow(below, self.start.look_up(0), place, depth + 1, 0))
        if sibling and may_have_sibling:
            after = self.along.step(state, beside)
            branches.append(self._grow(above, after, parent, depth, rank + 1))
        losses = [self.loss(scores, int(child), int(sibling))]
        for grown in await gather(*branches):
            losses += grown
        return losses


def _probability(score: float) -> float:
    """The sigmoid, without overflow."""
    return 0.5 + 0.5 * math.tanh(0.5 * score)
