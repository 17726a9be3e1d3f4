# SPDX-License-Identifier: Apache-2.0
"""The syntax-tree part of the batching chapter: which kind of comparison stood here? Training, text and figures."""

from __future__ import annotations

import platform
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgeops._common import message
from edgeops.perf import Record
from edgeops.tour.chapter import Context

from ._syntax_net import SyntaxNet
from ._syntax_trees import KINDS, Vocabulary, guesses, read, size
from ._training_figures import draw_losses, draw_steps
from ._tree_training import EAGER, OURS, Batch, Plan, Trained, train

if TYPE_CHECKING:
    from edgeops.perf.report import Section

WAYS = {EAGER: "eager", OURS: "batched"}
WORKLOAD = "training on syntax trees"


@dataclass(frozen=True)
class SyntaxPlan(Plan):
    """How much to train on syntax trees.

    Attributes:
        examples: at most so many different ones; they come again in another order.
    """

    examples: int = 9000


def _batches(trees: Sequence[Any], kinds: torch.Tensor, plan: SyntaxPlan, rng: random.Random) -> list[Batch]:
    """Batches of all steps: the examples in random order, over and over."""
    order: list[int] = []
    found: list[Batch] = []
    while len(found) < plan.steps + plan.more:
        while len(order) < plan.batch:
            order += rng.sample(range(len(trees)), len(trees))
        chosen, order = order[: plan.batch], order[plan.batch :]
        found.append(([trees[i] for i in chosen], kinds[torch.tensor(chosen)]))
    return found


def train_on_syntax(plan: SyntaxPlan, context: Context) -> tuple[Trained, list[Record], dict[str, Any]]:
    """Read Python's library, train, test on files that were not trained on.

    Raises:
        RuntimeError: no source files, or a loss that differs from the eager one.
    """
    seed = context.config.seed
    trained_on, tested = read(seed, plan.examples, plan.held_out, context.step("reading Python's library"))
    if not trained_on or not tested:
        rule, got = "Python's library must be there as source files", f"{len(trained_on)} examples"
        raise RuntimeError(message("batching chapter", rule, got, "Install the full standard library of this Python."))
    vocabulary = Vocabulary.of(example.tree for example in trained_on)
    trees = [vocabulary.number(example.tree) for example in trained_on]
    batches = _batches(trees, torch.tensor([e.kind for e in trained_on]), plan, random.Random(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = SyntaxNet(len(vocabulary.symbols) + 1, len(vocabulary.fields) + 1, plan.width)
    trained = train(start, WAYS, batches, plan, context, "syntax trees")
    nodes = sum(size(tree) for batch, _ in batches for tree in batch) // len(batches)
    shapes = {"batch": plan.batch, "nodes": nodes, "width": plan.width}
    source = f"the standard library of Python {platform.python_version()}, {len(trained_on)} statements"
    wanted = torch.tensor([example.kind for example in tested])
    usual, sides = guesses(trained_on, tested)
    right = trained.right([vocabulary.number(example.tree) for example in tested], wanted)
    facts = {"losses": trained.losses, "right": right, "usual": usual, "sides": sides, "tested": len(tested)}
    return trained, trained.records(WORKLOAD, shapes, source), facts


def present_syntax(facts: Mapping[str, Any], records: Sequence[Record], section: Section) -> None:
    """Text, table and figures, from stored data."""
    shapes = records[0].shapes
    section.text(
        f"Statements of {records[0].source}, in each of which one comparison has lost its operator; the network tells "
        f"of which kind it was: {', '.join(KINDS)}. A child-sum TreeLSTM {shapes['width']} wide with gates that know "
        f"the field of a child, Adam, {shapes['batch']} trees with {shapes['nodes']} nodes a step."
    )
    answers = (
        (f"the network after {len(facts['losses'][OURS])} steps", facts["right"]),
        ("the commonest kind between the same two operands in training", facts["sides"]),
        ("the commonest kind", facts["usual"]),
    )
    section.table(
        ("answer", "right"),
        [(how, f"{100 * share:.1f} %") for how, share in answers],
        f"{facts['tested']} statements of files that were not trained on.",
    )
    draw_losses(section, facts["losses"], "The curves lie on each other as far as both were trained.")
    draw_steps(section, records, "Median and quartiles over the steps.")
