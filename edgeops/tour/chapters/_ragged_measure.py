# SPDX-License-Identifier: Apache-2.0
"""What the ragged chapter measures: equal embeddings first, then every candidate in interleaved runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgeops._common import message
from edgeops.perf import Record, Samples, capture, interleave, paired_ratio, peak_memory, sgemm_work
from edgeops.ragged import convert, explain
from edgeops.tour.chapter import Check, Context
from edgeops.tour.sentences import (
    Batch,
    Embed,
    PackedLoop,
    in_order,
    make_batches,
    padded_embed,
    restored,
    useful_flops,
)

from ._ragged_report import MAIN, NAMES, OURS, PACKED, SORTED, STOCK

TOLERANCE = 1e-5
ROOF = "sgemm roof"


@dataclass(frozen=True)
class Plan:
    """How much is measured: sentences, sentences in a batch, interleaved rounds, and points of the cost plot."""

    sentences: int
    batch: int
    rounds: int
    points: int


@dataclass(frozen=True)
class Inputs:
    """A Hugging Face BERT in evaluation mode and the token ids of every sentence, in reading order."""

    model: Any
    tokens: Sequence[Sequence[int]]
    pad_id: int
    source: str

    @property
    def lengths(self) -> list[int]:
        """Tokens per sentence."""
        return [len(ids) for ids in self.tokens]


def _embedders(model: Any) -> dict[str, Embed]:
    stock = padded_embed(model)
    return {STOCK: stock, SORTED: stock, PACKED: PackedLoop(model), OURS: padded_embed(convert(model))}


@dataclass(frozen=True)
class Measured:
    """One case: what was run on which lengths, and the samples of every candidate of one interleaved run."""

    case: str
    lengths: Sequence[int]
    samples: Mapping[str, Samples]


class Measurement:
    """One run of the chapter: the batches of every candidate and what is measured on them."""

    def __init__(self, inputs: Inputs, plan: Plan, context: Context) -> None:
        self.inputs, self.plan, self.context = inputs, plan, context
        self.clock = context.config.timed_by
        self.predicted = explain(inputs.lengths, inputs.model, batch_size=plan.batch, costs="measure").to_dict()
        # a point of the plot is a median of its own, no part of a ratio: fewer rounds do
        self.point_rounds = max(1, plan.rounds // 2)
        self.embed = _embedders(inputs.model)
        lengths = inputs.lengths
        self.order = sorted(range(len(lengths)), key=lengths.__getitem__)
        self.batches = make_batches(inputs.tokens, plan.batch, inputs.pad_id)
        self.sorted_batches = make_batches([inputs.tokens[i] for i in self.order], plan.batch, inputs.pad_id)
        self.whole = {
            name: restored(embed, self.sorted_batches, self.order) if name == SORTED else in_order(embed, self.batches)
            for name, embed in self.embed.items()
        }

    def check(self) -> list[Check]:
        """Every candidate's embeddings against the stock ones; also warms every path up."""
        step = self.context.step("checking equal embeddings")
        expected, checks = self.whole[STOCK](), []
        for done, name in enumerate(NAMES[1:], start=1):
            error = (self.whole[name]() - expected).abs().max().item()
            # written so that NaN fails too
            if not error <= TOLERANCE:
                raise RuntimeError(
                    message(
                        "ragged chapter",
                        f"embeddings must equal the stock ones to {TOLERANCE:g} before anything is timed",
                        f"a difference of {error:.3g} from {name!r}",
                        "Report it with what `edgeops info` prints.",
                    )
                )
            checks.append(Check(f"{name}: largest difference from {STOCK}", f"{error:.2e}", f"{TOLERANCE:g}"))
            step(done, len(NAMES) - 1)
        return checks

    def _interleave(self, step: str, candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Samples]:
        return interleave(candidates, rounds=rounds, warmup=0, clock=self.clock, progress=self.context.step(step))

    def measure_all(self) -> Measured:
        """All sentences through every candidate, and the roof, in one interleaved run."""
        samples = self._interleave("timing", {**self.whole, ROOF: sgemm_work()[0]}, self.plan.rounds)
        return Measured(MAIN, self.inputs.lengths, samples)

    def measure_one(self, case: str, batch: Batch) -> Measured:
        """One batch through every candidate for which order means nothing, and the roof."""
        runs: dict[str, Callable[[], object]] = {
            name: in_order(self.embed[name], [batch]) for name in (STOCK, PACKED, OURS)
        }
        samples = self._interleave(f"timing {case}", {**runs, ROOF: sgemm_work()[0]}, self.plan.rounds)
        return Measured(case, batch.lengths, samples)

    def equal_batch(self) -> Batch:
        """A batch cut to one length, the median: padding costs nothing here."""
        middle = len(self.order) // 2
        ids = [self.inputs.tokens[i] for i in self.order[middle : middle + self.plan.batch]]
        shortest = min(map(len, ids))
        return make_batches([row[:shortest] for row in ids], self.plan.batch, self.inputs.pad_id)[0]

    def single(self) -> Batch:
        """One sentence of median length on its own, as a search query would come."""
        return make_batches([self.inputs.tokens[self.order[len(self.order) // 2]]], 1, self.inputs.pad_id)[0]

    def points(self) -> dict[str, dict[str, list[float]]]:
        """Milliseconds per sentence of single batches, over their mean token count, for the plot."""
        chosen: dict[tuple[str, int], Batch] = {}
        for name in NAMES:
            batches = self.sorted_batches if name == SORTED else self.batches
            by_length = sorted(batches, key=lambda b: sum(b.lengths) / len(b.lengths))
            count = min(self.plan.points, len(by_length))
            for i in range(count):
                chosen[name, i] = by_length[i * (len(by_length) - 1) // max(1, count - 1)]
        runs = {f"{name} {i}": in_order(self.embed[name], [batch]) for (name, i), batch in chosen.items()}
        samples = self._interleave("timing batch by batch", runs, self.point_rounds)
        found: dict[str, dict[str, list[float]]] = {name: {"tokens": [], "ms": []} for name in NAMES}
        for (name, i), batch in chosen.items():
            found[name]["tokens"].append(sum(batch.lengths) / len(batch.lengths))
            found[name]["ms"].append(samples[f"{name} {i}"].median * 1e3 / len(batch.lengths))
        return found

    def peaks(self) -> dict[str, int]:
        """Peak memory of each candidate's most expensive batch, bytes."""
        step, found = self.context.step("peak memory"), {}
        for done, name in enumerate(NAMES, start=1):
            batches = self.sorted_batches if name == SORTED else self.batches
            largest = max(batches, key=lambda b: b.input_ids.numel())
            found[name] = peak_memory(in_order(self.embed[name], [largest])).bytes
            step(done, len(NAMES))
        return found

    def records(self, measured: Measured, peaks: Mapping[str, int]) -> list[Record]:
        """One record per candidate; ratios against the stock model, and against sorting in the notes."""
        config, environment = self.inputs.model.config, capture()
        roof_flops, roof = sgemm_work()[1], measured.samples[ROOF]
        flops = useful_flops(measured.lengths, config)
        first = Record(
            workload="sentence embeddings",
            case=measured.case,
            candidate=STOCK,
            shapes={
                "sentences": len(measured.lengths),
                "batch": min(self.plan.batch, len(measured.lengths)),
                "tokens": sum(measured.lengths),
                "longest": max(measured.lengths),
                "hidden": config.hidden_size,
                "layers": config.num_hidden_layers,
                "heads": config.num_attention_heads,
                "ff": config.intermediate_size,
            },
            source=self.inputs.source,
            dtype=str(self.inputs.model.dtype).removeprefix("torch."),
            environment=environment,
            samples=measured.samples[STOCK],
            flops=flops,
            roof_gflops=roof_flops / roof.median / 1e9,
        )
        records = []
        for name in (n for n in NAMES if n in measured.samples):
            samples = measured.samples[name]
            notes: dict[str, Any] = {"sentences_per_second": len(measured.lengths) / samples.median}
            if SORTED in measured.samples:
                notes["ratio_to_sorted"] = asdict(paired_ratio(measured.samples[SORTED], samples))
            record = replace(
                first,
                candidate=name,
                samples=samples,
                paired_roof_share=flops / roof_flops * paired_ratio(roof, samples).median,
                peak_memory=peaks.get(name),
                notes=notes,
            )
            records.append(record if name == STOCK else record.against(STOCK, measured.samples[STOCK]))
        return records

    def facts(self, main: Measured, points: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
        """What the report's figures are drawn from."""
        computed = {
            name: [b.input_ids.shape[1] for b in batches for _ in b.lengths]
            for name, batches in ((STOCK, self.batches), (SORTED, self.sorted_batches))
        }
        return {
            "lengths": self.inputs.lengths,
            "computed": computed,
            "batch": self.plan.batch,
            "rounds": self.plan.rounds,
            "point_rounds": self.point_rounds,
            "clock": self.clock,
            "points": points,
            "predicted": self.predicted,
        }
