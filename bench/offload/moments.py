# SPDX-License-Identifier: Apache-2.0
"""What becomes of Adam's moments when the subspaces change, measured: `python -m bench.offload.moments`.

Item 10 of the offload specification, section 14. MiniLM learns SST-2; after some steps every pair is learned again,
from a new draw and from the one that is there, and the same batches follow with each way of `transfer`, all from one
snapshot. A figure is the mean loss over the steps that follow, above that of going on with the old pairs: of ways
beside one another on the same pair, the lowest has lost least by the change.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.offload.encoder import load_task, loss_of, new_classifier
from edgeops.offload import LSPAdamW, Pair, fit
from edgeops.offload.moments import CHANGES, transfer
from edgeops.offload.targets import first_pair

STARTS = ("a new draw", "the old pair")
PROJECTED = "project_normalised"
LR, WIDTH, ENTRIES, BATCH = 1e-4, 96, 4, 8
BEFORE, AFTER, SEEDS = 30, 20, 4


@dataclass(frozen=True)
class Run:
    """One continuation."""

    seed: int
    start: str
    """Of the fit; "" where nothing has changed."""
    how: str
    losses: list[float]


Batch = tuple[Tensor, Tensor, Tensor]


def prepared(seed: int, lr: float) -> tuple[nn.Module, LSPAdamW]:
    """The classifier with frozen embeddings, and LSP on the matrices of its encoder."""
    model = new_classifier(seed)
    for name, p in model.named_parameters():
        if "embeddings" in name or "pooler" in name:
            p.requires_grad_(False)
    settings: dict[str, Any] = {"targets": ["encoder.encoder.*"], "check_every": 10**6}
    return model, LSPAdamW(model, lr=lr, d=WIDTH, r=ENTRIES, seed=seed, **settings)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> list[float]:
    """A step a batch; the losses before each."""
    losses = []
    for batch in batches:
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def relearned(model: nn.Module, optimizer: LSPAdamW, batches: list[Batch], seed: int) -> dict[str, list[Pair]]:
    """New pairs of all targets on the whole gradients of some batches, by what the fit starts from."""
    grads = [torch.zeros_like(target.weight) for target in optimizer.targets]

    def keep(place: int, grad: Tensor) -> Pair:
        grads[place] += grad
        return optimizer.targets[place].pair

    for place, target in enumerate(optimizer.targets):
        assert target.module is not None
        target.module.learn = lambda grad, place=place: keep(place, grad)
    for batch in batches:
        loss_of(model, batch).backward()
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(1000 + seed)
    found: dict[str, list[Pair]] = {start: [] for start in STARTS}
    for target, grad in zip(optimizer.targets, grads, strict=True):
        fresh = first_pair("moments", target.name, target.weight, "learned", WIDTH, ENTRIES, generator)
        for start, pair in zip(STARTS, (fresh, target.pair), strict=True):
            found[start].append(fit(pair, grad).pair)
    return found


def runs(
    seed: int, *, lr: float = LR, before: int = BEFORE, after: int = AFTER, hows: tuple[str, ...] = CHANGES
) -> Iterator[Run]:
    """Everything of one seed."""
    batches = list(load_task("SST-2").batches(BATCH, before + after + 2, seed))
    model, optimizer = prepared(seed, lr)
    train(model, optimizer, batches[:before])
    kept = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    pairs = relearned(model, optimizer, batches[-2:], seed)
    for start, how in (("", "keep"), *((start, how) for start in STARTS for how in hows)):
        model.load_state_dict(kept[0])
        optimizer.load_state_dict(copy.deepcopy(kept[1]))
        if start:
            change(optimizer, pairs[start], how)
        yield Run(seed, start, how, train(model, optimizer, batches[before:-2]))


def change(optimizer: LSPAdamW, pairs: list[Pair], how: str) -> None:
    """Give every target its new pair, and its moments what `transfer` says."""
    for target, new in zip(optimizer.targets, pairs, strict=True):
        state = optimizer.state[target.leaf]
        m, v, t = transfer(target.pair, new, state["exp_avg"], state["exp_avg_sq"], int(state["step"]), how)
        state["exp_avg"], state["exp_avg_sq"] = m, v
        state["step"].fill_(t)
        target.set_pair(new)


def excess(done: list[Run]) -> dict[tuple[str, str], list[float]]:
    """Mean loss above that of unchanged pairs, by start and way: a number a seed."""
    plain = {run.seed: statistics.mean(run.losses) for run in done if not run.start}
    out: dict[tuple[str, str], list[float]] = {}
    for run in done:
        if run.start:
            out.setdefault((run.start, run.how), []).append(statistics.mean(run.losses) - plain[run.seed])
    return out


def figures() -> dict[str, float]:
    """O10: excess of projected moments over that of each other way, mean over seeds; below 0 is less loss lost."""
    hows = (PROJECTED, "reset", "reset_with_t")
    seen = excess([run for seed in range(SEEDS) for run in runs(seed, hows=hows)])
    return {
        f"{start}: projected moments, loss above that of {other}": statistics.mean(seen[start, PROJECTED])
        - statistics.mean(seen[start, other])
        for start in STARTS
        for other in hows[1:]
    }


def table(done: list[Run]) -> list[str]:
    """A line a start and way."""
    lines = []
    for (start, how), values in sorted(excess(done).items()):
        each = " ".join(f"{value:+.4f}" for value in values)
        lines.append(f"  from {start:12} {how:20} {statistics.mean(values):+.4f}  ({each})")
    return lines


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--before", type=int, default=BEFORE)
    parser.add_argument("--after", type=int, default=AFTER)
    parser.add_argument("--hows", nargs="*", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--out", type=Path, help="append runs as JSON lines")
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = []
    for seed in range(given.seeds):
        for run in runs(seed, lr=given.lr, before=given.before, after=given.after, hows=tuple(given.hows)):
            done.append(run)
            if given.out:
                with given.out.open("a") as file:
                    file.write(json.dumps(asdict(run)) + "\n")
        print(f"mean loss over {given.after} steps, above that of unchanged pairs, after {seed + 1} seeds", flush=True)
        print("\n".join(table(done)), flush=True)


if __name__ == "__main__":
    main()
