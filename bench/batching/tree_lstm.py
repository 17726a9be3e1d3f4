# SPDX-License-Identifier: Apache-2.0
"""TreeLSTM on sentiment trees, a loss at every node: edgeops, DyNet's automatic batching, PyTorch eager and by hand.

`python -m bench.batching.tree_lstm [--width 64] [--batch 32] [--train]`, or `--grid` for all widths and batches.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench import inputs
from bench.batching import side_by_side
from bench.batching.graphs import skip_reason
from bench.batching.side_by_side import EAGER, OURS, DyNet
from bench.registry import Unavailable
from edgeops import batching, perf
from edgeops.batching.cells import BinaryTreeLSTM, Classifier
from edgeops.perf.stats import Samples

Tree = tuple[Any, ...]  # (label, word id) or (label, left, right)
WORDS = 256  # ids are taken modulo this, as in ED-Batch's benchmark
BY_HAND = "by hand"
WIDTHS = (64, 128, 256, 512)
BATCHES = {1: 40, 8: 25, 32: 15, 128: 7}  # trees, and how many rounds they are measured in the grid


def labelled_trees(split: str, count: int) -> list[Tree]:
    """The first `count` trees of `"train"` or `"dev"`, with labels and word ids in order of first use, modulo 256.

    Raises:
        Unavailable: the data is not there.
    """
    path = inputs.SHARED / "trees" / f"{split}.txt"
    if not path.is_file():
        raise Unavailable(skip_reason("trees"))
    ids: dict[str, int] = {}

    def tree(node: list[Any]) -> Tree:
        if len(node) == 2:
            return int(node[0]), ids.setdefault(node[1], len(ids)) % WORDS
        return int(node[0]), tree(node[1]), tree(node[2])

    def token(found: re.Match[str]) -> str:
        text = found.group()
        return {"(": "[", ")": "]"}.get(text) or ("," if text.isspace() else json.dumps(text))

    with path.open(encoding="utf-8") as file:
        lines = [next(file).strip() for _ in range(count)]
    return [tree(json.loads(re.sub(r"[()]|\s+|[^\s()]+", token, line))) for line in lines]


def record(t: Tree, leaf: Any, inner: Any, loss: Any, losses: list[Any]) -> tuple[Any, Any]:
    """The state of a node. No closure: one that calls itself would keep the values until the collector comes."""
    if len(t) == 2:
        h, c = leaf(t[1])
    else:
        h1, c1 = record(t[1], leaf, inner, loss, losses)
        h2, c2 = record(t[2], leaf, inner, loss, losses)
        h, c = inner(h1, c1, h2, c2)
    losses.append(loss(h, t[0]))
    return h, c


class Model(nn.Module):
    """The cells and the loss, and three ways to run them on a mini-batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tree = BinaryTreeLSTM(width, width, num_embeddings=WORDS)
        self.classes = Classifier(width, 5)

    def loss_rows(self, h: Tensor, label: Tensor) -> Tensor:
        """Cross entropy of every row."""
        return self.classes.loss_rows(h, label)

    def batched(self, trees: Sequence[Tree]) -> Tensor:
        """With a session."""
        leaf, inner, loss = self.tree.leaf, self.tree.inner, self.classes.loss
        losses: list[Any] = []
        with batching.session() as s:
            for t in trees:
                record(t, leaf, inner, loss, losses)
        return s.sum(losses)

    def eager(self, trees: Sequence[Tree]) -> Tensor:
        """One node at a time."""
        losses: list[Tensor] = []

        def visit(t: Tree) -> tuple[Tensor, Tensor]:
            if len(t) == 2:
                h, c = self.tree.leaf_rows(torch.tensor([t[1]]))
            else:
                h, c = self.tree.inner_rows(*visit(t[1]), *visit(t[2]))
            losses.append(self.loss_rows(h, torch.tensor([t[0]])))
            return h, c

        for t in trees:
            visit(t)
        return torch.cat(losses).sum()

    def by_hand(self, trees: Sequence[Tree]) -> Tensor:
        """Level by level, as a person would write it: rows of a table, one product a level."""
        levels: list[list[tuple[int, int, int]]] = [
            []
        ]  # leaves (word, _, label), then inner nodes (left, right, label)
        places: list[list[int]] = [[]]
        made = 0

        def visit(t: Tree) -> tuple[int, int]:
            nonlocal made
            if len(t) == 2:
                level, entry = 0, (t[1], 0, t[0])
            else:
                (a, left), (b, right) = visit(t[1]), visit(t[2])
                level, entry = 1 + max(a, b), (left, right, t[0])
            if level == len(levels):
                levels.append([])
                places.append([])
            levels[level].append(entry)
            places[level].append(made)
            made += 1
            return level, made - 1

        for t in trees:
            visit(t)
        row = torch.empty(made, dtype=torch.int64)
        row[torch.tensor([p for level in places for p in level])] = torch.arange(made)
        table = torch.tensor([entry for level in levels for entry in level])
        sizes = [len(level) for level in levels]
        words, rest = table[: sizes[0], 0], row[table[sizes[0] :, :2]].split(sizes[1:])
        h, c = self.tree.leaf_rows(words)
        if torch.is_grad_enabled():
            for left, right in (x.unbind(1) for x in rest):
                more = self.tree.inner_rows(h[left], c[left], h[right], c[right])
                h, c = torch.cat([h, more[0]]), torch.cat([c, more[1]])
        else:
            hs, cs = h.new_empty(made, h.shape[1]), h.new_empty(made, h.shape[1])
            hs[: sizes[0]], cs[: sizes[0]] = h, c
            at = sizes[0]
            for left, right in (x.unbind(1) for x in rest):
                end = at + len(left)
                hs[at:end], cs[at:end] = self.tree.inner_rows(hs[left], cs[left], hs[right], cs[right])
                at = end
            h = hs
        return self.loss_rows(h, table[:, 2]).sum()

    def for_dynet(self) -> list[Tensor]:
        """Parameters in the order of `peers/dynet_tree.py`: a matrix and a bias for each of i, o and u."""
        tree = self.tree
        assert tree.embedding is not None
        found: list[Tensor] = [tree.embedding]
        for weight, bias in ((tree.leaf_weight, tree.leaf_bias), (tree.inner_weight, tree.inner_bias)):
            for pair in zip(weight.chunk(3), bias.chunk(3)):
                found += pair
        return [*found, tree.forget_left, tree.forget_right, tree.forget_bias, self.classes.weight, self.classes.bias]


