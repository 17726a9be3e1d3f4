# SPDX-License-Identifier: Apache-2.0
"""Learners stepped as one program against a loop over modules. Drift spec, section 14, "On one GPU", item 1.

`python -m bench.drift.population [--learners 1000 10000] [--steps 5] [--chunks 32 128 512 all]`

Every learner is an MLP of three layers of 64 with a stream of its own, in batches of 32 points. The loops do the same
forward, backward and step of SGD on each module and no more: no scores, no decisions, no trials. "lean" updates by one
`_foreach_add_`, "optim" by `torch.optim.SGD`. Where there are many learners the loops run over some of them, and count
for all. "stable" is without trials, "drifting" with those of streams that turn round every 40 batches. Times are of
the process on a CPU, of the clock on a GPU; ratios are of neighbours in one interleaved run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from edgeops.drift.monitor import DriftMonitor
from edgeops.drift.population import SGD, DriftSurfPopulation

FEATURES, WIDTH, POINTS, LR = 16, 64, 32, 0.2
LOSS = partial(nn.functional.cross_entropy, reduction="none")
Step = Callable[[Tensor, Tensor], object]


def mlp() -> nn.Module:
    """Three layers of 64."""
    widths = [FEATURES, WIDTH, WIDTH, WIDTH]
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 2))


def wrong(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs.argmax(-1) != y).double()


class Streams:
    """A linear concept for each learner, which turns round at a time of its own; the same on every device."""

    def __init__(self, learners: int, device: torch.device | str, dtype: torch.dtype = torch.float32) -> None:
        g = torch.Generator().manual_seed(0)
        self.concepts = torch.randn(4096, FEATURES, generator=g)[torch.arange(learners) % 4096]
        self.device, self.dtype, self.learners, self.t = device, dtype, learners, 0

    def __call__(self) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(self.t + 1)
        base = torch.randn(4096, POINTS, FEATURES, generator=g)
        learner = torch.arange(self.learners)
        x = base[learner % 4096] + (learner // 4096 / 8).view(-1, 1, 1)
        turned = ((self.t + learner * 7) // 40 % 2 * 2 - 1)[:, None]
        y = ((x @ self.concepts[:, :, None])[..., 0] * turned > 0).long()
        self.t += 1
        return x.to(self.device, self.dtype), y.to(self.device)


def population(
    learners: int,
    device: torch.device | str,
    chunk: int | None,
    dtype: torch.dtype = torch.float32,
    delta: float = 0.1,
) -> DriftSurfPopulation:
    """As it is measured."""
    return DriftSurfPopulation(
        lambda: mlp().to(dtype),
        learners,
        LOSS,
        optimizer=SGD(LR),
        risk_fn=wrong,
        monitor=DriftMonitor(delta=delta),
        chunk=chunk,
        device=device,
    )


def loop(learners: int, device: torch.device | str, lean: bool) -> Step:
    """A step of each of many modules, one after another."""
    models = [mlp().to(device) for _ in range(learners)]
    params = [list(model.parameters()) for model in models]
    optimizers = [torch.optim.SGD(p, lr=LR) for p in params]

    def run(x: Tensor, y: Tensor) -> None:
        for i, model in enumerate(models):
            loss = nn.functional.cross_entropy(model(x[i]), y[i])
            if lean:
                torch._foreach_add_([p.data for p in params[i]], torch.autograd.grad(loss, params[i]), alpha=-LR)
            else:
                optimizers[i].zero_grad()
                loss.backward()
                optimizers[i].step()

    return run


def _seconds(step: Step, x: Tensor, y: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        step(x, y)
        torch.cuda.synchronize()
        return time.perf_counter() - begun
    begun = time.process_time()
    step(x, y)
    return time.process_time() - begun


def speed(
    learners: int, steps: int, device: torch.device | str, chunk: int | None, looped: int = 1000, warmup: int = 24
) -> dict[str, float]:
    """Steps of the whole population a second, and how many times more than the loops make."""
    looped, streams = min(looped, learners), Streams(learners, device)
    ours = {
        "stable": population(learners, device, chunk, delta=math.inf),
        "drifting": population(learners, device, chunk),
    }
    steppers: dict[str, Step] = {name: each.observe for name, each in ours.items()}
    loops = {"lean": loop(looped, device, True), "optim": loop(looped, device, False)}
    share = {**dict.fromkeys(ours, 1.0), **dict.fromkeys(loops, learners / looped)}
    steppers.update(loops)
    took: dict[str, list[float]] = {name: [] for name in steppers}
    tried = 0
    for turn in range(warmup + steps):
        x, y = streams()
        for name, step in steppers.items():
            if turn >= warmup or name == "drifting" or turn == 0:
                seconds = _seconds(step, x, y) * share[name]
                took[name] += [seconds] if turn >= warmup else []
        tried += ours["drifting"].report()["in_trial"] if turn >= warmup else 0
    figures = {}
    for name in ours:
        figures[f"{name}: steps a second"] = 1 / statistics.median(took[name])
        for other in loops:
            ratio = statistics.median(b / a for a, b in zip(took[name], took[other]))
            figures[f"{name}: over the {other} loop"] = ratio
    return figures | {"drifting: share of learners in a trial": tried / steps / learners}


def differing(learners: int, sample: int, steps: int, device: torch.device | str, chunk: int | None) -> int:
    """Decisions of the first `sample` learners that are not those of these learners alone on the CPU, in float64."""
    streams = Streams(learners, device, torch.float64)
    many, few = population(learners, device, chunk, torch.float64), population(sample, "cpu", None, torch.float64)
    bad = 0
    for _ in range(steps):
        x, y = streams()
        events = many.observe(x, y)[:sample].cpu()
        same = events == few.observe(x[:sample].cpu(), y[:sample].cpu())
        bad += int((~(same & (many.serve[:sample].cpu() == few.serve))).sum())
    return bad


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--learners", type=int, nargs="*", default=[1000, 10000])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--chunks", nargs="*", default=["128"])
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    for learners in given.learners:
        for chunk in given.chunks:
            figures = speed(learners, given.steps, given.device, None if chunk == "all" else int(chunk))
            print(f"{learners} learners, chunk {chunk}")
            print("".join(f"  {name:40} {value:8.3g}\n" for name, value in figures.items()), flush=True)
    print(f"decisions of 100 of 200 learners that differ: {differing(200, 100, 60, given.device, 64)}")


if __name__ == "__main__":
    main()
