# SPDX-License-Identifier: Apache-2.0
"""LatticeLSTM on word lattices, a loss at every character: edgeops, DyNet's automatic batching and PyTorch eager.

`python -m bench.batching.lattice_lstm [--width 64] [--batch 32] [--train] [--profile]`. An arc is an LSTM step from
where it begins, on the embedding of its character or word; a position sums the states of its arcs. Characters and words
have cells and embeddings of their own.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.batching import graphs, side_by_side
from bench.batching.graphs import Lattice
from bench.batching.side_by_side import EAGER, OURS, DyNet
from bench.registry import Unavailable
from edgeops import batching, perf
from edgeops.batching.cells import LSTM, Classifier, Embedding, RaggedSum
from edgeops.perf.stats import Samples

IDS = 256  # ids are taken modulo this, as in ED-Batch's benchmark
TAGS = 19
CHAR, WORD = "char", "word"


def labelled_lattices(split: str, count: int) -> list[Lattice]:
    """The first `count` lattices of `"train"` or `"dev"`, ids modulo 256.

    Raises:
        Unavailable: the data is not there.
    """
    if not graphs.have("lattice"):
        raise Unavailable(graphs.skip_reason("lattice"))
    return [
        tuple((tag, tuple((source, index % IDS) for source, index in arcs)) for tag, arcs in positions)
        for positions in graphs.lattices(split, count)
    ]


def _one_bias(cell: LSTM) -> LSTM:
    """The second bias fixed at zero: an LSTM has one, and SGD would move the sum of two twice as far."""
    nn.init.zeros_(cell.bias_hh.requires_grad_(False))
    return cell


class Model(nn.Module):
    """The cells and the loss, and two ways to run them on a mini-batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.embeddings = nn.ModuleDict({kind: Embedding(IDS, width) for kind in (CHAR, WORD)})
        self.cells = nn.ModuleDict({kind: _one_bias(LSTM(width, width)) for kind in (CHAR, WORD)})
        self.total = RaggedSum()
        self.classes = Classifier(width, TAGS)
        self.start = batching.cell(self.start_rows)

    def start_rows(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """The state before a sentence, whatever the number."""
        zeros = self.classes.weight.new_zeros(len(number), self.width)
        return zeros, zeros

    def loss_rows(self, h: Tensor, tag: Tensor) -> Tensor:
        """Cross entropy of every row."""
        return self.classes.loss_rows(h, tag)

    def batched(self, lattices: Sequence[Lattice]) -> Tensor:
        """With a session."""
        return self.in_session(batching.session(), lattices)

    def in_session(self, session: batching.Session, lattices: Sequence[Lattice]) -> Tensor:
        """With this session."""
        character, word = (self.embeddings[kind].look_up for kind in (CHAR, WORD))
        on_character, on_word = (self.cells[kind].step for kind in (CHAR, WORD))
        total, loss = self.total, self.classes.loss
        losses = []
        with session as s:
            for positions in lattices:
                hs: list[Any] = []
                cs: list[Any] = []
                for at, (tag, arcs) in enumerate(positions):
                    made = [
                        on_character(character(index), hs[source], cs[source])
                        if source == at - 1
                        else on_word(word(index), hs[source], cs[source])
                        for source, index in arcs
                    ]
                    if not made:
                        h, c = self.start(0)
                    elif len(made) == 1:
                        h, c = made[0]
                    else:
                        h, c = total(*zip(*made))
                    hs.append(h)
                    cs.append(c)
                    losses.append(loss(h, tag))
        return s.sum(losses)

    def eager(self, lattices: Sequence[Lattice]) -> Tensor:
        """One node at a time."""
        losses = []
        for positions in lattices:
            states: list[tuple[Tensor, Tensor]] = []
            for at, (tag, arcs) in enumerate(positions):
                made = []
                for source, index in arcs:
                    kind = CHAR if source == at - 1 else WORD
                    x = self.embeddings[kind].rows(torch.tensor([index]))
                    made.append(self.cells[kind].step_rows(x, *states[source]))
                if not made:
                    states.append(self.start_rows(torch.zeros(1)))
                elif len(made) == 1:
                    states.append(made[0])
                else:
                    states.append((torch.stack([h for h, _ in made]).sum(0), torch.stack([c for _, c in made]).sum(0)))
                losses.append(self.loss_rows(states[at][0], torch.tensor([tag])))
        return torch.cat(losses).sum()

    def for_dynet(self, own_nodes: bool) -> list[Tensor]:
        """Parameters in the order of `peers/dynet_lattice.py`: gates i, f, o, g; DyNet's own nodes add one to f."""
        found: list[Tensor] = [self.embeddings[kind].weight for kind in (CHAR, WORD)]
        for kind in (CHAR, WORD):
            cell = self.cells[kind]
            for p in (cell.weight_ih, cell.weight_hh, cell.bias_ih):
                i, f, g, o = p.detach().chunk(4)
                found.append(torch.cat([i, f - 1 if own_nodes and p.dim() == 1 else f, o, g]))
        return [*found, self.classes.weight, self.classes.bias]


def measure(
    width: int, batch: int, train: bool, rounds: int = 15, eager: bool = True, dynet: bool = True
) -> dict[str, Samples]:
    """Process seconds of a step of every candidate, turn by turn in one run.

    Raises:
        Unavailable: no lattices, or `dynet` and no DyNet.
        AssertionError, RuntimeError: the candidates' losses or gradients differ.
    """
    torch.manual_seed(0)
    lattices = labelled_lattices("train", batch)
    model = Model(width)
    ways = {OURS: lambda m: m.batched(lattices), EAGER: lambda m: m.eager(lattices)}

    def peer(strategy: int) -> DyNet:
        own = strategy == side_by_side.STRATEGIES["dynet agenda"]
        return DyNet("dynet_lattice.py", lattices, model.for_dynet(own), train, strategy, width=width, own_nodes=own)

    return side_by_side.measure(model, ways, train, rounds, peer if dynet else None, eager)


def figures(train: bool = False) -> dict[str, float]:
    """Ratios to the better DyNet strategy, at widths 64 and 256, 32 lattices.

    Raises:
        Unavailable: no lattices, or no DyNet.
    """
    found: dict[str, float] = {}
    with perf.thread_count(1):
        for width in (64, 256):
            samples = measure(width, 32, train, eager=False)
            found[f"over DyNet, H {width}"] = side_by_side.ratio(samples, side_by_side.better_dynet(samples))
    return found


def profile(width: int, batch: int, train: bool, rounds: int) -> None:
    """Print where the time of ours goes: what the session says of itself, medians of milliseconds."""
    torch.manual_seed(0)
    lattices = labelled_lattices("train", batch)
    model = Model(width)
    parts: dict[str, list[float]] = {"recording": [], "scheduling": [], "execution": [], "backward": [], "all": []}
    for _ in range(rounds):
        session = batching.session()
        begin = time.perf_counter()
        with torch.set_grad_enabled(train):
            loss = model.in_session(session, lattices)
        forward = time.perf_counter()
        if train:
            loss.backward()
            model.zero_grad()
        end = time.perf_counter()
        report = session.report
        times = (report.record_s, report.schedule_s, report.execute_s, end - forward, end - begin)
        for taken, seconds in zip(parts.values(), times):
            taken.append(seconds)
    print(session.report)
    for name, taken in parts.items():
        print(f"{name:14s} {1e3 * statistics.median(taken):9.2f} ms")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 1 where something is not there."""
    prog = "bench.batching.lattice_lstm"
    parser = side_by_side.arguments(prog, __doc__, "lattices")
    parser.add_argument("--profile", action="store_true", help="where the time of ours goes, without the others")
    given = parser.parse_args(argv)
    try:
        with perf.thread_count(1):
            if given.profile:
                profile(given.width, given.batch, given.train, given.rounds)
                return 0
            eager, dynet = not given.no_eager, not given.no_dynet
            side_by_side.show(measure(given.width, given.batch, given.train, given.rounds, eager, dynet))
    except Unavailable as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
