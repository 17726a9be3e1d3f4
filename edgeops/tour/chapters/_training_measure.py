# SPDX-License-Identifier: Apache-2.0
"""What the training chapter measures: three copies of one classifier, each trained its own way, a step at a time."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgeops.perf import Record, Samples, capture, interleave, peak_memory
from edgeops.ragged import convert
from edgeops.tour.chapter import Context
from edgeops.tour.sentences import Batch, make_batches

PADDED, SORTED, OURS = "padded", "sorted by length", "edgeops convert"
NAMES = (PADDED, SORTED, OURS)


@dataclass(frozen=True)
class TrainingPlan:
    """How much is trained: steps, sentences in a batch, held-out sentences, learning rate of AdamW."""

    steps: int
    batch: int
    held_out: int
    lr: float = 1e-4


@dataclass(frozen=True)
class TrainingInputs:
    """A Hugging Face BERT, token ids and labels of every sentence in random order, and the names of the labels."""

    model: Any
    tokens: Sequence[Sequence[int]]
    labels: Sequence[int]
    names: Sequence[str]
    pad_id: int
    source: str


class Classifier(nn.Module):
    """Mean of the token states, then one linear layer."""

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits `[B, classes]`."""
        hidden = self.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        mask = batch.attention_mask.unsqueeze(-1).to(hidden.dtype)
        logits: torch.Tensor = self.head((hidden * mask).sum(1) / mask.sum(1))
        return logits


class Trainer:
    """One copy of the classifier, its optimizer, and the batches it takes one after another."""

    def __init__(self, model: Classifier, batches: Sequence[tuple[Batch, torch.Tensor]], lr: float) -> None:
        self.model, self.batches = model, batches
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        self.losses: list[float] = []

    def backward(self, index: int) -> torch.Tensor:
        """Loss of a batch, its gradients in the parameters."""
        batch, labels = self.batches[index]
        loss = nn.functional.cross_entropy(self.model(batch), labels)
        loss.backward()
        return loss

    def step(self) -> None:
        """The next batch."""
        loss = self.backward(len(self.losses))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())


class Training:
    """All three copies from one start; the padded one and ours see the same batches in the same order."""

    def __init__(self, inputs: TrainingInputs, plan: TrainingPlan, context: Context) -> None:
        self.inputs, self.plan, self.context = inputs, plan, context
        used = plan.steps * plan.batch
        order = list(range(used))
        by_length = sorted(order, key=lambda i: len(inputs.tokens[i]))
        shuffled = [by_length[i : i + plan.batch] for i in range(0, used, plan.batch)]
        random.Random(context.config.seed).shuffle(shuffled)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.config.seed)
            # evaluation mode: without dropout the two ways must give the same losses
            start = Classifier(copy.deepcopy(inputs.model), len(inputs.names)).eval()
        plain = [order[i : i + plan.batch] for i in range(0, used, plan.batch)]
        self.trainers = {}
        for name, chosen in ((PADDED, plain), (SORTED, shuffled), (OURS, plain)):
            model = copy.deepcopy(start)
            if name == OURS:
                model.encoder = convert(model.encoder)
            self.trainers[name] = Trainer(model, [self._batch(rows) for rows in chosen], plan.lr)
        last = range(used, used + plan.held_out)
        self.held_out = [self._batch(last[i : i + plan.batch]) for i in range(0, len(last), plan.batch)]

    def _batch(self, rows: Sequence[int]) -> tuple[Batch, torch.Tensor]:
        tokens = [self.inputs.tokens[i] for i in rows]
        (batch,) = make_batches(tokens, len(tokens), self.inputs.pad_id)
        return batch, torch.tensor([self.inputs.labels[i] for i in rows])

    def accuracy(self, name: str) -> float:
        """Share of held-out sentences put into the right group."""
        model, right = self.trainers[name].model, 0
        with torch.inference_mode():
            for batch, labels in self.held_out:
                right += int((model(batch).argmax(1) == labels).sum())
        return right / self.plan.held_out

    def run(self) -> dict[str, Samples]:
        """Every step of every copy, interleaved: seconds of step i of one stand beside step i of the others."""
        steps: dict[str, Callable[[], object]] = {name: one.step for name, one in self.trainers.items()}
        return interleave(
            steps,
            rounds=self.plan.steps,
            warmup=0,
            clock=self.context.config.timed_by,
            min_block_s=None,
            progress=self.context.step("training"),
        )

    def peaks(self) -> dict[str, int]:
        """Peak memory of forward and backward on each copy's most expensive batch, bytes."""
        step, found = self.context.step("peak memory"), {}
        for done, (name, one) in enumerate(self.trainers.items(), start=1):
            largest = max(range(len(one.batches)), key=lambda i: one.batches[i][0].input_ids.numel())
            found[name] = peak_memory(lambda one=one, largest=largest: one.backward(largest)).bytes  # type: ignore[misc]
            one.optimizer.zero_grad()
            step(done, len(self.trainers))
        return found

    def records(self, samples: dict[str, Samples], peaks: dict[str, int], accuracy: dict[str, float]) -> list[Record]:
        """One record per way, a sample a step; ratios against the padded one, step by step."""
        environment = capture()
        records = []
        for name, one in self.trainers.items():
            record = Record(
                workload="fine-tuning a sentence encoder",
                case="one step",
                candidate=name,
                shapes={
                    "batch": self.plan.batch,
                    "tokens": sum(sum(batch.lengths) for batch, _ in one.batches) // len(one.batches),
                    "computed": sum(batch.input_ids.numel() for batch, _ in one.batches) // len(one.batches),
                },
                source=self.inputs.source,
                dtype="float32",
                environment=environment,
                samples=samples[name],
                peak_memory=peaks[name],
                notes={"losses": one.losses, "accuracy": accuracy[name]},
            )
            records.append(record if name == PADDED else record.against(PADDED, samples[PADDED]))
        return records
