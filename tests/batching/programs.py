# SPDX-License-Identifier: Apache-2.0
"""Random programs with marks: the same code runs eagerly and in a session."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

from edgeops import batching


class Cells(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.words = batching.cell(nn.Embedding(5, width))
        self.one = batching.cell(nn.Linear(width, width))
        self.two = batching.cell(nn.Sequential(nn.Linear(width, width), nn.Tanh()))
        self.add = batching.cell(torch.add)
        self.out = batching.cell(lambda h: h.sin())


def program(cells: Cells, rng: random.Random, outs: list[Any], size: int = 6, depth: int = 0) -> Any:
    """A value after a few calls, parallel parts, branches and outputs."""
    h = cells.words(rng.randrange(5))
    for _ in range(rng.randrange(1, size)):
        kind = rng.randrange(6)
        if kind == 0:
            h = cells.one(h)
        elif kind == 1:
            h = cells.add(h, cells.words(rng.randrange(5)))
        elif kind == 2 and depth < 2:
            parts = [program(cells, rng, outs, size - 2, depth + 1) for _ in batching.each(range(rng.randrange(1, 4)))]
            for part in parts:
                h = cells.add(h, part)
        elif kind == 3:
            if rng.random() < 0.5:
                h = cells.one(cells.two(h))
            else:
                batching.ghost(2)
        elif kind == 4:
            with batching.balanced(2):
                if rng.random() < 0.5:
                    h = cells.two(h)
        else:
            with batching.phase("output"):
                outs.append(cells.out(h))
    return h


def run(cells: Cells, seed: int, instances: int) -> list[Any]:
    """Results and outputs of a mini-batch."""
    rng, outs = random.Random(seed), []
    for _ in batching.each(range(instances)):
        h = program(cells, rng, outs)
        with batching.phase("loss"):
            outs.append(cells.one(cells.out(h)))
    return outs
