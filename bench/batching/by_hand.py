# SPDX-License-Identifier: Apache-2.0
"""LatticeLSTM as a person would batch it in PyTorch: position by position, all sentences at once.

Words begin where their state is known and are kept until the position where they end. The embeddings of all arcs, and
all losses, are one operation each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeops.batching.models import LatticeLSTM
from edgeops.batching.models.lattice import Lattice


class Step(NamedTuple):
    """A position of all sentences that are so long; they are the first ones.

    Attributes:
        alive: how many.
        characters: sentences that come here by a character, and its id.
        fresh: sentences that begin here: nothing ends at this position.
        begin, words, lengths: the words that begin here, sorted by where they end: sentence, id, and how many end at
            each of `ends`.
        sentences: of the words that end here, in the order in which they began.
    """

    alive: int
    characters: Tensor
    ids: Tensor
    fresh: Tensor
    begin: Tensor
    words: Tensor
    lengths: list[int]
    ends: list[int]
    sentences: Tensor


def plan(lattices: Sequence[Lattice], device: torch.device) -> tuple[list[Step], Tensor]:
    """What each position does, and all tags, position by position."""
    ordered = sorted(lattices, key=len, reverse=True)
    longest = len(ordered[0])
    arcs: list[list[tuple[int, int, int]]] = [[] for _ in range(longest)]  # by begin: end, sentence, id
    characters: list[list[tuple[int, int]]] = [[] for _ in range(longest)]
    fresh: list[list[int]] = [[] for _ in range(longest)]
    for sentence, lattice in enumerate(ordered):
        for position, (ending, _) in enumerate(lattice):
            if not ending:
                fresh[position].append(sentence)
            for begin, word in ending:
                if begin == position - 1:
                    characters[position].append((sentence, word))
                else:
                    arcs[begin].append((position, sentence, word))
    arrived: list[list[int]] = [[] for _ in range(longest)]
    steps: list[Step] = []

    def integers(found: Sequence[int]) -> Tensor:
        return torch.tensor(found, dtype=torch.int64, device=device)

    for position in range(longest):
        alive = sum(len(lattice) > position for lattice in ordered)
        starting = sorted(arcs[position])
        ends = sorted({end for end, _, _ in starting})
        for end, sentence, _ in starting:
            arrived[end].append(sentence)
        steps.append(
            Step(
                alive,
                integers([s for s, _ in characters[position]]),
                integers([i for _, i in characters[position]]),
                integers(fresh[position]),
                integers([s for _, s, _ in starting]),
                integers([i for _, _, i in starting]),
                [sum(end == e for e, _, _ in starting) for end in ends],
                ends,
                integers(arrived[position]),
            )
        )
    tags = [lattice[position][1] for position in range(longest) for lattice in ordered if len(lattice) > position]
    return steps, integers(tags)


def loss_of(model: LatticeLSTM, lattices: Sequence[Lattice]) -> Tensor:
    """The sum of all losses, as the model gives it."""
    device = model.classes.weight.device
    steps, tags = plan(lattices, device)
    embed = model.words.weight
    of_characters = F.embedding(torch.cat([step.ids for step in steps]), embed).split([len(s.ids) for s in steps])
    of_words = F.embedding(torch.cat([step.words for step in steps]), embed).split([len(s.words) for s in steps])
    start = [model.start.weight[part] for part in range(2)]
    pending: dict[int, list[tuple[Tensor, Tensor]]] = {}
    states: list[Tensor] = []
    h = c = embed.new_zeros(0, embed.shape[1])
    for position, step in enumerate(steps):
        new = [embed.new_zeros(step.alive, embed.shape[1]) for _ in range(2)]
        if len(step.characters):
            ends: Any = model.of_character(of_characters[position], (h[step.characters], c[step.characters]))
            new = [x.index_add(0, step.characters, y) for x, y in zip(new, ends)]
        if len(step.fresh):
            new = [x.index_add(0, step.fresh, y.expand(len(step.fresh), -1)) for x, y in zip(new, start)]
        if len(step.sentences):
            ended = [torch.cat(parts) for parts in zip(*pending.pop(position))]
            new = [x.index_add(0, step.sentences, y) for x, y in zip(new, ended)]
        h, c = new
        states.append(h)
        if len(step.begin):
            begun: Any = model.of_word(of_words[position], (h[step.begin], c[step.begin]))
            for end, *parts in zip(step.ends, *(x.split(step.lengths) for x in begun)):
                pending.setdefault(end, []).append((parts[0], parts[1]))
    return F.cross_entropy(F.linear(torch.cat(states), *model.classes.parameters()), tags, reduction="sum")
