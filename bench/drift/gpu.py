# SPDX-License-Identifier: Apache-2.0
"""What drift must show on a GPU: DG1 to DG3 of "On one GPU" (spec, section 14). Every function also runs on a CPU."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from bench.drift import adaptation, images, population
from edgeops.drift import DriftMonitor, DriftSurf

Figures = dict[str, float]
CLASSES = 10


def learners(
    device: torch.device, count: int = 10_000, looped: int = 200, steps: int = 9, sample: int = 100, turns: int = 60
) -> Figures:
    """DG1: many learners as one program over a loop over modules, and decisions beside the CPU's, in float64."""
    seen = population.speed(count, steps, device, None, looped)
    for name, value in seen.items():
        print(f"  {name}: {value:.4g}")
    differ = population.differing(2 * sample, sample, turns, device, None)
    return {
        "stable step, over a loop over modules": seen["stable: over the lean loop"],
        "step with trials, over a loop over modules": seen["drifting: over the lean loop"],
        "decisions that differ from the CPU's": float(differ),
    }


class Block(nn.Module):
    """Two convolutions and what goes around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(3))
        self.around = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norms[0](self.first(x)).relu()
        return (self.norms[1](self.second(out)) + self.norms[2](self.around(x))).relu()


def resnet(width: int = 64) -> nn.Module:
    """Of the size of ResNet-18 for pictures of 32 by 32: 8 blocks, 11 million parameters at width 64."""
    blocks: list[nn.Module] = []
    inputs = width
    for stage in range(4):
        for stride in (1 if stage == 0 else 2, 1):
            blocks.append(Block(inputs, width << stage, stride))
            inputs = width << stage
    stem = (nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


def corrupted(
    device: torch.device,
    width: int = 64,
    train: int = 20_000,
    size: int = 128,
    batches: int = 60,
    rounds: int = 4,
    lr: float = 0.01,
) -> Figures:
    """DG2: errors at the end of a long stream, above those of the source by each batch's statistics."""
    torch.manual_seed(0)
    x, y = (t.to(device) for t in images.generated(train, CLASSES, 32, seed=0, channels=3))
    source = adaptation.fit(resnet(width).to(device), x, y, epochs=2, lr=1e-3)
    test = images.generated(4000, CLASSES, 32, seed=1, channels=3)
    strengths = {"noise": 0.4, "contrast": 0.5}

    def stream() -> Iterator[adaptation.Batch]:
        made = images.stream(*test, strengths, batches=batches, size=size, rounds=rounds, few=1)
        return ((name, x.to(device), y.to(device)) for name, x, y in made)

    found = adaptation.compared(source, stream, lr)
    for method, figures in found.items():
        print(f"  {method}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    least = found["batch statistics"]["end"]
    return {f"{name}: error at the end above the source's": found[name]["end"] - least for name in (*PLAIN, *GUARDED)}


PLAIN, GUARDED = ("entropy",), ("guarded, no labels", "guarded, labels")


def _deep(width: int) -> nn.Module:
    layers = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 2))


def _always(learning: bool) -> DriftMonitor:
    """A monitor that never starts a trial, or is in one for ever."""
    if not learning:
        return DriftMonitor(delta=float("inf"))
    long, never = 1 << 30, 1e12
    return DriftMonitor(delta=0.0, r=long, longest=long, early_z=never, margin_z=never, z_again=never)


def _learner(device: torch.device, width: int, trial: bool) -> DriftSurf:
    make = partial(torch.optim.SGD, lr=0.05)
    torch.manual_seed(0)
    return DriftSurf(_deep(width).to(device), make, population.LOSS, monitor=_always(trial), archive=0, rate=1.0)


def trial(device: torch.device, width: int = 256, points: int = 64, steps: int = 50) -> Figures:
    """DG3: a step of a trial with three candidates over one without, below a million parameters."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(points, width, generator=g).to(device)
    y = (x[:, 0] > 0).long()
    stable, tried = (_learner(device, width, trial) for trial in (False, True))
    for _ in range(5):
        stable.observe(x, y)
        tried.observe(x, y)
    if not tried.monitor.in_trial:
        raise RuntimeError("no trial was entered")
    ratios = []
    for _ in range(steps):
        base = population._seconds(stable.observe, x, y)
        ratios.append(population._seconds(tried.observe, x, y) / base)
    return {"a trial's step over a stable one": statistics.median(ratios)}
