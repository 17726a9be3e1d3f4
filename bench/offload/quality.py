# SPDX-License-Identifier: Apache-2.0
"""Held-out quality of fine-tuning at equal steps: LSP beside AdamW, LoRA and GaLore on a real encoder and real text.

`python -m bench.offload.quality [--task SST-2 …] [--steps N] [--seeds 3] [--out FILE]`: every method gets its own
sweep of at least four learning rates on the first seed, which goes on while the best one is at an edge; its best rate
then the other seeds. Runs are kept in FILE as JSON lines: an interrupted program goes on where it stopped.
`python -m bench.check O12 O13` judges the file.
Offload specification, section 14, items 12 and 13.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.offload.encoder import TASKS, Classifier, collate, held_out, load_task, loss_of, new_classifier
from bench.offload.methods import METHODS
from bench.registry import Unavailable
from edgeops.offload import LSPAdamW

BATCH = 16
STEPS = {"SST-2": 60, "CoLA": 240, "MRPC": 60}
RECORDS = Path(__file__).parent / "results" / "quality.jsonl"
_MOST_RATES = 6


@dataclass(frozen=True)
class Run:
    """One training run, with what it gives on the held-out samples."""

    task: str
    method: str
    lr: float
    seed: int
    steps: int
    loss: float
    accuracy: float
    matthews: float
    """Matthews' correlation of answers and labels, 0 where all answers are alike."""
    seconds: float
    """Of the processor, with everything: learning of projectors, too."""
    moved: int
    """Numbers that an offloaded step would move each way."""

    @property
    def score(self) -> float:
        """The task's own figure in per cent: GLUE takes Matthews' correlation for CoLA, accuracy for the others."""
        return 100 * (self.matthews if self.task == "CoLA" else self.accuracy)


def run(task_name: str, method: str, lr: float, seed: int, steps: int) -> Run:
    """Train once from the pretrained encoder; embeddings stay frozen in every method."""
    task, model = load_task(task_name), new_classifier(seed)
    for name, p in model.named_parameters():
        if "embeddings" in name or "pooler" in name:
            p.requires_grad_(False)
    optimizer, moved = METHODS[method].make(model, lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    start = time.process_time()
    if isinstance(optimizer, LSPAdamW) and optimizer.param_groups[0]["projector"] != "random":
        calibrate(model, optimizer, collate(task.calibration))
    for batch in task.batches(BATCH, steps, seed):
        loss_of(model, batch).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seconds = time.process_time() - start
    seen = held_out(model, task)
    return Run(task_name, method, lr, seed, steps, seen.loss, seen.accuracy, seen.matthews, seconds, moved)


def calibrate(model: Classifier, optimizer: LSPAdamW, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """Learn the projectors on texts that are neither trained on nor measured on."""
    optimizer.learn(lambda: loss_of(model, batch).backward())


Train = Callable[[str, str, float, int, int], Run]


def best_rate(runs: Sequence[Run]) -> float:
    """Of the first seed's runs, the rate of the best score; of equal ones, of the least loss."""
    return max(runs, key=lambda r: (r.score, -r.loss) if r.loss == r.loss else (-math.inf, 0)).lr


def next_run(task: str, method: str, steps: int, seeds: int, done: Sequence[Run]) -> tuple[float, int] | None:
    """Rate and seed of what a method still lacks: its sweep first, then the best rate on the other seeds."""
    mine = [r for r in done if (r.task, r.method, r.steps) == (task, method, steps)]
    first = {r.lr: r for r in mine if r.seed == 0}
    missing = [lr for lr in METHODS[method].rates if lr not in first]
    if missing:
        return missing[0], 0
    best = best_rate(list(first.values()))
    if len(first) < _MOST_RATES and best in (min(first), max(first)):
        return (best / 2 if best == min(first) else best * 2), 0
    left = [s for s in range(1, seeds) if not any(r.seed == s and r.lr == best for r in mine)]
    return (best, left[0]) if left else None


def chosen_runs(task: str, method: str, done: Sequence[Run]) -> list[Run]:
    """A method's runs at its best rate, of the largest number of steps that was run."""
    mine = [r for r in done if (r.task, r.method) == (task, method)]
    mine = [r for r in mine if r.steps == max(r.steps for r in mine)]
    first = [r for r in mine if r.seed == 0]
    return [r for r in mine if r.lr == best_rate(first)] if first else []


def table(task: str, done: Sequence[Run]) -> list[str]:
    """A line a method: best rate, held-out score and loss over seeds, time, numbers moved."""
    lines = []
    for method in METHODS:
        runs = chosen_runs(task, method, done)
        if not runs:
            continue
        scores = [r.score for r in runs]
        spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
        rates = len({r.lr for r in done if (r.task, r.method, r.steps) == (task, method, runs[0].steps)})
        lines.append(
            f"  {method:22} lr {runs[0].lr:.1e} of {rates}  score {statistics.mean(scores):5.1f} +- {spread:3.1f}  "
            f"loss {statistics.mean(r.loss for r in runs):.3f}  {statistics.mean(r.seconds for r in runs):4.0f} s  "
            f"moves {runs[0].moved / 1e6:5.2f} M numbers  ({len(runs)} seeds, {runs[0].steps} steps of {BATCH})"
        )
    return [f"{task}, held out, mean over seeds at each method's best rate (measured):", *lines]


def read(path: Path = RECORDS) -> list[Run]:
    """Finished runs.

    Raises:
        Unavailable: there are none.
    """
    if not path.is_file():
        raise Unavailable(f"no runs are in {path.name}: python -m bench.offload.quality makes them, in hours")
    return [Run(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _mean(task: str, method: str, done: Sequence[Run]) -> float:
    runs = chosen_runs(task, method, done)
    return statistics.mean(r.score for r in runs) if runs else float("nan")


def figures() -> dict[str, float]:
    """Item 12: by how many points the others are better than LSP; and how much less it moves."""
    done, seen = read(), {}
    for task in TASKS:
        print("\n".join(table(task, done)))
        lsp = _mean(task, "lsp", done)
        for other in ("adamw", "lora", "galore"):
            seen[f"{task}: points of {other} above LSP"] = _mean(task, other, done) - lsp
        full, ours = chosen_runs(task, "adamw", done), chosen_runs(task, "lsp", done)
        if full and ours:
            seen[f"{task}: traffic of full AdamW over LSP's"] = full[0].moved / ours[0].moved
    return seen


def half_figures(task: str = "SST-2") -> dict[str, float]:
    """Item 13: points that bfloat16 weights lose to float32 ones, rounded by chance and to nearest."""
    done = read()
    whole = _mean(task, "lsp", done)
    return {
        "points lost by bfloat16, rounded by chance": whole - _mean(task, "lsp, bf16", done),
        "points lost by bfloat16, to nearest": whole - _mean(task, "lsp, bf16 to nearest", done),
    }


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--steps", type=int, help="default: what each task needs to leave the commonest answer behind")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RECORDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = read(options.out) if options.out.is_file() else []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for task in options.task:
        steps = options.steps or STEPS[task]
        for method in options.methods:
            while todo := next_run(task, method, steps, options.seeds, done):
                done.append(run(task, method, *todo, steps))
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(done[-1])) + "\n")
                now = done[-1]
                print(f"{task}, {method}, lr {now.lr:g}, seed {now.seed}: {now.score:.1f}, {now.loss:.4f}", flush=True)
        print("\n".join(table(task, done)))


if __name__ == "__main__":
    main()
