# SPDX-License-Identifier: Apache-2.0
"""Held-out loss of a language model on worked sums: LSP beside full AdamW at equal steps (`bench.check OG24`).

Item 24 of the offload specification, section 14: SmolLM2-135M on GSM8K, each method at the best of its own learning
rates, with what a step moves. AdamW trains every parameter; LSP the matrices of the layers through subspaces half as
wide as their shorter side and the norms as they are, embeddings stay. Run `python -m bench.offload.gsm8k` for a table.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.inputs import SHARED
from bench.offload.encoder import smollm
from bench.registry import Unavailable
from edgeops.offload import LSPAdamW

Figures = dict[str, float]
ADAMW, OURS = "full AdamW", "LSP"
RATES = {ADAMW: (1e-5, 2e-5, 5e-5, 1e-4), OURS: (5e-5, 1e-4, 2e-4, 4e-4)}
STEPS, BATCH, LENGTH = 200, 8, 512
SHARE, ENTRIES = 0.5, 4
HELD_OUT = 64  # sequences


@dataclass(frozen=True)
class Text:
    """Token ids in sequences of one length, `[N, L]`: for training, and held out."""

    train: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class Run:
    """One training run; `moved` counts bytes a step, both ways, of gradients and updates in float32."""

    method: str
    lr: float
    steps: int
    before: float
    loss: float
    moved: int


def load(length: int = LENGTH, held_out: int = HELD_OUT) -> Text:
    """GSM8K's training questions with their answers, one after another; the last sequences are held out.

    Raises:
        Unavailable: the text or the tokenizer is not there.
    """
    path = SHARED / "text" / "gsm8k_train.jsonl"
    if not path.is_file():
        raise Unavailable("the text of GSM8K is not beside this checkout (../shared/data/text)")
    tokenizer, _ = smollm()
    ids: list[int] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        ids += tokenizer(f"{sample['question']}\n{sample['answer']}")["input_ids"] + [tokenizer.eos_token_id]
    whole = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    return Text(whole[:-held_out], whole[-held_out:])


def optimizer_of(method: str, model: nn.Module, lr: float, targets: Sequence[str], seed: int) -> Any:
    """The optimizer, and bytes that its gradients and updates take in a step, both ways."""
    if method == ADAMW:
        return torch.optim.AdamW(model.parameters(), lr=lr), 2 * 4 * sum(p.numel() for p in model.parameters())
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)
    optimizer = LSPAdamW(model, lr=lr, d=SHARE, r=ENTRIES, targets=targets, check_every=100, seed=seed)
    numbers = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return optimizer, 2 * 4 * numbers


@torch.no_grad()
def held_out_loss(model: nn.Module, text: Text, device: torch.device, batch: int) -> float:
    """Mean loss of a token."""
    pieces = text.held_out.split(batch)
    total = sum(float(model(input_ids=x.to(device), labels=x.to(device)).loss) * len(x) for x in pieces)
    return total / len(text.held_out)


def run(
    start: nn.Module, text: Text, method: str, lr: float, *, steps: int, batch: int, device: torch.device,
    targets: Sequence[str], seed: int = 0,
) -> Run:  # fmt: skip
    """Train a copy of a causal language model once; the learning rate falls to 0 in a straight line."""
    model = copy.deepcopy(start).to(device)
    model.requires_grad_(True)
    before = held_out_loss(model, text, device, batch)
    optimizer, moved = optimizer_of(method, model, lr, targets, seed)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    draw = random.Random(seed)
    for _ in range(steps):
        ids = text.train[draw.sample(range(len(text.train)), batch)].to(device)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return Run(method, lr, steps, before, held_out_loss(model, text, device, batch), moved)


def sweep(
    start: nn.Module, text: Text, device: torch.device, *, steps: int = STEPS, batch: int = BATCH,
    rates: dict[str, tuple[float, ...]] = RATES, targets: Sequence[str] = ("model.layers.*",),
) -> list[Run]:  # fmt: skip
    """Every method at every rate of its own."""
    done = []
    for method, mine in rates.items():
        for lr in mine:
            done.append(run(start, text, method, lr, steps=steps, batch=batch, device=device, targets=targets))
            print(f"  {line_of(done[-1])}", flush=True)
    return done


def line_of(each: Run) -> str:
    """A run as a line of text."""
    return (
        f"{each.method:12} lr {each.lr:.0e}  held out {each.before:.4f} -> {each.loss:.4f} in {each.steps} steps, "
        f"moves {each.moved / 1e6:.1f} MB a step"
    )


def figures_of(done: Sequence[Run]) -> Figures:
    """OG24, of the best run of each method."""
    best = {method: min((r for r in done if r.method == method), key=lambda r: r.loss) for method in (ADAMW, OURS)}
    return {
        "held-out loss over full AdamW's": best[OURS].loss / best[ADAMW].loss,
        "full AdamW: held-out loss over that before training": best[ADAMW].loss / best[ADAMW].before,
        "bytes moved a step over whole gradients'": best[OURS].moved / best[ADAMW].moved,
    }


def quality(device: torch.device) -> Figures:
    """OG24."""
    return figures_of(sweep(smollm()[1], load(), device))


def main() -> None:
    """All runs, on a GPU where there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--out", type=Path, help="append runs as JSON lines")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    done = sweep(smollm()[1], load(given.length), device, steps=given.steps, batch=given.batch)
    if given.out:
        with given.out.open("a") as file:
            file.writelines(json.dumps(asdict(each)) + "\n" for each in done)
    for name, value in figures_of(done).items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
