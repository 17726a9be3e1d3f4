# SPDX-License-Identifier: Apache-2.0
"""Offloaded fine-tuning on real text: the optimizer's state behind an emulated link, whole and compressed.

One encoder learns which group of books a verse is from: by AdamW with everything on the device, by whole gradients over
a link that is as slow as the step is long, by LSP's compressed ones over the same link, and by LoRA and GaLore where
their packages are installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgeops._common import message
from edgeops.tour.chapter import ChapterResult, Check, Context, Missing
from edgeops.tour.inputs import missing_minilm, missing_verses

from ._offload_figures import draw_timeline
from ._offload_training import NATIVE, OURS, ZERO, OffloadTraining
from ._training_figures import draw_losses, draw_steps
from ._training_measure import TrainingInputs, TrainingPlan
from .ragged_training import load_labelled

if TYPE_CHECKING:
    from edgeops.perf.report import Section

FULL = TrainingPlan(steps=24, batch=16, held_out=192)
QUICK = TrainingPlan(steps=4, batch=4, held_out=8)
SHARE = 0.5  # the paper's advice; a quarter of the numbers of a square matrix, both wires bfloat16
SAME = 3
"""Steps whose losses are compared with those of the serial loop."""


class OffloadChapter:
    """The chapter of `edgeops.offload`.

    Args:
        load: gives model, sentences and labels for a plan and a seed.
        quick, full: how much to train.
        share: width of LSP's subspaces, as a share of each matrix's shorter side.
    """

    name = "offload"
    title = "Offload: fine-tuning when the optimizer's state does not fit the device"
    question = "The model fits my device, its gradients and optimizer state do not."

    def __init__(
        self,
        load: Callable[[TrainingPlan, int], TrainingInputs] = load_labelled,
        *,
        quick: TrainingPlan = QUICK,
        full: TrainingPlan = FULL,
        share: float = SHARE,
    ) -> None:
        self.load, self.quick, self.full, self.share = load, quick, full, share

    def requires(self) -> Sequence[Missing]:
        """Packages of the default input."""
        return (*missing_minilm(), *missing_verses()) if self.load is load_labelled else ()

    def run(self, context: Context) -> ChapterResult:
        """Train, and check that overlapping changes nothing.

        Raises:
            RuntimeError: a loss of the overlapped run differs from the serial one's.
        """
        plan = self.quick if context.config.quick else self.full
        loading = context.step("loading model and text")
        inputs = self.load(plan, context.config.seed)
        loading(1, 1)
        training = OffloadTraining(inputs, plan, context, self.share)
        try:
            samples = training.run()
            same = training.serial_losses(min(SAME, plan.steps))
            ours = training.ways[OURS].losses[: len(same)]
            if ours != same:
                rule = "overlapped updates must give the losses of the serial loop, bit for bit"
                raise RuntimeError(
                    message(
                        "offload chapter", rule, f"{ours}, not {same}", "Report it with what `edgeops info` prints."
                    )
                )
            accuracy = {name: training.accuracy(name) for name in training.ways}
            timelines = {name: training.timeline(name) for name in (ZERO, OURS)}
        finally:
            training.close()
        records = training.records(samples, accuracy)
        by_name = {record.candidate: record for record in records}
        rows = tuple(
            (
                r.candidate,
                f"{r.median:.2f} s",
                "1.00x" if r.ratio is None else f"{r.ratio.median:.2f}x",
                f"{r.notes['moved'] / 1e6:.2f} MB",
                f"{r.notes['kept'] / 1e6:.1f} MB",
                f"{sum(r.notes['losses'][-5:]) / len(r.notes['losses'][-5:]):.3f}",
                f"{100 * r.notes['accuracy']:.0f} %",
                r.label,
            )
            for r in records
        )
        ratio, less = by_name[OURS].ratio, by_name[ZERO].notes["moved"] / by_name[OURS].notes["moved"]
        assert ratio is not None
        return ChapterResult(
            headline=(
                f"Compressed gradients move {less:.0f}x fewer bytes and train {ratio.median:.2f}x as fast as whole "
                f"ones over the same emulated link; held out {100 * accuracy[OURS]:.0f} % right, AdamW on the device "
                f"{100 * accuracy[NATIVE]:.0f} %."
            ),
            columns=("how", "step", "vs whole", "moved a step", "kept on device", "last loss", "held out", "label"),
            rows=rows,
            records=tuple(records),
            checks=(
                Check(f"losses of the first {len(same)} steps, overlapped and serial", "equal bits", "equal bits"),
            ),
            facts={
                "losses": {name: way.losses for name, way in training.ways.items()},
                "groups": list(inputs.names),
                "bandwidth": training.bandwidth,
                "timelines": timelines,
                "share": self.share,
            },
        )

    def present(self, result: ChapterResult, section: Section) -> None:
        """Text, table and figures."""
        facts, records = result.facts, result.records
        section.text(
            f"Which of {len(facts['groups'])} groups of books is a verse from? MiniLM-L6 with one linear layer on top, "
            f"batches of {records[0].shapes['batch']}: {records[0].source}. Embeddings are frozen everywhere. The link "
            f"is emulated at {facts['bandwidth'] / 1e6:.0f} MB/s each way, at which whole gradients take as long as a "
            f"step computes here; both send bfloat16 over it. LSP's subspaces are {facts['share']:g} of each "
            f"matrix's shorter side wide, {records[0].shapes['matrices']} matrices."
        )
        section.table(
            result.columns,
            result.rows,
            "Medians over the steps, wall clock, steps of all interleaved. Kept on device: gradients, optimizer state "
            "and projectors, counted, without weights and activations. Last loss: mean of five steps. One run at one "
            "learning rate each (adapters 5x, GaLore 2x): quality over seeds and rates is `bench.offload.quality`'s.",
        )
        draw_losses(section, facts["losses"], "The same batches in the same order.")
        draw_steps(section, records, "Median and quartiles over the steps.")
        for name, events in facts["timelines"].items():
            draw_timeline(section, events, name)
        section.table(("check", "found", "limit"), [(check.name, check.value, check.limit) for check in result.checks])


CHAPTER = OffloadChapter()
