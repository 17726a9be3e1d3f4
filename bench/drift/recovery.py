# SPDX-License-Identifier: Apache-2.0
"""Recovery: how soon the served error is back after labels were swapped. Drift spec, section 14, item 8.

`python -m bench.drift.recovery [--seeds 5] [--sets SINE1 Mixed] [--methods DS-D ...] [--model lr|mlp]`

A drift is recovered from with the first batch whose error is within 2 points of the mean of the five before the drift.
A batch's own error is uncertain by about sqrt(e (1 - e) / m): 3.5 points with SINE1's 100 points, 1 with Mixed's 1000.
So the same count for the mean of three batches stands beside it. The limit: r + 2 = 6 batches for 95 % of the drifts.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.drift.alarms import run_of
from edgeops.drift.evaluation import Run, batches_to_recover
from edgeops.drift.evaluation.methods import STREAMS, Settings
from edgeops.drift.evaluation.plots import smoothed
from edgeops.drift.streams import DriftStream, synthetic

SETS: dict[str, Callable[..., DriftStream]] = {"SINE1": synthetic.sine1, "Mixed": synthetic.mixed}
R = 4
SHARE = 0.95


@dataclass(frozen=True)
class Recovered:
    """One method on one set: shares of drifts, and the median of batches."""

    method: str
    soon: float
    soon_mean: float
    median: float
    worst: float
    error: float


def waits(run: Run, drifts: tuple[int, ...], width: int = 1) -> list[float]:
    """Batches that a run takes after each drift, counting the drift's own; infinity where it is not back in time.

    Args:
        run: the run.
        drifts: batches.
        width: the error is back once the mean of so many batches is, all of them behind the drift.
    """
    found = []
    for drift, wait in zip(drifts, batches_to_recover(run.errors, drifts), strict=True):
        if width == 1:
            found.append(float("inf") if wait is None else float(wait))
            continue
        before = run.errors[max(0, drift - 5) : drift]
        level, means = sum(before) / len(before) + 0.02, smoothed(run.errors[drift:], width)
        end = next((t for t, mean in enumerate(means) if t + 1 >= width and mean <= level), None)
        found.append(float("inf") if end is None else float(end + 1 - width))
    return found


def recovered(name: str, methods: list[str], seeds: int, model: str = "lr", **sizes: int) -> list[Recovered]:
    """What each method needs on draws of a set.

    Args:
        name: of `SETS`.
        methods: names of `learner_of`.
        seeds: draws.
        model: "lr" or "mlp".
        **sizes: `n` and `batches` of the draws; the experiments' without.
    """
    usual = STREAMS[name.lower()].settings
    settings = Settings(usual.eta, usual.mu, model=model)
    streams = [SETS[name](seed=seed, **sizes) for seed in range(seeds)]
    lines = []
    for method in methods:
        runs = [run_of(method, stream, settings, seed) for seed, stream in enumerate(streams)]
        drifts = streams[0].drifts
        single = [wait for run in runs for wait in waits(run, drifts)]
        means = [wait for run in runs for wait in waits(run, drifts, 3)]
        lines.append(
            Recovered(
                method,
                statistics.mean(wait <= R + 2 for wait in single),
                statistics.mean(wait <= R + 2 for wait in means),
                statistics.median(means),
                max(means),
                statistics.mean(run.error for run in runs),
            )
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="*", default=["DS-D", "DS-A", "DS-B", "Standard", "MDDM-G", "AUE"])
    parser.add_argument("--model", default="lr", choices=["lr", "mlp"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    heads = ("in 6 (one batch)", "in 6 (mean of 3)", "median", "worst")
    print(f"{'set':6} {'method':9} {heads[0]:>16} {heads[1]:>16} {heads[2]:>6} {heads[3]:>6} {'error':>7}")
    for name in given.sets:
        for line in recovered(name, given.methods, given.seeds, given.model):
            print(
                f"{name:6} {line.method:9} {line.soon:16.0%} {line.soon_mean:16.0%} {line.median:6.1f} "
                f"{line.worst:6.0f} {line.error:7.4f}  {'kept' if line.soon >= SHARE else 'missed'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
