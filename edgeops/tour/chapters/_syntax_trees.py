# SPDX-License-Identifier: Apache-2.0
"""Syntax trees of Python's own standard library, and a task on them: which kind of comparison stood here?

Every machine with Python has these files. An example is one statement, with the statements nested in it, in which one
comparison has lost its operator: `if len(rest) ? 2` compares by order, `x ? None` most often by identity.
"""

from __future__ import annotations

import ast
import os
import random
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgeops.tour.chapter import Step

KINDS = ("equality", "order", "identity", "membership")
_KIND_OF = {
    **dict.fromkeys((ast.Eq, ast.NotEq), 0),
    **dict.fromkeys((ast.Lt, ast.LtE, ast.Gt, ast.GtE), 1),
    **dict.fromkeys((ast.Is, ast.IsNot), 2),
    **dict.fromkeys((ast.In, ast.NotIn), 3),
}
MASKED = "Compare ?"
_LARGEST = 80  # nodes; larger ones are mostly tables of constants
_IN_SYMBOLS = (ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context)
_RARE = 20  # symbols seen less often in training are known by the kind of their node alone
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}  # not everywhere


class Node(NamedTuple):
    """What a node is, in full and by kind alone, which field of its parent holds it, and its children."""

    symbol: str
    kind: str
    field: str
    children: list[Node]


class Numbered(NamedTuple):
    """The same in numbers of a vocabulary."""

    symbol: int
    field: int
    children: list[Numbered]
    masked: bool


class Example(NamedTuple):
    """A statement, the kind (of `KINDS`) of the comparison that it has lost, and what stood left and right of that."""

    tree: Node
    kind: int
    sides: tuple[str, str]


def files() -> list[Path]:
    """Modules of the standard library, in a fixed order."""
    found = []
    for folder, inner, names in os.walk(sysconfig.get_paths()["stdlib"]):
        inner[:] = [name for name in inner if name not in _LEFT_OUT]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


def _symbol(node: ast.AST) -> str:
    """What a node is, apart from its children.

    >>> [_symbol(ast.parse(text, mode="eval").body) for text in ("a", "a.b", "None", "12345", "a < b", "-a")]
    ['Name a', 'Attribute b', 'Constant None', 'Constant int', 'Compare Lt', 'UnaryOp USub']
    """
    kind, detail = type(node).__name__, ""
    match node:
        case ast.Name(id=text) | ast.Attribute(attr=text):
            detail = text
        case ast.Constant(value=value):
            plain = value is None or value is ... or isinstance(value, bool)
            short = isinstance(value, (int, str, bytes)) and len(repr(value)) <= 3
            detail = repr(value) if plain or short else type(value).__name__
        case ast.BinOp(op=op) | ast.UnaryOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op):
            detail = type(op).__name__
        case ast.Compare(ops=ops):
            detail = " ".join(type(op).__name__ for op in ops)
        case ast.keyword(arg=text):
            detail = str(text)
    return f"{kind} {detail}".rstrip()


def _parts(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Children by field, but for operators, which their parents' symbols tell."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, _IN_SYMBOLS):
                yield name, child


def _tree(node: ast.AST, field: str, masked: ast.AST) -> Node:
    symbol = MASKED if node is masked else _symbol(node)
    return Node(symbol, type(node).__name__, field, [_tree(child, name, masked) for name, child in _parts(node)])


def size(tree: Node | Numbered) -> int:
    """Nodes of a tree."""
    return 1 + sum(size(child) for child in tree.children)


def examples(source: bytes | str) -> list[Example]:
    """One example for every comparison of two operands in a module.

    >>> [(KINDS[e.kind], e.sides, size(e.tree)) for e in examples("while a.b < 2: x = y is None")]
    [('order', ('Attribute b', 'Constant 2'), 10), ('identity', ('Name y', 'Constant None'), 5)]
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of the library's own
        module = ast.parse(source)
    found = []
    for statement, node in _comparisons(module):
        sides = _symbol(node.left), _symbol(node.comparators[0])
        tree = _tree(statement, "", node)
        if size(tree) <= _LARGEST:
            found.append(Example(tree, _KIND_OF[type(node.ops[0])], sides))
    return found


def _comparisons(module: ast.Module) -> Iterator[tuple[ast.stmt, ast.Compare]]:
    """Comparisons of two operands, each with the innermost statement around it."""
    stack: list[tuple[ast.stmt, ast.AST]] = [(statement, statement) for statement in reversed(module.body)]
    while stack:
        statement, node = stack.pop()
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            yield statement, node
        for child in reversed(list(ast.iter_child_nodes(node))):
            stack.append((child if isinstance(child, ast.stmt) else statement, child))


def read(
    seed: int, training: int, held_out: int, progress: Step = lambda done, total: None
) -> tuple[list[Example], list[Example]]:
    """So many examples to train on and to test with, from different files that are drawn by the seed.

    Fewer where the library is smaller; at least one file goes to testing.
    """
    order = files()
    rng = random.Random(seed)
    rng.shuffle(order)
    tested: list[Example] = []
    trained: list[Example] = []
    for path in order:
        into, wanted = (tested, held_out) if len(tested) < held_out else (trained, training)
        if len(into) >= wanted:
            break
        try:
            into += examples(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # a file for another version of Python
        progress(min(len(trained) + len(tested), training + held_out), training + held_out)
    rng.shuffle(trained)
    return trained[:training], tested[:held_out]


@dataclass(frozen=True)
class Vocabulary:
    """Numbers of symbols and fields."""

    symbols: dict[str, int]
    fields: dict[str, int]

    @classmethod
    def of(cls, trees: Iterable[Node]) -> Vocabulary:
        """Symbols that occur a few times, kinds and fields of these trees; number 0 stands for all others."""
        count: Counter[str] = Counter()
        kinds, fields = set(), set()
        stack = list(trees)
        while stack:
            node = stack.pop()
            count[node.symbol] += 1
            kinds.add(node.kind)
            fields.add(node.field)
            stack += node.children
        symbols = sorted(kinds | {symbol for symbol, times in count.items() if times >= _RARE} | {MASKED})
        numbers = ({name: i for i, name in enumerate(names, 1)} for names in (symbols, sorted(fields)))
        return cls(*numbers)

    def number(self, tree: Node) -> Numbered:
        """A tree in numbers."""
        symbol = self.symbols.get(tree.symbol, self.symbols.get(tree.kind, 0))
        children = [self.number(child) for child in tree.children]
        return Numbered(symbol, self.fields.get(tree.field, 0), children, tree.symbol == MASKED)


def guesses(trained: list[Example], tested: list[Example]) -> tuple[float, float]:
    """Shares that are right without a network: always the commonest kind; the commonest between these two sides.

    The second asks for both sides, then for the right one, then for the left one, whichever was seen in training.
    """
    by: dict[object, Counter[int]] = {}
    for example in trained:
        left, right = example.sides
        for key in ((left, right), (None, right), (left, None), None):
            by.setdefault(key, Counter())[example.kind] += 1
    usual = by[None].most_common(1)[0][0]
    right_usual = right_sides = 0
    for example in tested:
        left, right = example.sides
        known = next(by[key] for key in ((left, right), (None, right), (left, None), None) if key in by)
        right_usual += example.kind == usual
        right_sides += example.kind == known.most_common(1)[0][0]
    return right_usual / len(tested), right_sides / len(tested)
