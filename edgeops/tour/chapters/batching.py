# SPDX-License-Identifier: Apache-2.0
"""Batching: a tree network that is written node by node, trained on nested lists of digits.

Three ways from one start, step by step in one interleaved run: eager PyTorch, batches of levels written by hand, and
the eager program inside `edgeops.batching.session`. All three must give the same losses.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edgeops._common import message
from edgeops.perf import Record, capture, interleave, paired_ratio
from edgeops.tour.chapter import ChapterResult, Check, Context, Missing

from ._list_ops import OPERATIONS, ListOpsNet, Node, draw, evaluate, size
from ._training_figures import draw_losses, draw_steps

if TYPE_CHECKING:
    from edgeops.perf.report import Section

EAGER, BY_HAND, OURS = "eager", "levels by hand", "edgeops session"
WAYS = {EAGER: "eager", BY_HAND: "by_hand", OURS: "batched"}
Batch = tuple[list[Node], torch.Tensor]  # trees and what they are worth
TOLERANCE = 5e-3
"""Largest difference of a loss: rounding differs, and Adam's first steps amplify it."""


@dataclass(frozen=True)
class Plan:
    """How much to train.

    Attributes:
        steps: optimizer steps of all three ways, interleaved.
        more: further steps inside sessions alone: eagerly they would take minutes.
        batch: trees in a step.
        held_out: trees kept for testing.
        depth: operations above each other.
        width: numbers in a state.
        lr: learning rate of Adam.
    """

    steps: int
    more: int
    batch: int
    held_out: int
    depth: int = 4
    width: int = 64
    lr: float = 3e-3


FULL = Plan(steps=12, more=388, batch=64, held_out=1024)
QUICK = Plan(steps=3, more=3, batch=8, held_out=32, width=16)


class Trainer:
    """One copy of the network and its optimizer, on the batches that all copies see."""

    def __init__(
        self, net: ListOpsNet, way: str, batches: Sequence[tuple[list[Node], torch.Tensor]], lr: float
    ) -> None:
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


class BatchingChapter:
    """The chapter of `edgeops.batching`.

    Args:
        quick, full: how much to train.
    """

    name = "batching"
    title = "Batching: trees written node by node, run level by level"
    question = "My model is a tree: PyTorch runs it one node at a time."

    def __init__(self, *, quick: Plan = QUICK, full: Plan = FULL) -> None:
        self.quick, self.full = quick, full

    def requires(self) -> Sequence[Missing]:
        """Nothing: the trees are drawn."""
        return ()

    def run(self, context: Context) -> ChapterResult:
        """Train, and check that the losses agree.

        Raises:
            RuntimeError: a loss inside the session differs from the eager one by more than `TOLERANCE`.
        """
        plan = self.quick if context.config.quick else self.full
        rng = random.Random(context.config.seed)
        trees = [
            (rng.randrange(4), [draw(rng, plan.depth - 1) for _ in range(rng.randrange(2, 6))])
            for _ in range((plan.steps + plan.more) * plan.batch + plan.held_out)
        ]
        answers = torch.tensor([evaluate(tree) for tree in trees])
        parts = [slice(i, i + plan.batch) for i in range(0, (plan.steps + plan.more) * plan.batch, plan.batch)]
        batches: list[Batch] = [(list(trees[p]), answers[p]) for p in parts]
        held_out, wanted = list(trees[-plan.held_out :]), answers[-plan.held_out :]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.config.seed)
            start = ListOpsNet(plan.width)
        trainers = {name: Trainer(copy.deepcopy(start), way, batches, plan.lr) for name, way in WAYS.items()}
        samples = interleave(
            {name: one.step for name, one in trainers.items()},
            rounds=plan.steps,
            warmup=0,
            clock=context.config.timed_by,
            min_block_s=None,
            progress=context.step("training"),
        )
        losses = {name: one.losses for name, one in trainers.items()}
        apart = max(abs(a - b) for a, b in zip(losses[EAGER], losses[OURS], strict=True))
        # written so that NaN fails too
        if not apart <= TOLERANCE:
            rule = f"losses must equal the eager ones to {TOLERANCE:g}"
            advice = "Report it with what `edgeops info` prints."
            raise RuntimeError(message("batching chapter", rule, f"{apart:.3g}", advice))
        further = context.step("training on, inside sessions")
        for done in range(plan.more):
            trainers[OURS].step()
            further(done + 1, plan.more)
        with torch.inference_mode():
            right = float((trainers[OURS].net.batched(held_out).argmax(1) == wanted).float().mean())
        nodes = sum(size(tree) for batch, _ in batches for tree in batch) // len(batches)
        environment, records = capture(), []
        for name in WAYS:
            record = Record(
                workload="training a tree network",
                case="one step",
                candidate=name,
                shapes={"batch": plan.batch, "nodes": nodes, "width": plan.width},
                source=f"ListOps, drawn with seed {context.config.seed}, {', '.join(OPERATIONS)}",
                dtype="float32",
                environment=environment,
                samples=samples[name],
                notes={"losses": losses[name]},
            )
            records.append(record if name == EAGER else record.against(EAGER, samples[EAGER]))
        ratio = {name: paired_ratio(samples[name], samples[OURS]).median for name in (EAGER, BY_HAND)}
        usual = float((wanted == wanted.mode().values).float().mean())
        return ChapterResult(
            headline=(
                f"A tree network trains {plan.batch / samples[OURS].median:.0f} trees a second inside a session: "
                f"{ratio[EAGER]:.1f}x the same code run eagerly, {ratio[BY_HAND]:.2f}x levels batched by hand; losses "
                f"equal to {apart:.0e}. After {len(batches)} steps {100 * right:.0f} % of held-out trees are right "
                f"(the commonest answer: {100 * usual:.0f} %)."
            ),
            columns=("how", "trees/s", "vs eager", f"loss, step {plan.steps}"),
            rows=tuple(
                (
                    r.candidate,
                    f"{plan.batch / r.median:.0f}",
                    "1.00x" if r.ratio is None else f"{r.ratio.median:.2f}x",
                    f"{losses[r.candidate][plan.steps - 1]:.3f}",
                )
                for r in records
            ),
            records=tuple(records),
            checks=(Check("largest difference of a loss from the eager one", f"{apart:.2e}", f"{TOLERANCE:g}"),),
            facts={"losses": losses, "clock": context.config.timed_by, "right": right, "usual": usual},
        )

    def present(self, result: ChapterResult, section: Section) -> None:
        """Text, table and figures."""
        facts, records = result.facts, result.records
        shapes = records[0].shapes
        section.text(
            f"Nested lists of digits to evaluate, e.g. the maximum of 3, the sum modulo ten of 9 and 4, and 1: "
            f"{records[0].source}. A network of one LSTM step a node, {shapes['width']} wide, Adam, "
            f"{shapes['batch']} trees with {shapes['nodes']} nodes a step."
        )
        section.table(
            result.columns,
            result.rows,
            f"Medians of {len(facts['losses'][EAGER])} steps, {facts['clock']} clock, steps of the three interleaved.",
        )
        draw_losses(section, facts["losses"], "The three curves lie on each other as far as all three were trained.")
        draw_steps(section, records, "Median and quartiles over the steps.")
        section.table(("check", "found", "limit"), [(check.name, check.value, check.limit) for check in result.checks])


CHAPTER = BatchingChapter()
