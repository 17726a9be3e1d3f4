# SPDX-License-Identifier: Apache-2.0
"""What the offload chapter measures: one classifier, trained by several optimizers, a step at a time.

Two of them keep the optimizer's state on the host behind an emulated link: whole gradients in bfloat16 under the policy
of ZeRO-Offload, and LSP's compressed ones. Both go through the same pipeline.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from edgeops.offload import EmulatedLink, LSPAdamW
from edgeops.perf import Record, Samples, capture, interleave
from edgeops.tour.chapter import Context
from edgeops.tour.sentences import Batch, make_batches

from ._training_measure import Classifier, TrainingInputs, TrainingPlan

NATIVE, ZERO, OURS = "AdamW, all on the device", "whole gradients over the link", "edgeops LSP over the link"
LORA, GALORE = "LoRA (peft), on the device", "GaLore, on the device"
LORA_RANK = 8
ENTRIES = 4


@dataclass
class Way:
    """One copy of the classifier, its optimizer, and its losses."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    losses: list[float]
    moved: int
    """Bytes over the link in a step, both ways."""
    kept: int
    """Bytes of gradients, optimizer state and projectors on the device."""


def encoder_matrices(model: Classifier) -> list[tuple[str, nn.Linear]]:
    """The encoder's linear layers but the pooler's, which the classifier does not use."""
    return [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and name.startswith("encoder.encoder")
    ]


