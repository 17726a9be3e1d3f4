# SPDX-License-Identifier: Apache-2.0
"""A training or inference step of several candidates, turn by turn in one run, DyNet's automatic batching among them.

DyNet runs in an environment of its own, whose Python `EDGEOPS_DYNET` names (`make dynet` makes `.venv-dynet`). It gets
the same data and the same parameters, and its loss must be ours before and after one step of SGD.
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.peer import Peer
from edgeops.perf.stats import Samples, paired_ratio

STRATEGIES = {"dynet agenda": 1, "dynet depth": 2}
OURS, EAGER = "edgeops", "eager"
LR = 1e-3
WARMUP = 2  # rounds that do not count
TOLERANCE = 1e-4
Ways = Mapping[str, Callable[[nn.Module], Tensor]]  # the loss of the mini-batch, by candidate


class DyNet(Peer):
    """The same step in a process of its own.

    Args:
        program: a file of `bench/batching/peers`.
        examples: the mini-batch, as JSON takes it.
        parameters: in the order in which the program adds its own.
        facts: what else the program's model needs.
    """

    def __init__(
        self, program: str, examples: Any, parameters: Sequence[Tensor], train: bool, strategy: int, **facts: Any
    ) -> None:
        absent = "no DyNet: run `make dynet`, or set EDGEOPS_DYNET to a Python that has dynet38"
        super().__init__(f"batching/peers/{program}", "dynet", "EDGEOPS_DYNET", absent)
        self.program = program
        values = [(list(p.shape), base64.b64encode(p.detach().contiguous().numpy()).decode()) for p in parameters]
        job = {"examples": examples, "parameters": values, "train": train, "strategy": strategy, "lr": LR, **facts}
        self.ask(json.dumps(job), "ready")

    def ask(self, line: str, until: str = "") -> str:
        answer = super().ask(line, until)
        if not answer:
            raise RuntimeError(
                f"bench.batching: {self.program} must answer; got the end of its output. Run it by hand."
            )
        return answer

    def step(self) -> tuple[float, float]:
        """Process seconds of one step, and its loss."""
        seconds, loss = self.ask("").split()
        return float(seconds), float(loss)


def check(model: nn.Module, ways: Ways) -> None:
    """Losses and gradients of all ways against eager PyTorch, or an `AssertionError`."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def found(name: str) -> tuple[Tensor, ...]:
        loss = ways[name](model)
        return loss, *torch.autograd.grad(loss, parameters)

    wanted = found(EAGER)
    for name in ways.keys() - {EAGER}:
        for a, b in zip(found(name), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE * float(b.detach().abs().max()))


def check_dynet(model: nn.Module, loss: Callable[[nn.Module], Tensor], other: DyNet, train: bool) -> None:
    """DyNet's loss against ours, and when training again after one step of SGD, so that gradients count.

    Raises:
        RuntimeError: they differ.
    """
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], LR)
    for step in range(2 if train else 1):
        own = loss(twin)
        own.backward()
        optimizer.step()
        optimizer.zero_grad()
        found = other.step()[1]
        if not abs(found - own.item()) <= TOLERANCE * abs(own.item()):
            rule = f"DyNet's loss must be {own.item():.7g} after {step} steps"
            raise RuntimeError(f"bench.batching: {rule}; got {found:.7g}. Compare {other.program} with the model.")


def measure(
    model: nn.Module,
    ways: Ways,
    train: bool,
    rounds: int,
    peers: Callable[[int], DyNet] | None,
    eager: bool = True,
) -> dict[str, Samples]:
    """Process seconds of a step of every way and of DyNet, turn by turn; all of them are compared first.

    Args:
        ways: ours under `OURS`, the truth under `EAGER`; what else there is.
        peers: starts DyNet with a strategy's number; `None` leaves it out.
        eager: `False` compares with eager PyTorch and does not time it.

    Raises:
        Unavailable: `peers` and no DyNet.
        AssertionError, RuntimeError: losses or gradients differ.
    """
    check(model, ways)
    optimizer = torch.optim.SGD(model.parameters(), LR)
    others: dict[str, DyNet] = {}

    def step(loss: Callable[[nn.Module], Tensor]) -> float:
        begin = time.process_time()
        with torch.set_grad_enabled(train):
            value = loss(model)
            if train:
                value.backward()
                optimizer.step()
                optimizer.zero_grad()
            else:
                value.item()
        return time.process_time() - begin

    timed = [name for name in ways if eager or name != EAGER]
    seconds: dict[str, list[float]] = {name: [] for name in (*timed, *(STRATEGIES if peers else ()))}
    try:
        if peers:
            for name, number in STRATEGIES.items():
                others[name] = peers(number)
                check_dynet(model, ways[OURS], others[name], train)
        for _ in range(rounds + WARMUP):
            for name, taken in seconds.items():
                taken.append(others[name].step()[0] if name in others else step(ways[name]))
    finally:
        for other in others.values():
            other.close()
    return {name: Samples(tuple(taken[WARMUP:])) for name, taken in seconds.items()}


def better_dynet(samples: Mapping[str, Samples]) -> str:
    """The strategy with the smaller median."""
    return min(STRATEGIES, key=lambda name: samples[name].median)


def ratio(samples: Mapping[str, Samples], name: str) -> float:
    """How many times as fast as a candidate ours is, pair by pair."""
    return paired_ratio(samples[name], samples[OURS]).median


def show(samples: Mapping[str, Samples]) -> None:
    """A line for every candidate."""
    for name, own in samples.items():
        print(f"{name:14s} {1e3 * own.median:9.2f} ms   edgeops is {paired_ratio(own, samples[OURS])} as fast")


def arguments(prog: str, about: str | None, examples: str) -> argparse.ArgumentParser:
    """What the command lines of these benchmarks share."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=about)
    parser.add_argument("--width", type=int, default=64, help="H, default 64")
    parser.add_argument("--batch", type=int, default=32, help=f"{examples}, default 32")
    parser.add_argument("--train", action="store_true", help="forward, backward and SGD; otherwise forward")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--no-eager", action="store_true", help="do not time eager PyTorch, which is slow")
    parser.add_argument("--no-dynet", action="store_true", help="leave DyNet out")
    return parser
