# SPDX-License-Identifier: Apache-2.0
"""Syntax trees of the batching chapter: examples, vocabulary, the network's two ways."""

from __future__ import annotations

import sysconfig

import pytest
import torch

from edgeops.tour import Context, TourConfig
from edgeops.tour.chapters import _syntax_trees as trees
from edgeops.tour.chapters._syntax_net import SyntaxNet
from edgeops.tour.chapters._syntax_task import SyntaxPlan, train_on_syntax
from edgeops.tour.chapters._syntax_trees import KINDS, MASKED, Vocabulary, examples, files, guesses, read, size

SOURCE = """
def find(words, limit=0):
    for word in words:
        if word.length >= limit and word not in SEEN:
            return word
    if limit == -1 or 0 < limit < 3:
        raise ValueError("none")
    return None is words
"""


def symbols(tree):
    yield tree.symbol
    for child in tree.children:
        yield from symbols(child)


def test_one_example_a_comparison_of_two_operands():
    found = examples(SOURCE)
    told = [(KINDS[e.kind], e.tree.kind) for e in found]
    assert told == [("order", "If"), ("membership", "If"), ("equality", "If"), ("identity", "Return")]
    for example in found:
        assert list(symbols(example.tree)).count(MASKED) == 1


def test_only_the_masked_operator_is_hidden():
    first = examples(SOURCE)[0]
    seen = set(symbols(first.tree))
    assert "Compare GtE" not in seen
    assert {"Compare NotIn", "BoolOp And", "Attribute length", "Name limit", "Return"} <= seen
    assert first.sides == ("Attribute length", "Name limit")
    third = examples(SOURCE)[2]
    assert {"Compare Lt Lt", "UnaryOp USub", "Constant str"} <= set(symbols(third.tree))


def test_fields_tell_left_from_right():
    (example,) = examples("a < b")
    (comparison,) = example.tree.children
    assert [(child.symbol, child.field) for child in comparison.children] == [
        ("Name a", "left"),
        ("Name b", "comparators"),
    ]


def test_large_statements_are_left_out():
    many = ", ".join("x" for _ in range(200))
    assert examples(f"y = [a == b, {many}]") == []


def test_files_of_training_and_testing_differ_and_follow_the_seed():
    trained, tested = read(0, 40, 10)
    assert (len(trained), len(tested)) == (40, 10)
    assert read(0, 40, 10) == (trained, tested)
    assert read(1, 40, 10) != (trained, tested)


def test_the_library_alone_is_read():
    found = files()
    assert len(found) > 50
    assert not [path for path in found if "site-packages" in path.parts or "test" in path.parts]


def test_files_for_another_python_are_passed_over(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("print 'old'\n")
    (tmp_path / "b.py").write_bytes(b"x = '\0'\n")
    for name in "cd":
        (tmp_path / f"{name}.py").write_text("if a < b: pass\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    trained, tested = read(0, 5, 1)
    assert (len(trained), len(tested)) == (1, 1)


def test_no_library_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    plan = SyntaxPlan(steps=1, more=0, batch=2, held_out=2)
    with pytest.raises(RuntimeError, match=r"library must be there as source files; got 0 examples\. Install"):
        train_on_syntax(plan, Context(TourConfig(quick=True)))


def test_rare_symbols_are_known_by_kind(monkeypatch):
    monkeypatch.setattr(trees, "_RARE", 2)
    own = [e.tree for e in examples("if a < b: pass\nif a < c: pass")]
    vocabulary = Vocabulary.of(own)
    assert {"Name a", "Name", "If", MASKED} <= vocabulary.symbols.keys()
    assert "Name c" not in vocabulary.symbols
    numbered = vocabulary.number(own[1])
    assert size(numbered) == size(own[1])
    comparison = numbered.children[0]
    assert comparison.masked
    assert comparison.symbol == vocabulary.symbols[MASKED]
    assert [child.symbol for child in comparison.children] == [vocabulary.symbols["Name a"], vocabulary.symbols["Name"]]
    (strange,) = examples("x = {y: 1 for y in z if y != 1}")
    assert vocabulary.number(strange.tree).symbol == 0  # neither it nor its kind was seen


def test_what_can_be_guessed():
    trained = examples("a == b\na == b\na is None\nc is None\nd is None")
    tested = examples("a == b\nx is None\na == q\nx in y")
    # the commonest is identity; with sides: exact, by right, by left (a is seen with == twice), commonest
    assert guesses(trained, tested) == (0.25, 0.75)


def test_two_ways_agree_in_results_and_gradients():
    found = examples(SOURCE)
    vocabulary = Vocabulary.of(e.tree for e in found)
    own = [vocabulary.number(e.tree) for e in found]
    kinds = torch.tensor([e.kind for e in found])
    torch.manual_seed(0)
    net = SyntaxNet(len(vocabulary.symbols) + 1, len(vocabulary.fields) + 1, 6).double()
    (a, ga), (b, gb) = (
        (loss, torch.autograd.grad(loss, list(net.parameters())))
        for loss in (net.loss(way, own, kinds) for way in ("eager", "batched"))
    )
    for x, y in zip((a, *ga), (b, *gb), strict=True):
        torch.testing.assert_close(x, y)