def measure(
    width: int, batch: int, train: bool, rounds: int = 25, eager: bool = True, dynet: bool = True
) -> dict[str, Samples]:
    """Process seconds of a step of every candidate, turn by turn in one run.

    Raises:
        Unavailable: no trees, or `dynet` and no DyNet.
        AssertionError, RuntimeError: the candidates' losses or gradients differ.
    """
    torch.manual_seed(0)
    trees = labelled_trees("train", batch)
    model = Model(width)
    ways = {
        OURS: lambda m: m.batched(trees),
        BY_HAND: lambda m: m.by_hand(trees),
        EAGER: lambda m: m.eager(trees),
    }

    def peer(strategy: int) -> DyNet:
        return DyNet("dynet_tree.py", trees, model.for_dynet(), train, strategy)

    return side_by_side.measure(model, ways, train, rounds, peer if dynet else None, eager)


def figures(train: bool) -> dict[str, float]:
    """Ratios to the better DyNet strategy, to PyTorch by hand and eager, at widths 64 and 256, 32 trees.

    Raises:
        Unavailable: no trees, or no DyNet.
    """
    found: dict[str, float] = {}
    with perf.thread_count(1):
        for width in (64, 256):
            samples = measure(width, 32, train)
            for peer, name in (("DyNet", side_by_side.better_dynet(samples)), (BY_HAND, BY_HAND), (EAGER, EAGER)):
                found[f"over {peer}, H {width}"] = side_by_side.ratio(samples, name)
    return found


def grid(train: bool, dynet: bool) -> Iterator[tuple[int, int, dict[str, Samples]]]:
    """Width, batch and `measure` at every point of `WIDTHS` and `BATCHES`, eager PyTorch untimed."""
    for width, (batch, rounds) in itertools.product(WIDTHS, BATCHES.items()):
        yield width, batch, measure(width, batch, train, rounds, eager=False, dynet=dynet)


def grid_figures() -> dict[str, float]:
    """Least ratio to PyTorch by hand over the grid.

    Raises:
        Unavailable: no trees.
    """
    found: dict[str, float] = {}
    with perf.thread_count(1):
        for name, train in (("inference", False), ("training", True)):
            ratios = {}
            for width, batch, samples in grid(train, dynet=False):
                ratios[width, batch] = side_by_side.ratio(samples, BY_HAND)
                print(f"  {name}, H {width}, {batch} trees: {ratios[width, batch]:.2f}x", flush=True)
            found[f"least over by hand, {name}"] = min(ratios.values())
    return found


def show_grid(dynet: bool) -> None:
    """Print the grid as a table: milliseconds of ours, and how many times as long the others take."""
    print("| | H | trees | edgeops, ms | by hand | better DyNet |\n|---|--:|--:|--:|--:|--:|")
    for name, train in (("inference", False), ("training", True)):
        for width, batch, samples in grid(train, dynet):
            other = f"{side_by_side.ratio(samples, side_by_side.better_dynet(samples)):.2f}x" if dynet else "-"
            by_hand = f"{side_by_side.ratio(samples, BY_HAND):.2f}x"
            own = f"{1e3 * samples[OURS].median:.2f}"
            print(f"| {name} | {width} | {batch} | {own} | {by_hand} | {other} |", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 1 where something is not there."""
    prog = "bench.batching.tree_lstm"
    parser = side_by_side.arguments(prog, __doc__, "trees")
    parser.add_argument("--grid", action="store_true", help="all widths and batches, inference and training")
    given = parser.parse_args(argv)
    try:
        with perf.thread_count(1):
            if given.grid:
                show_grid(not given.no_dynet)
                return 0
            eager, dynet = not given.no_eager, not given.no_dynet
            side_by_side.show(measure(given.width, given.batch, given.train, given.rounds, eager, dynet))
    except Unavailable as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
