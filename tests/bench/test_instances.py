# SPDX-License-Identifier: Apache-2.0
"""Real instances fit the models they are for; the two ways of running programs agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.batching import instances, programs


@pytest.mark.parametrize(
    ("token", "kind"), [("<unk>", 0), ("1,5", 1), ("@-@", 2), ("Ocean", 3), ("ocean", 4), ("'s", 4), ("É", 3)]
)
def test_kinds_of_tokens(token: str, kind: int) -> None:
    assert instances.token_kind(token) == kind


def test_kinds_of_characters() -> None:
    assert [instances.character_kind(c) for c in "\naBb,"] == [0, 1, 3, 2, 4]


def test_sentences_spell_rare_words(shared_data: Callable[[str], Path]) -> None:
    text = shared_data("text/wikitext2_valid.txt").read_text(encoding="utf-8")
    found = instances.sentences(50)
    assert all(found)
    words = [word for sentence in found for word, _ in sentence]
    spelled = [word for word in words if isinstance(word, tuple)]
    assert 0 < len(spelled) < len(words) / 4
    for word in spelled[:20]:
        plain = all(c < instances.CHARACTERS - 1 for c in word)
        assert not plain or text.split().count("".join(map(chr, word))) < instances.RARE
    assert {tag for sentence in found for _, tag in sentence} == set(range(instances.TOKEN_KINDS))


def test_lattices_and_graphs(shared_data: Callable[[str], Path]) -> None:
    shared_data("lattice/train.txt")
    for lattice, graph in zip(instances.lattices(40), instances.graphs(40), strict=True):
        assert len(lattice) == len(graph)
        for node, ((arcs, tag), edges) in enumerate(zip(lattice, graph)):
            assert 0 <= tag < instances.TAGS
            assert all(0 <= at < node and 0 <= word < instances.WORDS for at, word in arcs)
            assert len(edges) == min(node, instances.EDGES)
            near = {at for at, _ in arcs if node - at <= instances.EDGES}
            assert {node - 1 - i for i, edge in enumerate(edges) if edge} == near


def test_parsers_get_the_words_in_order() -> None:
    assert instances.leaves((0, (1, 7), (2, (3, 8), (4, 9)))) == [7, 8, 9]


@pytest.mark.parametrize("name", programs.NAMES)
def test_programs_together_and_one_by_one(name: str, shared_data: Callable[[str], Path]) -> None:
    shared_data("trees/train.txt")
    shared_data("text/tinyshakespeare.txt")
    torch.manual_seed(0)
    model, given = instances.MODELS[name].model(8), instances.MODELS[name].instances(6)
    first, second = programs.together(model, given), programs.one_by_one(model, given)
    torch.testing.assert_close(first.loss, second.loss)
    longest = max(programs.decisions(model, each) for each in given)
    assert 0 < first.flushes <= longest
    assert first.flushes < second.flushes
