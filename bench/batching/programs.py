# SPDX-License-Identifier: Apache-2.0
"""Models that look at their own results: all instances together against one after another. ACRoBat, section 7.

`python -m bench.batching.programs [--width 64] [--batch 32] [--train]`, or `python -m bench.check B9`. Both run the same
programs on the same real instances with the same seeds, in one session each: together, a round of decisions is one
flush; one after another, every decision of every instance is a flush of its own. Branches of one instance go on
together in both.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.batching.instances import MODELS
from bench.registry import Unavailable
from edgeops import batching
from edgeops.batching.models import Model
from edgeops.batching.programs import drive
from edgeops.perf.stats import Samples, paired_ratio

NAMES = tuple(name for name, entry in MODELS.items() if entry.decides)
WIDTH, BATCH = 64, 32


class Step(NamedTuple):
    """The losses of a mini-batch, and how often it flushed."""

    loss: Tensor
    flushes: int


def together(model: Model, instances: Sequence[Any]) -> Step:
    """All programs in one session, as a user runs them."""
    with batching.session() as s:
        loss = model(instances)
    return Step(loss, s.report.flushes)


def one_by_one(model: Model, instances: Sequence[Any]) -> Step:
    """One session, one program after another."""
    with batching.session() as s, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*one at a time stop batching")
        losses = [loss for each in instances for loss in s.run([model.program(each)])[0]]
        total = s.sum(losses)
    return Step(total, s.report.flushes)


def decisions(model: Model, instance: Any) -> int:
    """How often an instance asks for a result."""
    asked = 0

    def answer(wanted: list[Any]) -> list[Any]:
        nonlocal asked
        asked += len(wanted)
        return wanted

    drive([model.program(instance)], answer)
    return asked


class Result(NamedTuple):
    """Process seconds of a step both ways; flushes both ways; the most decisions of an instance."""

    together: Samples
    one_by_one: Samples
    flushes: int
    flushes_one_by_one: int
    longest: int


def measure(name: str, width: int = WIDTH, batch: int = BATCH, train: bool = False, rounds: int = 15) -> Result:
    """A model's steps, turn by turn in one run.

    Raises:
        Unavailable: the data is not there.
        RuntimeError: losses or gradients differ.
    """
    torch.manual_seed(0)
    model, instances = MODELS[name].model(width), MODELS[name].instances(batch)
    parameters = list(model.parameters())
    ways: list[Callable[[Model, Sequence[Any]], Step]] = [together, one_by_one]
    first = [way(model, instances) for way in ways]
    found = [(step.loss, *torch.autograd.grad(step.loss, parameters)) for step in first]
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))
    with torch.no_grad():
        longest = max(decisions(model, each) for each in instances)
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds + 2):
        for way, taken in zip(ways, seconds):
            begin = time.process_time()
            with torch.set_grad_enabled(train):
                loss = way(model, instances).loss
                if train:
                    torch.autograd.grad(loss, parameters)
            taken.append(time.process_time() - begin)
    samples = [Samples(tuple(taken[2:])) for taken in seconds]
    return Result(samples[0], samples[1], first[0].flushes, first[1].flushes, longest)


def figures() -> dict[str, float]:
    """By model, forward at width 64, 32 instances: speed over one after another; flushes over the longest's decisions.

    Raises:
        Unavailable: the data is not there.
    """
    found: dict[str, float] = {}
    for name in NAMES:
        result = measure(name)
        found[f"{name}, over one by one"] = paired_ratio(result.one_by_one, result.together).median
        found[f"{name}, flushes over the longest's decisions"] = result.flushes / result.longest
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 1 where data is not there."""
    parser = argparse.ArgumentParser(prog="python -m bench.batching.programs", description=__doc__)
    parser.add_argument("--width", type=int, default=WIDTH, help=f"H, default {WIDTH}")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"instances, default {BATCH}")
    parser.add_argument("--train", action="store_true", help="forward and backward; otherwise forward")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        for name in NAMES:
            result = measure(name, given.width, given.batch, given.train, given.rounds)
            ratio = paired_ratio(result.one_by_one, result.together)
            print(
                f"{name:10s} {1e3 * result.together.median:8.2f} ms, one by one {1e3 * result.one_by_one.median:8.2f} ms,"
                f" {ratio} as fast; flushes {result.flushes}, one by one {result.flushes_one_by_one},"
                f" decisions of the longest {result.longest}"
            )
    except Unavailable as error:
        print(f"bench.batching.programs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