class OffloadTraining:
    """All copies from one start, on the same batches in the same order. Embeddings are frozen in all of them.

    Args:
        inputs: model, sentences and labels.
        plan: how much to train.
        context: the tour's.
        share: width of LSP's subspaces, as a share of each matrix's shorter side.
    """

    def __init__(self, inputs: TrainingInputs, plan: TrainingPlan, context: Context, share: float) -> None:
        self.inputs, self.plan, self.context, self.share = inputs, plan, context, share
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.config.seed)
            self.start = Classifier(copy.deepcopy(inputs.model), len(inputs.names)).eval()
        for name, p in self.start.named_parameters():
            if "embeddings" in name or "pooler" in name:
                p.requires_grad_(False)
        used = plan.steps * plan.batch
        self.batches = [self._batch(range(i, i + plan.batch)) for i in range(0, used, plan.batch)]
        last = range(used, used + plan.held_out)
        self.held_out = [self._batch(last[i : i + plan.batch]) for i in range(0, len(last), plan.batch)]
        self.seconds = self._native_step()
        whole = sum(m.weight.numel() for _, m in encoder_matrices(self.start)) * 2
        self.bandwidth = whole / self.seconds
        self.ways = self._ways()

    def _batch(self, rows: Sequence[int]) -> tuple[Batch, torch.Tensor]:
        tokens = [self.inputs.tokens[i] for i in rows]
        (batch,) = make_batches(tokens, len(tokens), self.inputs.pad_id)
        return batch, torch.tensor([self.inputs.labels[i] for i in rows])

    def _native_step(self) -> float:
        """Wall seconds of a step with everything on the device, the better of two after one to warm up."""
        way, seconds = self._native(), []
        for _ in range(3):
            begun = time.perf_counter()
            self.step(way, 0)
            seconds.append(time.perf_counter() - begun)
        return min(seconds[1:])

    def _native(self) -> Way:
        model = copy.deepcopy(self.start)
        trained = [p for p in model.parameters() if p.requires_grad]
        numbers = sum(p.numel() for p in trained)
        return Way(model, torch.optim.AdamW(trained, lr=self.plan.lr), [], 0, 4 * 3 * numbers)

    def _linked(self, **settings: Any) -> Way:
        model = copy.deepcopy(self.start)
        optimizer = LSPAdamW(
            model,
            lr=self.plan.lr,
            targets=[name for name, _ in encoder_matrices(model)],
            link=EmulatedLink(self.bandwidth),
            record=True,
            **settings,
        )
        small = sum(t.pair.shape[0] * t.pair.shape[1] for t in optimizer.targets)
        wire = settings["wire_dtype"].itemsize
        rest = sum(p.numel() for p in optimizer.param_groups[-1]["params"])
        kept = 4 * 3 * rest + sum(4 * t.leaf.numel() + t.pair.nbytes() for t in optimizer.targets)
        return Way(model, optimizer, [], 2 * wire * small, kept)

    def _ours(self) -> dict[str, Any]:
        """Settings of LSP, with a pipeline or without."""
        return {
            "d": self.share,
            "r": ENTRIES,
            "seed": self.context.config.seed,
            "check_every": max(10, self.plan.steps // 3),
            "wire_dtype": torch.bfloat16,
        }

    def _lora(self) -> Way:
        import peft

        model = copy.deepcopy(self.start)
        names = sorted({name.rpartition(".")[2] for name, _ in encoder_matrices(model)})
        config = peft.LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
            model.encoder = peft.get_peft_model(model.encoder, config).eval()
        trained = [p for p in model.parameters() if p.requires_grad]
        rate = 5 * self.plan.lr  # adapters take higher rates
        return Way(model, torch.optim.AdamW(trained, lr=rate), [], 0, 4 * 3 * sum(p.numel() for p in trained))

    def _galore(self) -> Way:
        import pytorch_optimizer

        model = copy.deepcopy(self.start)
        weights = [m.weight for _, m in encoder_matrices(model)]
        chosen = {id(w) for w in weights}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
        rank = max(1, round(self.share * min(weights[0].shape)))
        projected = {"rank": rank, "update_proj_gap": 50, "scale": 0.25, "projection_type": "std"}
        groups: list[dict[str, Any]] = [{"params": weights, **projected}, {"params": rest}]
        optimizer = pytorch_optimizer.GaLore(groups, lr=2 * self.plan.lr, weight_decay=0.01)
        state = sum(2 * rank * max(w.shape) + rank * min(w.shape) + w.numel() for w in weights)
        return Way(model, optimizer, [], 0, 4 * (state + 3 * sum(p.numel() for p in rest)))

    def _ways(self) -> dict[str, Way]:
        ways = {
            NATIVE: self._native(),
            ZERO: self._linked(**{**self._ours(), "projector": "identity"}, policy="zero"),
            OURS: self._linked(**self._ours(), policy="auto"),
        }
        if find_spec("peft") is not None:
            ways[LORA] = self._lora()
        if find_spec("pytorch_optimizer") is not None:
            ways[GALORE] = self._galore()
        return ways

    def step(self, way: Way, index: int) -> None:
        """One batch: forward, backward, update."""
        batch, labels = self.batches[index]
        loss = nn.functional.cross_entropy(way.model(batch), labels)
        loss.backward()
        way.optimizer.step()
        way.optimizer.zero_grad()
        way.losses.append(loss.item())

    def run(self) -> dict[str, Samples]:
        """Every step of every copy, interleaved, by the wall clock: waiting for the link counts."""
        steps: dict[str, Callable[[], object]] = {
            name: lambda way=way: self.step(way, len(way.losses))  # type: ignore[misc]
            for name, way in self.ways.items()
        }
        return interleave(
            steps,
            rounds=self.plan.steps,
            warmup=0,
            clock="wall",
            min_block_s=None,
            progress=self.context.step("training"),
        )

    def serial_losses(self, steps: int) -> list[float]:
        """Losses of the first steps of LSP without a pipeline: what the overlapped run must give, bit for bit."""
        model = copy.deepcopy(self.start)
        optimizer = LSPAdamW(
            model,
            lr=self.plan.lr,
            targets=[name for name, _ in encoder_matrices(model)],
            **self._ours(),
        )
        way = Way(model, optimizer, [], 0, 0)
        for i in range(steps):
            self.step(way, i)
        return way.losses

    def accuracy(self, name: str) -> float:
        """Share of held-out sentences put into the right group."""
        model, right = self.ways[name].model, 0
        with torch.inference_mode():
            for batch, labels in self.held_out:
                right += int((model(batch).argmax(1) == labels).sum())
        return right / self.plan.held_out

    def timeline(self, name: str) -> list[tuple[str, str, int, float, float]]:
        """Events of the last whole step of a way with a link: resource, stage, layer, start and end in seconds."""
        optimizer = self.ways[name].optimizer
        assert isinstance(optimizer, LSPAdamW)
        assert optimizer.pipeline is not None
        events = optimizer.pipeline.events
        last = max(event.step for event in events if event.stage == "up")
        chosen = [event for event in events if event.step == last]
        begun = min(event.start for event in chosen)
        return [(e.resource, e.stage, e.layer, e.start - begun, e.end - begun) for e in chosen]

    def close(self) -> None:
        """End the pipelines."""
        for way in self.ways.values():
            if isinstance(way.optimizer, LSPAdamW):
                way.optimizer.release()

    def records(self, samples: dict[str, Samples], accuracy: dict[str, float]) -> list[Record]:
        """One record a way, a sample a step; ratios against whole gradients over the link."""
        environment, records = capture(), []
        for name, way in self.ways.items():
            record = Record(
                workload="fine-tuning with state on the host",
                case="one step",
                candidate=name,
                shapes={"batch": self.plan.batch, "matrices": len(encoder_matrices(self.start))},
                source=self.inputs.source,
                dtype="float32",
                environment=environment,
                samples=samples[name],
                label="emulated" if name in (ZERO, OURS) else "measured",
                notes={"losses": way.losses, "accuracy": accuracy[name], "moved": way.moved, "kept": way.kept},
            )
            records.append(record if name == ZERO else record.against(ZERO, samples[ZERO]))
        return records
