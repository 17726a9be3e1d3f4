# SPDX-License-Identifier: Apache-2.0
"""Held-out quality of fine-tuning at equal steps: LSP beside AdamW, LoRA and GaLore on a real encoder and real text.

`python -m bench.offload.quality [--task SST-2] [--steps 100] [--seeds 3] [--out FILE]`: every method gets its own sweep
of four learning rates on the first seed, its best rate then the other seeds. Runs are kept in FILE as JSON lines: an
interrupted program goes on where it stopped. Offload specification, section 14, items 12 and 13.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.offload.encoder import TASKS, Classifier, held_out, load_task, loss_of, new_classifier
from bench.registry import Unavailable
from edgeops.offload import LSPAdamW

BATCH = 16
WIDTH, ENTRIES = 96, 4
LORA_RANK = 8
RATES: dict[str, tuple[float, ...]] = {
    "adamw": (2e-5, 5e-5, 1e-4, 2e-4),
    "lsp": (2e-5, 5e-5, 1e-4, 2e-4),
    "lsp, svd": (2e-5, 5e-5, 1e-4, 2e-4),
    "lsp, random": (2e-5, 5e-5, 1e-4, 2e-4),
    "lora": (1e-4, 2e-4, 5e-4, 1e-3),
    "galore": (5e-5, 1e-4, 2e-4, 5e-4),
    "lsp, bf16": (2e-5, 5e-5, 1e-4, 2e-4),
    "lsp, bf16 to nearest": (2e-5, 5e-5, 1e-4, 2e-4),
}


@dataclass(frozen=True)
class Run:
    """One training run."""

    task: str
    method: str
    lr: float
    seed: int
    steps: int
    loss: float
    accuracy: float
    seconds: float
    moved: int
    """Numbers that an offloaded step would move each way."""


def matrices(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The encoder's linear layers."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("encoder.encoder")]


def _ordinary(model: Classifier) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad and p.dim() != 2)


def _adamw(model: Classifier, lr: float) -> tuple[torch.optim.Optimizer, int]:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr), sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def _lsp(**settings: Any) -> Callable[[Classifier, float], tuple[torch.optim.Optimizer, int]]:
    def make(model: Classifier, lr: float) -> tuple[torch.optim.Optimizer, int]:
        if settings.get("half"):
            model.encoder.to(torch.bfloat16)
        rest = {k: v for k, v in settings.items() if k != "half"}
        optimizer = LSPAdamW(
            model, lr=lr, d=WIDTH, r=ENTRIES, targets=["encoder.encoder.*"], check_every=50, fit_steps=30, **rest
        )
        return optimizer, sum(t.pair.shape[0] * t.pair.shape[1] for t in optimizer.targets) + _ordinary(model)

    return make


def _lora(model: Classifier, lr: float) -> tuple[torch.optim.Optimizer, int]:
    if find_spec("peft") is None:
        raise Unavailable("it needs the package peft: pip install peft")
    import peft

    names = sorted({n.rpartition(".")[2] for n, _ in matrices(model)})
    config = peft.LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=names, lora_dropout=0.0)
    model.encoder = peft.get_peft_model(model.encoder, config).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr), sum(p.numel() for p in trained)


def _galore(model: Classifier, lr: float) -> tuple[torch.optim.Optimizer, int]:
    if find_spec("pytorch_optimizer") is None:
        raise Unavailable("it needs the package pytorch-optimizer: pip install pytorch-optimizer")
    import pytorch_optimizer

    weights = [m.weight for _, m in matrices(model)]
    chosen = {id(w) for w in weights}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    rank = WIDTH
    groups = [
        {"params": weights, "rank": rank, "update_proj_gap": 50, "scale": 0.25, "projection_type": "std"},
        {"params": rest},
    ]
    moved = sum(rank * max(w.shape) for w in weights) + sum(p.numel() for p in rest)
    return pytorch_optimizer.GaLore(groups, lr=lr, weight_decay=0.01, eps=1e-8), moved


METHODS: dict[str, Callable[[Classifier, float], tuple[torch.optim.Optimizer, int]]] = {
    "adamw": _adamw,
    "lsp": _lsp(),
    "lsp, svd": _lsp(projector="svd"),
    "lsp, random": _lsp(projector="random"),
    "lora": _lora,
    "galore": _galore,
    "lsp, bf16": _lsp(half=True),
    "lsp, bf16 to nearest": _lsp(half=True, stochastic_rounding=False),
}


def run(task_name: str, method: str, lr: float, seed: int, steps: int) -> Run:
    """Train once from the pretrained encoder; embeddings stay frozen in every method."""
    task, model = load_task(task_name), new_classifier(seed)
    for name, p in model.named_parameters():
        if "embeddings" in name or "pooler" in name:
            p.requires_grad_(False)
    optimizer, moved = METHODS[method](model, lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    start = time.process_time()
    for batch in task.batches(BATCH, steps, seed):
        loss_of(model, batch).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seconds = time.process_time() - start
    loss, accuracy = held_out(model, task)
    return Run(task_name, method, lr, seed, steps, loss, accuracy, seconds, moved)


def plan(task: str, methods: list[str], steps: int, seeds: int, done: list[Run]) -> Iterator[tuple[str, float, int]]:
    """What is still to run: sweeps first, then the best rates on the other seeds."""
    for method in methods:
        mine = [r for r in done if (r.task, r.method, r.steps) == (task, method, steps)]
        first = {r.lr: r for r in mine if r.seed == 0}
        missing = [lr for lr in RATES[method] if lr not in first]
        if missing:
            yield method, missing[0], 0
            return
        best = max(first.values(), key=lambda r: (r.accuracy, -r.loss)).lr
        left = [s for s in range(1, seeds) if not any(r.seed == s and r.lr == best for r in mine)]
        if left:
            yield method, best, left[0]
            return


def table(task: str, steps: int, done: list[Run]) -> list[str]:
    """A line a method: best rate, held-out accuracy and loss over seeds, time, numbers moved."""
    lines = [f"{task}, {steps} steps of {BATCH}, held out: mean over seeds at each method's best rate (measured)"]
    for method in METHODS:
        mine = [r for r in done if (r.task, r.method, r.steps) == (task, method, steps)]
        first = [r for r in mine if r.seed == 0]
        if not first:
            continue
        best = max(first, key=lambda r: (r.accuracy, -r.loss)).lr
        runs = [r for r in mine if r.lr == best]
        accuracy = [100 * r.accuracy for r in runs]
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else float("nan")
        lines.append(
            f"  {method:22} lr {best:.0e}  accuracy {statistics.mean(accuracy):5.1f} +- {spread:3.1f} %  loss "
            f"{statistics.mean(r.loss for r in runs):.3f}  {statistics.mean(r.seconds for r in runs):5.0f} s  moves "
            f"{runs[0].moved / 1e6:6.2f} M numbers a step  ({len(runs)} seeds)"
        )
    return lines


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, default="SST-2")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("quality.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    done: list[Run] = []
    if options.out.exists():
        done = [Run(**json.loads(line)) for line in options.out.read_text().splitlines()]
    while todo := list(plan(options.task, options.methods, options.steps, options.seeds, done)):
        done.append(run(options.task, *todo[0], options.steps))
        with options.out.open("a") as file:
            file.write(json.dumps(asdict(done[-1])) + "\n")
        print(f"{done[-1].method}, lr {done[-1].lr:g}, seed {done[-1].seed}: {done[-1].accuracy:.3f}", flush=True)
    print("\n".join(table(options.task, options.steps, done)))


if __name__ == "__main__":
    main()
