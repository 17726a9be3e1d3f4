# SPDX-License-Identifier: Apache-2.0
"""Models that look at their own results: all instances together, one after another, eagerly. ACRoBat, section 7.

`python -m bench.batching.programs [--width 64] [--batch 32] [--train]`, or `python -m bench.check B9`. All ways run the
same programs on the same real instances with the same seeds. Together, a round of decisions is one flush of the
session; one after another, in one session too, every instance's rounds are flushes of their own. Branches of one
instance go on together in both. Eagerly, outside of a session, every call of a cell runs at once.
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
    """The losses of a mini-batch, and how often it flushed for decisions; reading the losses may flush once more."""

    loss: Tensor
    flushes: int


def together(model: Model, instances: Sequence[Any]) -> Step:
    """All programs in one session, as a user runs them."""
    with batching.session() as s:
        losses = s.run(model.program(each) for each in instances)
        flushes = s.report.flushes
        return Step(s.sum([loss for each in losses for loss in each]), flushes)


def one_by_one(model: Model, instances: Sequence[Any]) -> Step:
    """One session, one program after another."""
    with batching.session() as s, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*one at a time stop batching")
        losses = [loss for each in instances for loss in s.run([model.program(each)])[0]]
        flushes = s.report.flushes
        return Step(s.sum(losses), flushes)


def decisions(model: Model, instance: Any) -> int:
    """How often an instance asks for a result."""
    asked = 0

    def answer(wanted: list[Any]) -> list[Any]:
        nonlocal asked
        asked += len(wanted)
        return wanted

    drive([model.program(instance)], answer)
    return asked


def eager(model: Model, instances: Sequence[Any]) -> Step:
    """No session."""
    return Step(model(instances), 0)


OURS, SEQUENTIAL = "together", "one by one"
WAYS: dict[str, Callable[[Model, Sequence[Any]], Step]] = {OURS: together, SEQUENTIAL: one_by_one, "eager": eager}


class Result(NamedTuple):
    """Process seconds and flushes of a step by way; the most decisions of an instance."""

    seconds: dict[str, Samples]
    flushes: dict[str, int]
    longest: int


def measure(name: str, width: int = WIDTH, batch: int = BATCH, train: bool = False, rounds: int = 15) -> Result:
    """A model's steps, turn by turn in one run.

    Raises:
        Unavailable: the data is not there.
        AssertionError: losses or gradients differ.
    """
    torch.manual_seed(0)
    model, instances = MODELS[name].model(width), MODELS[name].instances(batch)
    parameters = list(model.parameters())
    first = {name: way(model, instances) for name, way in WAYS.items()}
    found = [(step.loss, *torch.autograd.grad(step.loss, parameters)) for step in first.values()]
    for *ours, want in zip(*found):
        for a in ours:
            torch.testing.assert_close(a, want, rtol=1e-4, atol=1e-4 * float(want.detach().abs().max()))
    with torch.no_grad():
        longest = max(decisions(model, each) for each in instances)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds + 2):
        for way, taken in zip(WAYS.values(), seconds.values()):
            begin = time.process_time()
            with torch.set_grad_enabled(train):
                loss = way(model, instances).loss
                if train:
                    torch.autograd.grad(loss, parameters)
            taken.append(time.process_time() - begin)
    samples = {name: Samples(tuple(taken[2:])) for name, taken in seconds.items()}
    return Result(samples, {name: step.flushes for name, step in first.items()}, longest)


def figures() -> dict[str, float]:
    """By model, forward at width 64, 32 instances: speed over one after another; flushes over the longest's decisions.

    Raises:
        Unavailable: the data is not there.
    """
    found: dict[str, float] = {}
    for name in NAMES:
        result = measure(name)
        found[f"{name}, over one by one"] = paired_ratio(result.seconds[SEQUENTIAL], result.seconds[OURS]).median
        found[f"{name}, flushes over the longest's decisions"] = result.flushes[OURS] / result.longest
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
            print(f"{name}: {result.longest} decisions of the longest instance")
            for way, own in result.seconds.items():
                ratio = paired_ratio(own, result.seconds[OURS])
                flushes = result.flushes[way]
                print(f"  {way:10s} {1e3 * own.median:8.2f} ms, {flushes:4d} flushes   together is {ratio} as fast")
    except Unavailable as error:
        print(f"bench.batching.programs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
