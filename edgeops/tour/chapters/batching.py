# SPDX-License-Identifier: Apache-2.0
"""Batching: tree networks that are written node by node, trained on nested lists of digits and on syntax trees.

Several ways from one start, step by step in one interleaved run: eager PyTorch, the eager program inside
`edgeops.batching.session`, and for the lists batches of levels written by hand. All must give the same losses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgeops.perf import Record, paired_ratio
from edgeops.tour.chapter import ChapterResult, Check, Context, Missing

from ._list_ops import OPERATIONS, ListOpsNet, draw, evaluate, size
from ._syntax_task import SyntaxPlan, present_syntax, train_on_syntax
from ._training_figures import draw_losses, draw_steps
from ._tree_training import BY_HAND, EAGER, OURS, TOLERANCE, Batch, Plan, Trained, train

if TYPE_CHECKING:
    from edgeops.perf.report import Section

WAYS = {EAGER: "eager", BY_HAND: "by_hand", OURS: "batched"}
LISTS = "training a tree network"


@dataclass(frozen=True)
class ListPlan(Plan):
    """How much to train on lists.

    Attributes:
        depth: operations above each other.
    """

    depth: int = 4


@dataclass(frozen=True)
class Plans:
    """How much to train on either kind of trees."""

    lists: ListPlan
    syntax: SyntaxPlan


FULL = Plans(
    ListPlan(steps=8, more=392, batch=64, held_out=1024),
    SyntaxPlan(steps=6, more=294, batch=64, held_out=1024, lr=5e-3, examples=9000),
)
QUICK = Plans(
    ListPlan(steps=3, more=3, batch=8, held_out=32, width=16),
    SyntaxPlan(steps=3, more=3, batch=8, held_out=32, width=16, examples=64),
)


class BatchingChapter:
    """The chapter of `edgeops.batching`.

    Args:
        quick, full: how much to train.
    """

    name = "batching"
    title = "Batching: trees written node by node, run level by level"
    question = "My model is a tree: PyTorch runs it one node at a time."

    def __init__(self, *, quick: Plans = QUICK, full: Plans = FULL) -> None:
        self.quick, self.full = quick, full

    def requires(self) -> Sequence[Missing]:
        """Nothing: lists are drawn, and Python brings its library along."""
        return ()

    def run(self, context: Context) -> ChapterResult:
        """Train, and check that the losses agree.

        Raises:
            RuntimeError: a loss inside the session differs from the eager one by more than `TOLERANCE`, or Python's
                library has no source files here.
        """
        plans = self.quick if context.config.quick else self.full
        lists, records, facts = _train_on_lists(plans.lists, context)
        syntax, more, syntax_facts = train_on_syntax(plans.syntax, context)
        ratio = {name: paired_ratio(lists.samples[name], lists.samples[OURS]).median for name in (EAGER, BY_HAND)}
        rate = plans.lists.batch / lists.samples[OURS].median
        on_syntax = paired_ratio(syntax.samples[EAGER], syntax.samples[OURS]).median
        rows = []
        for task, plan, found in (("lists", plans.lists, records), ("syntax", plans.syntax, more)):
            for r in found:
                against = "1.00x" if r.ratio is None else f"{r.ratio.median:.2f}x"
                rows.append((task, r.candidate, f"{plan.batch / r.median:.0f}", against, f"{_last(r, plan):.3f}"))
        limit = f"{TOLERANCE:g}"
        return ChapterResult(
            headline=(
                f"A tree network trains {rate:.0f} trees a second inside a session: {ratio[EAGER]:.1f}x the same code "
                f"run eagerly, {ratio[BY_HAND]:.2f}x levels batched by hand; on syntax trees {on_syntax:.1f}x eager. "
                f"{100 * facts['right']:.0f} % of held-out lists are right (the commonest answer: "
                f"{100 * facts['usual']:.0f} %), {100 * syntax_facts['right']:.0f} % of held-out statements (the "
                f"commonest: {100 * syntax_facts['usual']:.0f} %)."
            ),
            columns=("trees", "how", "trees/s", "vs eager", "loss"),
            rows=tuple(rows),
            records=(*records, *more),
            checks=(
                Check("largest difference of a loss from the eager one, lists", f"{lists.apart:.2e}", limit),
                Check("largest difference of a loss from the eager one, syntax", f"{syntax.apart:.2e}", limit),
            ),
            facts={**facts, "clock": context.config.timed_by, "syntax": syntax_facts},
        )

    def present(self, result: ChapterResult, section: Section) -> None:
        """Text, table and figures."""
        facts = result.facts
        records = [r for r in result.records if r.workload == LISTS]
        shapes = records[0].shapes
        section.text(
            f"Nested lists of digits to evaluate, e.g. the maximum of 3, the sum modulo ten of 9 and 4, and 1: "
            f"{records[0].source}. A network of one LSTM step a node, {shapes['width']} wide, Adam, "
            f"{shapes['batch']} trees with {shapes['nodes']} nodes a step."
        )
        section.table(
            result.columns,
            result.rows,
            f"Medians over the steps that all ways were trained, {facts['clock']} clock, steps of the ways "
            "interleaved; the loss is that of the last of them.",
        )
        draw_losses(section, facts["losses"], "The three curves lie on each other as far as all three were trained.")
        draw_steps(section, records, "Median and quartiles over the steps.")
        present_syntax(facts["syntax"], [r for r in result.records if r.workload != LISTS], section)
        section.table(("check", "found", "limit"), [(check.name, check.value, check.limit) for check in result.checks])


def _last(record: Record, plan: Plan) -> float:
    """The loss of the last step that all ways were trained."""
    return float(record.notes["losses"][plan.steps - 1])


def _train_on_lists(plan: ListPlan, context: Context) -> tuple[Trained, list[Record], dict[str, Any]]:
    """Nested lists of digits, three ways."""
    seed, steps = context.config.seed, plan.steps + plan.more
    rng = random.Random(seed)
    trees: list[Any] = [
        (rng.randrange(4), [draw(rng, plan.depth - 1) for _ in range(rng.randrange(2, 6))])
        for _ in range(steps * plan.batch + plan.held_out)
    ]
    answers = torch.tensor([evaluate(tree) for tree in trees])
    parts = [slice(i, i + plan.batch) for i in range(0, steps * plan.batch, plan.batch)]
    batches: list[Batch] = [(trees[p], answers[p]) for p in parts]
    wanted = answers[-plan.held_out :]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = ListOpsNet(plan.width)
    trained = train(start, WAYS, batches, plan, context, "nested lists")
    nodes = sum(size(tree) for batch, _ in batches for tree in batch) // steps
    shapes = {"batch": plan.batch, "nodes": nodes, "width": plan.width}
    records = trained.records(LISTS, shapes, f"ListOps, drawn with seed {seed}, {', '.join(OPERATIONS)}")
    usual = float((wanted == wanted.mode().values).float().mean())
    right = trained.right(trees[-plan.held_out :], wanted)
    return trained, records, {"losses": trained.losses, "right": right, "usual": usual}


CHAPTER = BatchingChapter()
