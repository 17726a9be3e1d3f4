# SPDX-License-Identifier: Apache-2.0
"""Real instances of the models of `edgeops.batching.models`, and the models in sizes that fit them.

* trees: sentiment trees; parsers get their words and the root's label, generators their first word.
* lattices: Chinese word lattices with entity tags; as graphs, a position has an edge to where an arc comes from.
* sentences: wikitext-2, a word that stands there less than five times spelled out; the tag is the kind of token.
* windows: `LENGTH` bytes of Shakespeare; the label is the kind of the next character.

Ids are taken modulo `WORDS`, as in ED-Batch's benchmark. Data lies beside a developer's checkout
(`bench.inputs.SHARED`) and never inside the repository.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench import inputs
from bench.batching.graphs import skip_reason
from bench.batching.tree_lstm import WORDS, Tree, labelled_trees
from bench.registry import Unavailable
from edgeops.batching import models

RARE = 5  # a word that stands in the text less often is spelled
CHARACTERS = 256
TAGS, TOKEN_KINDS, CHARACTER_KINDS = 18, 5, 5
EDGES = 6  # a node tells its edges to so many nodes before it
LENGTH = 16


def _path(name: str) -> Path:
    path = inputs.SHARED / name
    if not path.is_file():
        raise Unavailable(skip_reason(name))
    return path


def trees(count: int) -> list[Tree]:
    """Sentiment trees."""
    return labelled_trees("train", count)


def leaves(tree: Tree) -> list[int]:
    """The words of a tree, in order."""
    return [tree[1]] if len(tree) == 2 else leaves(tree[1]) + leaves(tree[2])


def sentences_to_parse(count: int) -> list[Any]:
    """The words of sentiment trees, and the class of the whole."""
    return [(leaves(tree), tree[0]) for tree in trees(count)]


def roots(count: int) -> list[Any]:
    """The first words of sentiment trees, and a seed each."""
    return [(leaves(tree)[0], seed) for seed, tree in enumerate(trees(count))]


def lattices(count: int) -> list[Any]:
    """By position: arcs `(from, word)`, and a tag."""
    lines = _path("lattice/train.txt").read_text(encoding="utf-8").split("\n")
    found: list[Any] = []
    at = 1
    while len(found) < count:
        size = int(lines[at])
        tags = [int(tag) for tag in lines[at + 1].split()]
        rows = [[int(x) for x in line.split()] for line in lines[at + 2 : at + 2 + size]]
        arcs = [[(row[i], row[i + 1] % WORDS) for i in range(1, 1 + 2 * row[0], 2)] for row in rows]
        found.append(list(zip(arcs, tags)))
        at += 2 + size
        while at < len(lines) and not lines[at].strip():
            at += 1
    return found


def graphs(count: int) -> list[Any]:
    """Lattices as graphs: by node, whether there is an edge to each of the `EDGES` nodes before it, nearest first."""
    return [
        [
            [int(source in {at for at, _ in arcs}) for source in reversed(range(max(0, node - EDGES), node))]
            for node, (arcs, _) in enumerate(lattice)
        ]
        for lattice in lattices(count)
    ]


def token_kind(token: str) -> int:
    """0 unknown, 1 number, 2 punctuation, 3 capitalised, 4 other."""
    if token == "<unk>":
        return 0
    if any(c.isdigit() for c in token):
        return 1
    if not any(c.isalpha() for c in token):
        return 2
    return 3 if token[0].isupper() else 4


@functools.cache
def _text() -> tuple[list[list[str]], Counter[str]]:
    """Sentences of running text, headings left out, and how often each word stands there."""
    lines = _path("text/wikitext2_valid.txt").read_text(encoding="utf-8").splitlines()
    tokens = [line.split() for line in lines if line.strip() and not line.startswith(" =")]

    def sentences() -> Iterator[list[str]]:
        for line in tokens:
            ends = [i + 1 for i, token in enumerate(line) if token == "."]
            for begin, end in itertools.pairwise([0, *ends, len(line)]):
                if begin < end:
                    yield line[begin:end]

    return list(sentences()), Counter(itertools.chain.from_iterable(tokens))


def sentences(count: int) -> list[Any]:
    """By token: its number, or its characters where it is rare; and its kind."""
    found, often = _text()
    ids: dict[str, int] = {}

    def word(token: str) -> int | tuple[int, ...]:
        if often[token] < RARE:
            return tuple(min(ord(c), CHARACTERS - 1) for c in token)
        return ids.setdefault(token, len(ids)) % WORDS

    return [[(word(token), token_kind(token)) for token in sentence] for sentence in found[:count]]


def character_kind(c: str) -> int:
    """0 white space, 1 vowel, 2 consonant, 3 capital, 4 other."""
    if c.isspace():
        return 0
    if c.isupper():
        return 3
    return 4 if not c.isalpha() else 1 if c in "aeiou" else 2


def windows(count: int) -> list[Any]:
    """Bytes of running text, the kind of the character after them, a seed."""
    text = _path("text/tinyshakespeare.txt").read_text(encoding="ascii", errors="replace")
    begins = range(0, count * LENGTH, LENGTH)
    return [
        (torch.tensor([min(ord(c), 127) for c in text[i : i + LENGTH]]), character_kind(text[i + LENGTH]), seed)
        for seed, i in enumerate(begins)
    ]


class Entry(NamedTuple):
    """A model of some width, and its first real instances.

    Attributes:
        decides: whether it looks at its own results.
    """

    model: Callable[[int], models.Model]
    instances: Callable[[int], list[Any]]
    decides: bool = False


MODELS = {
    "TreeLSTM": Entry(lambda width: models.TreeLSTM(WORDS, width), trees),
    "TreeGRU": Entry(lambda width: models.TreeGRU(WORDS, width), trees),
    "MV-RNN": Entry(lambda width: models.MVRNNTree(WORDS, width), trees),
    "LatticeLSTM": Entry(lambda width: models.LatticeLSTM(WORDS, width, TAGS), lattices),
    "LatticeGRU": Entry(lambda width: models.LatticeGRU(WORDS, width, TAGS), lattices),
    "tagger": Entry(lambda width: models.Tagger(WORDS, CHARACTERS, TOKEN_KINDS, width), sentences),
    "NestedRNN": Entry(models.NestedRNN, graphs),
    "DRNN": Entry(lambda width: models.DRNN(WORDS, width), roots, decides=True),
    "StackRNN": Entry(lambda width: models.StackRNN(WORDS, width), sentences_to_parse, decides=True),
    "early exit": Entry(lambda width: models.EarlyExit(128, CHARACTER_KINDS, width, LENGTH), windows, decides=True),
}
