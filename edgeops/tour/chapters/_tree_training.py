# SPDX-License-Identifier: Apache-2.0
"""Training one tree network in several ways from one start, steps interleaved, losses compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgeops._common import message
from edgeops.perf import Record, Samples, capture, interleave
from edgeops.tour.chapter import Context

EAGER, BY_HAND, OURS = "eager", "levels by hand", "edgeops session"
TOLERANCE = 5e-3
"""Largest difference of a loss: rounding differs, and Adam's first steps amplify it."""
Batch = tuple[Sequence[Any], torch.Tensor]  # trees and answers


@dataclass(frozen=True)
class Plan:
    """How much to train.

    Attributes:
        steps: optimizer steps of all ways, interleaved.
        more: further steps inside sessions alone: eagerly they would take minutes.
        batch: trees in a step.
        held_out: trees kept for testing.
        width: numbers in a state.
        lr: learning rate of Adam.
    """

    steps: int
    more: int
    batch: int
    held_out: int
    width: int = 64
    lr: float = 3e-3


class Trainer:
    """One copy of a network and its optimizer, on the batches that all copies see."""

    def __init__(self, net: Any, way: str, batches: Sequence[Batch], lr: float) -> None:
        self.net, self.way, self.batches = net, way, batches
        self.optimizer = torch.optim.Adam(net.parameters(), lr=lr)
        self.losses: list[float] = []

    def step(self) -> None:
        """The next batch."""
        loss = self.net.loss(self.way, *self.batches[len(self.losses)])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())


@dataclass(frozen=True)
class Trained:
    """What came out.

    Attributes:
        net: trained all steps, inside sessions.
        samples: seconds of a step, by way.
        losses: step by step, by way.
        apart: largest difference of a loss from the eager one.
    """

    net: Any
    samples: dict[str, Samples]
    losses: dict[str, list[float]]
    apart: float

    def right(self, trees: Sequence[Any], answers: torch.Tensor) -> float:
        """Share of trees that the network answers rightly."""
        with torch.inference_mode():
            return float((self.net.batched(trees).argmax(1) == answers).float().mean())

    def records(self, workload: str, shapes: Mapping[str, int], source: str) -> list[Record]:
        """A record of every way."""
        environment, found = capture(), []
        for name, samples in self.samples.items():
            record = Record(
                workload=workload,
                case="one step",
                candidate=name,
                shapes=dict(shapes),
                source=source,
                dtype="float32",
                environment=environment,
                samples=samples,
                notes={"losses": self.losses[name]},
            )
            found.append(record if name == EAGER else record.against(EAGER, self.samples[EAGER]))
        return found


def train(
    net: nn.Module, ways: Mapping[str, str], batches: Sequence[Batch], plan: Plan, context: Context, what: str
) -> Trained:
    """Train a copy of the network each way, then the one inside sessions further.

    Args:
        ways: name -> what the network's `loss` calls it; `EAGER` and `OURS` among them.
        batches: of all steps.
        what: for progress lines.

    Raises:
        RuntimeError: a loss differs from the eager one by more than `TOLERANCE`.
    """
    trainers = {name: Trainer(copy.deepcopy(net), way, batches, plan.lr) for name, way in ways.items()}
    samples = interleave(
        {name: one.step for name, one in trainers.items()},
        rounds=plan.steps,
        warmup=0,
        clock=context.config.timed_by,
        min_block_s=None,
        progress=context.step(f"training on {what}"),
    )
    losses = {name: one.losses for name, one in trainers.items()}
    differences = [abs(a - b) for y in losses.values() for a, b in zip(losses[EAGER], y, strict=True)]
    apart = max(differences)
    # written so that NaN fails too
    if not all(d <= TOLERANCE for d in differences):
        rule = f"losses on {what} must equal the eager ones to {TOLERANCE:g}"
        advice = "Report it with what `edgeops info` prints."
        raise RuntimeError(message("batching chapter", rule, f"{apart:.3g}", advice))
    further = context.step(f"training on {what}, inside sessions")
    for done in range(plan.more):
        trainers[OURS].step()
        further(done + 1, plan.more)
    return Trained(trainers[OURS].net, samples, losses, apart)
