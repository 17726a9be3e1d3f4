# SPDX-License-Identifier: Apache-2.0
"""A parser that shifts words onto a stack and reduces its top, as it decides itself. ACRoBat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeops.batching.cells import GRU, Classifier, DecisionLoss, Dense, Embedding
from edgeops.batching.models.model import Model
from edgeops.batching.programs import wait


class StackRNN(Model):
    """Shift-reduce over a stack of vectors; the sentence's class is read from what is left at the end.

    A GRU follows the parse: it sees the next word and the two topmost entries, and its score decides between shifting
    and reducing wherever both can be done. The losses: the class, and `-log` of the probability of every decision.

    Instances: `(words, label)`, at least one word.
    """

    def __init__(self, words: int, width: int, classes: int = 5) -> None:
        super().__init__()
        self.words, self.start = Embedding(words, width), Embedding(1, width)
        self.view, self.reduce = Dense(3 * width, width, "tanh"), Dense(3 * width, width, "tanh")
        self.follow = GRU(width, width)
        self.score = Dense(width, 1)
        self.decided = DecisionLoss()
        self.classes = Classifier(width, classes)

    async def program(self, instance: tuple[Sequence[int], int]) -> list[Any]:
        """The losses of the decisions and of the class."""
        words, label = [self.words.look_up(word) for word in reversed(instance[0])], instance[1]
        stack: list[Any] = []
        parse, losses = self.start.look_up(0), []
        while words or len(stack) > 1:
            reduce = not words
            if words and len(stack) > 1:
                parse = self.follow.step(self.view.mix(words[-1], stack[-1], stack[-2]), parse)
                score = self.score.mix(parse)
                reduce = (await wait(score)).item() > 0
                losses.append(self.decided(score, int(reduce)))
            if reduce:
                right, left = stack.pop(), stack.pop()
                stack.append(self.reduce.mix(left, right, parse))
            else:
                stack.append(words.pop())
        return [*losses, self.classes.loss(stack[0], label)]
