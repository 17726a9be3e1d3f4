# SPDX-License-Identifier: Apache-2.0
"""TreeLSTM on sentiment trees, a loss at every node: edgeops, DyNet's automatic batching, PyTorch eager and by hand.

`python -m bench.batching.tree_lstm [--width 64] [--batch 32] [--train]`. DyNet runs in an environment of its own, whose
Python `EDGEOPS_DYNET` names (`make dynet` makes `.venv-dynet`); it does the same step whenever it is its turn.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import inputs
from bench.batching.graphs import skip_reason
from bench.registry import Unavailable
from edgeops import batching
from edgeops.batching.cells import BinaryTreeLSTM
from edgeops.perf.stats import Samples, paired_ratio

Tree = tuple[Any, ...]  # (label, word id) or (label, left, right)
WORDS = 256  # ids are taken modulo this, as in ED-Batch's benchmark
STRATEGIES = {"dynet agenda": 1, "dynet depth": 2}
OURS = "edgeops"


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


class Model(nn.Module):
    """The cells and the loss, and three ways to run them on a mini-batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tree = BinaryTreeLSTM(width, width, num_embeddings=WORDS)
        self.classes = nn.Linear(width, 5)
        self.loss = batching.cell(self.loss_rows)

    def loss_rows(self, h: Tensor, label: Tensor) -> Tensor:
        """Cross entropy of every row."""
        return F.cross_entropy(self.classes(h), label, reduction="none")

    def batched(self, trees: Sequence[Tree]) -> Tensor:
        """With a session."""
        leaf, inner, loss = self.tree.leaf, self.tree.inner, self.loss
        losses: list[Any] = []

        def visit(t: Tree) -> tuple[Any, Any]:
            if len(t) == 2:
                h, c = leaf(t[1])
            else:
                h, c = inner(*visit(t[1]), *visit(t[2]))
            losses.append(loss(h, t[0]))
            return h, c

        with batching.session() as s:
            for t in trees:
                visit(t)
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


class DyNet:
    """The same step in a process of its own."""

    def __init__(self, trees: Sequence[Tree], width: int, train: bool, strategy: int) -> None:
        python = os.environ.get("EDGEOPS_DYNET", str(inputs.ROOT / ".venv-dynet" / "bin" / "python"))
        if not os.path.isfile(python):
            raise Unavailable("no DyNet: run `make dynet`, or set EDGEOPS_DYNET to a Python that has dynet38")
        program = str(inputs.ROOT / "bench" / "batching" / "peers" / "dynet_tree.py")
        self._process = subprocess.Popen(
            [python, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        job = {"trees": trees, "width": width, "train": train, "strategy": strategy, "words": WORDS}
        self._ask(json.dumps(job), "ready")

    def _ask(self, line: str, until: str = "") -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        for answer in self._process.stdout:
            if not until or answer.strip() == until:
                return answer
        raise RuntimeError("bench.batching.tree_lstm: DyNet must answer; got the end of its output. Run it by hand.")

    def seconds(self) -> float:
        """Process seconds of one step."""
        return float(self._ask(""))

    def __enter__(self) -> DyNet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()


def measure(
    width: int, batch: int, train: bool, rounds: int = 25, eager: bool = True, peers: bool = True
) -> dict[str, Samples]:
    """Process seconds of a step of every candidate, turn by turn in one run.

    Raises:
        Unavailable: no trees, or `peers` and no DyNet.
        RuntimeError: the candidates' losses or gradients differ.
    """
    torch.manual_seed(0)
    trees = labelled_trees("train", batch)
    model = Model(width)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(run: Callable[[Sequence[Tree]], Tensor]) -> float:
        begin = time.process_time()
        with torch.set_grad_enabled(train):
            loss = run(trees)
            if train:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            else:
                loss.item()
        return time.process_time() - begin

    ways: dict[str, Callable[[Sequence[Tree]], Tensor]] = {OURS: model.batched, "by hand": model.by_hand}
    if eager:
        ways["eager"] = model.eager
    losses = {name: run(trees) for name, run in {**ways, "eager": model.eager}.items()}
    grads = {name: torch.autograd.grad(loss, list(model.parameters())) for name, loss in losses.items()}
    for name, found in grads.items():
        for a, b in zip((losses[name], *found), (losses["eager"], *grads["eager"]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))
    turns: dict[str, Callable[[], float]] = {name: lambda run=run: step(run) for name, run in ways.items()}  # type: ignore[misc]
    others = [DyNet(trees, width, train, number) for number in STRATEGIES.values()] if peers else []
    try:
        turns |= {name: other.seconds for name, other in zip(STRATEGIES, others)}
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(rounds + 2):
            for name, turn in turns.items():
                seconds[name].append(turn())
    finally:
        for other in others:
            other.__exit__(None, None, None)
    return {name: Samples(tuple(values[2:])) for name, values in seconds.items()}


def figures(train: bool) -> dict[str, float]:
    """Ratios to the better DyNet strategy, to PyTorch by hand and eager, at widths 64 and 256, 32 trees.

    Raises:
        Unavailable: no trees, or no DyNet.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    try:
        for width in (64, 256):
            samples = measure(width, 32, train)
            best = min(STRATEGIES, key=lambda name: samples[name].median)
            for peer, name in (("DyNet", best), ("by hand", "by hand"), ("eager", "eager")):
                found[f"over {peer}, H {width}"] = paired_ratio(samples[name], samples[OURS]).median
    finally:
        torch.set_num_threads(threads)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 1 where something is not there."""
    parser = argparse.ArgumentParser(prog="python -m bench.batching.tree_lstm", description=__doc__)
    parser.add_argument("--width", type=int, default=64, help="H, default 64")
    parser.add_argument("--batch", type=int, default=32, help="trees, default 32")
    parser.add_argument("--train", action="store_true", help="forward, backward and SGD; otherwise forward")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--no-eager", action="store_true", help="leave the slow one out")
    parser.add_argument("--no-dynet", action="store_true", help="leave DyNet out")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        samples = measure(given.width, given.batch, given.train, given.rounds, not given.no_eager, not given.no_dynet)
    except Unavailable as error:
        print(f"bench.batching.tree_lstm: {error}", file=sys.stderr)
        return 1
    for name, own in samples.items():
        ratio = paired_ratio(own, samples[OURS])
        print(f"{name:14s} {1e3 * own.median:9.2f} ms   edgeops is {ratio} as fast")
    return 0


if __name__ == "__main__":
    sys.exit(main())
