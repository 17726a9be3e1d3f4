# SPDX-License-Identifier: Apache-2.0
"""A tagger that spells rare words: two layers of bidirectional LSTM over a sentence. ED-Batch, section 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeops.batching.cell import cell
from edgeops.batching.cells import LSTM, Embedding
from edgeops.batching.models.model import Classify, Model

Word = int | tuple[int, ...]  # a word, or the characters of a rare one


class BiLSTM(nn.Module):
    """Two chains of an LSTM, one from either end, with start states of their own."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.forwards, self.backwards = LSTM(input_size, hidden_size), LSTM(input_size, hidden_size)
        self.start = Embedding(4, hidden_size)

    def states(self, xs: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Both chains' states at every place."""
        backwards = self._chain(self.backwards, 2, xs[::-1])
        return list(zip(self._chain(self.forwards, 0, xs), backwards[::-1]))

    def _chain(self, lstm: LSTM, start: int, xs: Sequence[Any]) -> list[Any]:
        h, c = self.start.look_up(start), self.start.look_up(start + 1)
        states = []
        for x in xs:
            h, c = lstm.step(x, h, c)
            states.append(h)
        return states


class Tagger(Model):
    """A loss `O tanh(H [f; b])` for every word, f and b from the second of two `BiLSTM`s.

    Instances: sentences of `(word, tag)`, where a rare word is the tuple of its characters; a `BiLSTM` over them
    stands in for the word's embedding.

    Args:
        words, characters, tags: how many there are.
        width: of embeddings and states; even.
    """

    def __init__(self, words: int, characters: int, tags: int, width: int) -> None:
        super().__init__()
        self.words, self.characters = Embedding(words, width), Embedding(characters, width)
        self.spelling = BiLSTM(width, width // 2)
        self.lower, self.upper = BiLSTM(width, width), BiLSTM(2 * width, width)
        self.joined = cell(_joined)
        self.loss = cell(_Tag(width, tags))

    async def program(self, instance: Sequence[tuple[Word, int]]) -> list[Any]:
        """One loss a word."""
        words = [self.words.look_up(word) if isinstance(word, int) else self.spelled(word) for word, _ in instance]
        lower = [self.joined(f, b) for f, b in self.lower.states(words)]
        return [self.loss(f, b, tag) for (f, b), (_, tag) in zip(self.upper.states(lower), instance)]

    def spelled(self, characters: Sequence[int]) -> Any:
        """A word from its characters: the last state of either chain."""
        states = self.spelling.states([self.characters.look_up(each) for each in characters])
        return self.joined(states[-1][0], states[0][1])


def _joined(f: Tensor, b: Tensor) -> Tensor:
    return torch.cat([f, b], 1)


class _Tag(nn.Module):
    def __init__(self, width: int, tags: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * width, width)
        self.classify = Classify(width, tags)

    def forward(self, f: Tensor, b: Tensor, tag: Tensor) -> Tensor:
        loss: Tensor = self.classify(self.hidden(_joined(f, b)).tanh(), tag)
        return loss
