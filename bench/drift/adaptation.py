# SPDX-License-Identifier: Apache-2.0
"""Entropy minimisation on a long stream of corrupted digits, with and without a guard. Drift spec, section 14.

`python -m bench.drift.adaptation [--rounds 2] [--batches 25] [--lr 0.01]`

A small network with batch norm learns digits as they are. Then come noise, blur and less contrast, each first in
batches of all classes, then in batches of few, again and again. Of each method: the error in each part. "labels" are
those of a quarter of every eighth batch, three batches late.
"""

from __future__ import annotations

import argparse
import copy
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bench.drift import images
from edgeops.drift.adaptation import EntropyAdapter, GuardedAdapter

Batch = tuple[str, Tensor, Tensor]
Figures = dict[str, float]
STRENGTHS = {"noise": 0.5, "blur": 1.6, "contrast": 0.6}
EVERY, LATE = 8, 3


def network(channels: int = 1, classes: int = 10, width: int = 12) -> nn.Module:
    """Two convolutions with batch norms."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, stride=2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * width, classes),
    )


def fit(module: nn.Module, x: Tensor, y: Tensor, epochs: int = 1, lr: float = 1e-2, seed: int = 0) -> nn.Module:
    """Train the source, and leave it in evaluation."""
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    module.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=g).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[index]), y[index]).backward()
            optimizer.step()
    return module.eval()


def errors(
    answer: Callable[[Tensor], Tensor], stream: Iterable[Batch], learn: Callable[[Tensor, Tensor], object] | None = None
) -> Figures:
    """The error in each part of a stream; labels of some batches are told to `learn`, late."""
    wrong: dict[str, list[float]] = defaultdict(list)
    late: deque[tuple[Tensor, Tensor] | None] = deque([None] * LATE)
    for turn, (part, x, y) in enumerate(stream):
        wrong[part].append(float((answer(x).argmax(1) != y).float().mean()))
        labelled = max(1, len(x) // 4)
        late.append((x[:labelled], y[:labelled]) if turn % EVERY == 0 else None)
        told = late.popleft()
        if learn is not None and told is not None:
            learn(*told)
    figures = {part: sum(each) / len(each) for part, each in wrong.items()}
    last = [error for each in wrong.values() for error in each[-len(each) // 4 :]]
    return figures | {
        "mean": sum(map(sum, wrong.values())) / sum(map(len, wrong.values())),
        "end": sum(last) / len(last),
    }


def compared(source: nn.Module, stream: Callable[[], Iterable[Batch]], lr: float) -> dict[str, Figures]:
    """The error of each method on the same stream."""
    factory = partial(torch.optim.Adam, lr=lr)
    statistics = EntropyAdapter(copy.deepcopy(source), factory)
    plain = EntropyAdapter(copy.deepcopy(source), factory)
    guards = {"guarded, no labels": GuardedAdapter(source, factory), "guarded, labels": GuardedAdapter(source, factory)}
    with torch.no_grad():
        found = {"source": errors(source, stream()), "batch statistics": errors(statistics.predict, stream())}
    found["entropy"] = errors(plain.adapt, stream())
    for name, guard in guards.items():
        learn = guard.observe if name.endswith(", labels") else None
        found[name] = errors(guard.adapt, stream(), learn)
        found[name] |= {"returns": float(sum(guard.returns.values())), "promotions": float(guard.promotions)}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, default=25)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--few", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--train", type=int, default=12000)
    given = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x, y = images.digits("train")
    source = fit(network(), x[: given.train], y[: given.train])
    test = images.digits("t10k")
    make = partial(
        images.stream, *test, STRENGTHS, batches=given.batches, size=given.size, rounds=given.rounds, few=given.few
    )
    found = compared(source, make, given.lr)
    with torch.no_grad():
        clean = float((source(test[0][:2000]).argmax(1) != test[1][:2000]).float().mean())
    print(f"error of the source on digits as they are: {clean:.3f}")
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    print(f"{'':20}" + "".join(f"{name:>15}" for name in names))
    for method, figures in found.items():
        print(f"{method:20}" + "".join(f"{figures.get(name, float('nan')):15.3f}" for name in names))


if __name__ == "__main__":
    main()
