# SPDX-License-Identifier: Apache-2.0
"""What every step of ACRoBat's hybrid batching is worth: its ladder as switches of a session, rung by rung.

    python -m bench.batching.ladder                    # all programs
    python -m bench.batching.ladder "random trees"     # one
    python -m bench.batching.ladder --width 256 --batch 8

Every rung keeps what the rungs before it switched on. Draws are seeded, so that all rungs run the same programs.
Milliseconds are process CPU time, forward, the median of rounds taken turn by turn.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.batching import graphs, tree_lstm
from bench.batching.schedule import best_seconds
from edgeops import batching
from edgeops.batching.cells import LSTM, BinaryTreeLSTM, Embedding

WORDS = 256
CLASSES = 5
LAZY: dict[str, Any] = {
    "scheduler": "inline",
    "depth": "program",
    "forks": False,
    "hoist": False,
    "phases": False,
    "ghosts": False,
}
STEPS: dict[str, dict[str, Any]] = {
    "lazy": LAZY,
    "inline depth": {"forks": True},
    "hoisting": {"hoist": True},
    "phases": {"phases": True},
    "ghost steps": {"ghosts": True},
    "coarsening": {"coarsen": True},
    "fused cells": {"native": True, "gather_mode": "copy"},
    "fused gather": {"gather_mode": "index"},
    # ours: beyond ACRoBat
    "depth by data": {"depth": "data"},
    "sufficient": {"scheduler": "sufficient"},
}
RUNGS: dict[str, dict[str, Any]] = {}
for _name, _step in STEPS.items():
    RUNGS[_name] = {**(list(RUNGS.values())[-1] if RUNGS else {}), **_step}


class Program(nn.Module):
    """Cells and a mini-batch of programs. `native` cells have kernels that read operands where they stand."""

    def __init__(self, width: int, batch: int) -> None:
        super().__init__()
        self.width = width
        self.batch = batch
        self.scores = nn.Linear(width, CLASSES)
        self.project = batching.cell(self.scores)
        self.entropy = batching.cell(lambda scores, label: F.cross_entropy(scores, label, reduction="none"))

    def loss(self, h: Any, label: int) -> Any:
        """Two cells that always follow one another, in a phase of their own."""
        with batching.phase("loss"):
            return self.entropy(self.project(h), label)

    def record(self, session: batching.Session, native: bool) -> list[Any]:
        """Record the mini-batch; what it is asked for, values of one shape."""
        raise NotImplementedError


class Trees(Program):
    """TreeLSTM with a loss at every node, on sentiment trees or, without the data, random ones."""

    def __init__(self, width: int, batch: int) -> None:
        super().__init__(width, batch)
        self.tree = BinaryTreeLSTM(width, width, num_embeddings=WORDS)
        self.fused = self.tree.leaf, self.tree.inner
        self.plain = batching.cell(self.tree.leaf_rows), batching.cell(self.tree.inner_rows)
        rng = random.Random(0)
        if graphs.have("trees"):
            self.trees = tree_lstm.labelled_trees("train", batch)
        else:
            self.trees = [_random_tree(rng, rng.randrange(3, 40)) for _ in range(batch)]

    def record(self, session: batching.Session, native: bool) -> list[Any]:
        leaf, inner = self.fused if native else self.plain
        losses: list[Any] = []

        def visit(t: tree_lstm.Tree) -> tuple[Any, Any]:
            if len(t) == 2:
                h, c = leaf(t[1])
            else:
                (h1, c1), (h2, c2) = (visit(child) for child in session.each(t[1:]))
                h, c = inner(h1, c1, h2, c2)
            losses.append(self.loss(h, t[0]))
            return h, c

        for t in session.each(self.trees):
            visit(t)
        return losses


def _random_tree(rng: random.Random, leaves: int) -> tree_lstm.Tree:
    label = rng.randrange(CLASSES)
    if leaves == 1:
        return label, rng.randrange(WORDS)
    left = rng.randrange(1, leaves)
    return label, _random_tree(rng, left), _random_tree(rng, leaves - left)


class Tagger(Program):
    """A BiLSTM over sentences of different lengths, with a classifier at every word."""

    def __init__(self, width: int, batch: int) -> None:
        super().__init__(width, batch)
        self.words = Embedding(WORDS, width)
        self.steps = nn.ModuleList([LSTM(width, width), LSTM(width, width)])
        self.fused = self.words.look_up, [m.step for m in self.steps]
        self.plain = batching.cell(self.words.rows), [batching.cell(m.step_rows) for m in self.steps]
        self.start = batching.cell(self._start)
        self.join = batching.cell(torch.add)
        rng = random.Random(1)
        self.sentences = [[rng.randrange(WORDS) for _ in range(rng.randrange(4, 40))] for _ in range(batch)]

    def _start(self, which: Tensor) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(len(which), self.width)
        return zeros, zeros.clone()

    def record(self, session: batching.Session, native: bool) -> list[Any]:
        look_up, steps = self.fused if native else self.plain
        losses: list[Any] = []
        for sentence in session.each(self.sentences):
            sides = []
            for step, words in session.each(zip(steps, (sentence, sentence[::-1]))):
                h, c = self.start(0)
                side = []
                for word in words:
                    h, c = step(look_up(word), h, c)
                    side.append(h)
                sides.append(side)
            for word, h1, h2 in zip(sentence, sides[0], reversed(sides[1])):
                with session.phase("loss"):
                    losses.append(self.loss(self.join(h1, h2), word % CLASSES))
        return losses


class EarlyExit(Program):
    """One layer again and again until a unit says stop, then a classifier: every decision needs a result.

    What the unit says is drawn, as in ACRoBat's benchmark, and read all the same.
    """

    MOST = 6

    def __init__(self, width: int, batch: int) -> None:
        super().__init__(width, batch)
        self.layer = batching.cell(nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)))
        self.stop = batching.cell(nn.Linear(width, 1))
        self.words = Embedding(WORDS, width)
        self.fused, self.plain = self.words.look_up, batching.cell(self.words.rows)
        rng = random.Random(2)
        self.depths = [rng.randrange(1, self.MOST + 1) for _ in range(batch)]

    async def _program(self, session: batching.Session, look_up: Any, word: int, layers: int) -> Any:
        h = look_up(word)
        for _ in range(layers):
            h = self.layer(h)
            await self.stop(h)
        await session.phase("loss")
        return self.entropy(self.project(h), word % CLASSES)

    def record(self, session: batching.Session, native: bool) -> list[Any]:
        look_up = self.fused if native else self.plain
        return session.run(self._program(session, look_up, i % WORDS, n) for i, n in enumerate(self.depths))


class Generator(Program):
    """A generator of trees: every node refines its state or not, as drawn, and has drawn children.

    Written in small cells, as models often are.
    """

    def __init__(self, width: int, batch: int) -> None:
        super().__init__(width, batch)
        self.words = Embedding(WORDS, width)
        self.fused, self.plain = self.words.look_up, batching.cell(self.words.rows)
        self.narrow = batching.cell(nn.Sequential(nn.Linear(width, width), nn.GELU()))
        self.widen = batching.cell(nn.Sequential(nn.Linear(width, width), nn.Tanh()))
        self.mix = [batching.cell(m) for m in (nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh())]
        self.of_parent = nn.Linear(width, width)
        self.child = batching.cell(self._child)

    def _child(self, h: Tensor, word: Tensor) -> Tensor:
        return torch.tanh(self.of_parent(h) + word)

    def record(self, session: batching.Session, native: bool) -> list[Any]:
        look_up, rng = self.fused if native else self.plain, random.Random(3)
        losses: list[Any] = []

        def node(h: Any, level: int) -> None:
            with session.balanced(2):
                if rng.random() < 0.5:
                    h = self.widen(self.narrow(h))
            for cell in self.mix:
                h = cell(h)
            losses.append(self.loss(h, rng.randrange(CLASSES)))
            for _ in session.each(range(rng.randrange(max(1, 4 - level // 2)))):
                node(self.child(h, look_up(rng.randrange(WORDS))), level + 1)

        for _ in session.each(range(self.batch)):
            node(look_up(rng.randrange(WORDS)), 0)
        return losses


PROGRAMS: dict[str, type[Program]] = {
    "TreeLSTM": Trees,
    "BiLSTM": Tagger,
    "early exit": EarlyExit,
    "random trees": Generator,
}
# where rungs show what they are for
SHOWCASES = (
    ("inline depth", "TreeLSTM"),
    ("hoisting", "BiLSTM"),
    ("phases", "BiLSTM"),
    ("phases", "early exit"),
    ("ghost steps", "random trees"),
    ("coarsening", "random trees"),
    ("fused cells", "TreeLSTM"),
    ("fused gather", "TreeLSTM"),
)
_ACROBAT = list(RUNGS)[:8]


@dataclass(frozen=True)
class Row:
    """One rung on one program."""

    nodes: int
    units: int  # what was scheduled: fewer than nodes where calls were merged
    batches: int
    bound: int
    copied: int  # bytes of operands
    schedule: float  # seconds
    total: float  # process seconds: recording, scheduling, running


def _run(program: Program, rung: dict[str, Any]) -> tuple[batching.Session, Tensor, float]:
    options = {name: value for name, value in rung.items() if name != "native"}
    begin = time.process_time()
    with torch.no_grad():
        with batching.session(**options) as s:
            values = program.record(s, rung.get("native", False))
        result = s.stack(values)
    return s, result, time.process_time() - begin


def measure(name: str, width: int = 64, batch: int = 32, rounds: int = 9) -> dict[str, Row]:
    """All rungs on one program; no times without rounds.

    Raises:
        RuntimeError: a rung's results differ from the first one's.
    """
    torch.manual_seed(0)
    program = PROGRAMS[name](width, batch)
    sessions: dict[str, batching.Session] = {}
    want = None
    for rung, options in RUNGS.items():
        sessions[rung], got, _ = _run(program, options)
        want = got if want is None else want
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    totals: dict[str, list[float]] = {rung: [] for rung in RUNGS}
    schedules: dict[str, list[float]] = {rung: [] for rung in RUNGS}
    for _ in range(rounds):
        for rung, options in RUNGS.items():
            s, _, seconds = _run(program, options)
            totals[rung].append(seconds)
            schedules[rung].append(s.report.schedule_s)
    rows = {}
    for rung, s in sessions.items():
        report, seen = s.report, s.report._graphs
        coarse = RUNGS[rung].get("coarsen", False)
        rows[rung] = Row(
            report.nodes,
            sum(len(batching.coarsen(g).graph) for g in seen) if coarse else report.nodes,
            report.batches,
            report.lower_bound,
            report.gathered_bytes,
            statistics.median(schedules[rung] or [0.0]),
            statistics.median(totals[rung] or [0.0]),
        )
    return rows


def _single_threaded(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def alone(*args: Any) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call(*args)
        finally:
            torch.set_num_threads(threads)

    return alone


@_single_threaded
def figures() -> dict[str, float]:
    """Every rung against the one before on its showcases."""
    rows = {name: measure(name, rounds=0) for name in PROGRAMS}
    found: dict[str, float] = {}
    for rung, name in SHOWCASES:
        now, before = rows[name][rung], rows[name][list(RUNGS)[list(RUNGS).index(rung) - 1]]
        found[f"{rung}: batches over the rung before, {name}"] = now.batches / before.batches
        if rung == "coarsening":
            found[f"{rung}: scheduled nodes over the rung before, {name}"] = now.units / before.units
        if rung in ("fused cells", "fused gather"):
            found[f"{rung}: copied bytes over the rung before, {name}"] = now.copied / before.copied
    best = {name: min(own[rung].batches for rung in _ACROBAT) for name, own in rows.items()}
    return {
        **found,
        "sufficient: batches over the best rung, worst program": max(
            own["sufficient"].batches / best[name] for name, own in rows.items()
        ),
        "coarsening: cost of scheduling over that without, random trees": _coarse_cost("random trees"),
    }


def _coarse_cost(name: str) -> float:
    """Seconds to coarsen a graph, schedule it and expand the schedule, over those to schedule it as it is."""
    program = PROGRAMS[name](8, 32)
    s, _, _ = _run(program, RUNGS["ghost steps"])
    graph = max(s.report._graphs, key=len)

    def coarsely() -> None:
        coarse = batching.coarsen(graph)
        coarse.expand(batching.schedule(coarse.graph))

    ratios = [best_seconds(coarsely, 20) / best_seconds(lambda: batching.schedule(graph), 20) for _ in range(5)]
    return statistics.median(ratios)


@_single_threaded
def show(names: Sequence[str], width: int, batch: int, rounds: int) -> None:
    """Print a table a program."""
    for name in names:
        rows = measure(name, width, batch, rounds)
        calls, bound = rows["lazy"].nodes, min(row.bound for row in rows.values())
        print(f"\n{name}: {calls:,} calls, lower bound {bound} batches, H {width}, {batch} instances")
        print(
            f"  {'':14s} {'units':>7s} {'batches':>8s} {'x bound':>8s}"
            f" {'MB copied':>10s} {'schedule':>9s} {'total ms':>9s}"
        )
        for rung, row in rows.items():
            print(
                f"  {rung:14s} {row.units:7,d} {row.batches:8,d} {row.batches / bound:8.2f} {row.copied / 1e6:10.2f}"
                f" {1e3 * row.schedule:9.2f} {1e3 * row.total:9.1f}"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.batching.ladder", description=__doc__)
    parser.add_argument("programs", nargs="*", default=list(PROGRAMS), metavar="program", help=", ".join(PROGRAMS))
    parser.add_argument("--width", type=int, default=64, help="H, default 64")
    parser.add_argument("--batch", type=int, default=32, help="instances, default 32")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args(argv)
    unknown = [name for name in given.programs if name not in PROGRAMS]
    if unknown:
        parser.error(f"programs are {', '.join(PROGRAMS)}; got {unknown[0]}")
    show(given.programs, given.width, given.batch, given.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
