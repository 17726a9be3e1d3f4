# SPDX-License-Identifier: Apache-2.0
"""Small drawn instances of every model in `bench.batching.instances.MODELS`: what runs where real data is absent."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

from bench.batching.instances import LENGTH, TAGS
from tests.batching.models import random_tree


def _lattice(rng: random.Random) -> Any:
    size = rng.randrange(1, 8)
    words = [[(rng.randrange(i), rng.randrange(20)) for _ in range(rng.randrange(3))] for i in range(1, size)]
    arcs = [[], *([(i, rng.randrange(20)), *more] for i, more in enumerate(words))]
    return [(each, rng.randrange(TAGS)) for each in arcs]


def _sentence(rng: random.Random) -> Any:
    def word() -> int | tuple[int, ...]:
        return rng.choice([rng.randrange(20), tuple(rng.randrange(20) for _ in range(rng.randrange(1, 5)))])

    return [(word(), rng.randrange(5)) for _ in range(rng.randrange(1, 7))]


def _to_parse(rng: random.Random) -> Any:
    return [rng.randrange(20) for _ in range(rng.randrange(1, 12))], rng.randrange(5)


def _graph(rng: random.Random) -> Any:
    return [[rng.randrange(2) for _ in range(node)] for node in range(rng.randrange(2, 6))]


def _window(rng: random.Random) -> Any:
    return torch.tensor([rng.randrange(128) for _ in range(LENGTH)]), rng.randrange(5), rng.randrange(1000)


def _tree(rng: random.Random) -> Any:
    return random_tree(rng, rng.randrange(1, 10))


DRAWN: dict[str, Callable[[random.Random], Any]] = {
    "TreeLSTM": _tree,
    "TreeGRU": _tree,
    "MV-RNN": _tree,
    "LatticeLSTM": _lattice,
    "LatticeGRU": _lattice,
    "tagger": _sentence,
    "NestedRNN": _graph,
    "DRNN": lambda rng: (rng.randrange(20), rng.randrange(1000)),
    "StackRNN": _to_parse,
    "early exit": _window,
}


def drawn(name: str, count: int, seed: int = 0) -> list[Any]:
    """Instances of a model, the same for a seed."""
    rng = random.Random(seed)
    return [DRAWN[name](rng) for _ in range(count)]
