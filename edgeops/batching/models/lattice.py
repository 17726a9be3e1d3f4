# SPDX-License-Identifier: Apache-2.0
"""Word lattices of Chinese text: characters and the words they may form, a tag a character. ED-Batch, section 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeops.batching.cells import GRU, LSTM, Classifier, Embedding, RaggedSum
from edgeops.batching.models.model import Model

Arc = tuple[int, int]  # the position it comes from, its word
Lattice = Sequence[tuple[Sequence[Arc], int]]  # by position: the arcs that end there, its tag
State = tuple[Any, ...]


class LatticeModel(Model):
    """A cell for characters, one for words; a position's state is the sum over its arcs, of any number.

    Instances are `Lattice`s. An arc from the position before is a character, others are words; a position without arcs
    has the start state.
    """

    def __init__(self, words: int, width: int, tags: int, parts: int) -> None:
        super().__init__()
        self.words = Embedding(words, width)
        self.start = Embedding(parts, width)
        self.total = RaggedSum()
        self.classes = Classifier(width, tags)
        self.parts = parts

    def step(self, word: bool, x: Any, state: State) -> State:
        """The state at the end of an arc."""
        raise NotImplementedError

    async def program(self, instance: Lattice) -> list[Any]:
        """One loss a position."""
        states: list[State] = []
        losses = []
        for position, (arcs, tag) in enumerate(instance):
            states.append(self._state(position, arcs, states))
            losses.append(self.classes.loss(states[-1][0], tag))
        return losses

    def _state(self, position: int, arcs: Sequence[Arc], states: Sequence[State]) -> State:
        ends = [self.step(at != position - 1, self.words.look_up(word), states[at]) for at, word in arcs]
        if not ends:
            return tuple(self.start.look_up(part) for part in range(self.parts))
        if len(ends) == 1:
            return ends[0]
        sums = self.total(*(list(part) for part in zip(*ends)))
        return sums if isinstance(sums, tuple) else (sums,)


class LatticeLSTM(LatticeModel):
    """LSTM arcs. Instances: by position `([(from, word), ...], tag)`."""

    def __init__(self, words: int, width: int, tags: int) -> None:
        super().__init__(words, width, tags, parts=2)
        self.of_character, self.of_word = LSTM(width, width), LSTM(width, width)

    def step(self, word: bool, x: Any, state: State) -> State:
        """h and c."""
        end: State = (self.of_word if word else self.of_character).step(x, *state)
        return end


class LatticeGRU(LatticeModel):
    """GRU arcs. Instances: by position `([(from, word), ...], tag)`."""

    def __init__(self, words: int, width: int, tags: int) -> None:
        super().__init__(words, width, tags, parts=1)
        self.of_character, self.of_word = GRU(width, width), GRU(width, width)

    def step(self, word: bool, x: Any, state: State) -> State:
        """h."""
        return ((self.of_word if word else self.of_character).step(x, *state),)
