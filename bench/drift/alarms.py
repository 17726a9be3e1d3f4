# SPDX-License-Identifier: Apache-2.0
"""False alarms: streams without a drift, where no model should be replaced. Drift spec, section 14, item 7.

`python -m bench.drift.alarms [--seeds 10] [--sets SEA10 SINE1 ...] [--methods DS-D Standard ...] [--model lr|mlp]`

For each set and method: the share of runs in which a model was replaced after batch 10, and the error over the last 20
batches less that of never resetting, in points, mean over the runs. The limits are 5 % and 0.3 points.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from edgeops.drift.evaluation import Evaluation, Run
from edgeops.drift.evaluation.methods import STREAMS, Settings, learner_of
from edgeops.drift.streams import DriftStream, synthetic

SETS: dict[str, tuple[str, Callable[..., DriftStream]]] = {
    "SEA10": ("sea10", lambda **given: synthetic.sea(0.1, drifts=(), **given)),
    "SINE1": ("sine1", lambda **given: synthetic.sine1(drifts=(), **given)),
    "Mixed": ("mixed", lambda **given: synthetic.mixed(drifts=(), **given)),
    "Circles": ("circles", lambda **given: synthetic.circles(drifts=(), **given)),
}
"""Set -> its name in `STREAMS`, whose settings it has, and its generator without drifts."""
FIRST, LAST = 10, 20
"""Batches in which a replacement is forgiven; batches at the end that tell the final error."""
WRONG_SHARE, FINAL_POINTS = 0.05, 0.3


@dataclass(frozen=True)
class Alarms:
    """One method on one set."""

    method: str
    wrong: float
    switches: float
    trials: float
    final: float

    @property
    def kept(self) -> bool:
        """Whether both limits are."""
        return self.wrong <= WRONG_SHARE and self.final <= FINAL_POINTS


def settings_of(name: str, model: str) -> Settings:
    """The experiments' settings of a set."""
    usual = STREAMS[SETS[name][0]].settings
    return Settings(usual.eta, usual.mu, model=model)


def final_error(run: Run) -> float:
    """In points, over the last batches."""
    return 100 * statistics.mean(run.errors[-LAST:])


def run_of(method: str, stream: DriftStream, settings: Settings, seed: int) -> Run:
    """One method on one draw."""
    stream = stream.with_constant()
    return Evaluation(learner_of(method, stream, settings, seed), stream, method, seed=seed).advance()


def alarms(name: str, methods: list[str], seeds: int, model: str = "lr", **sizes: int) -> list[Alarms]:
    """What each method does on draws of a set without a drift.

    Args:
        name: of `SETS`.
        methods: names of `learner_of`.
        seeds: draws.
        model: "lr" or "mlp".
        **sizes: `n` and `batches` of the draws; the experiments' without.
    """
    settings = settings_of(name, model)
    runs: dict[str, list[Run]] = {method: [] for method in ("Oblivious", *methods)}
    for seed in range(seeds):
        stream = SETS[name][1](seed=seed, **sizes)
        for method in runs:
            runs[method].append(run_of(method, stream, settings, seed))
    never = [final_error(run) for run in runs["Oblivious"]]
    return [
        Alarms(
            method,
            statistics.mean(any(t > FIRST for t in run.switches) for run in runs[method]),
            statistics.mean(len(run.switches) for run in runs[method]),
            statistics.mean(len(run.trials) for run in runs[method]),
            statistics.mean(final_error(run) - level for run, level in zip(runs[method], never, strict=True)),
        )
        for method in methods
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="*", default=["DS-D", "DS-A", "DS-B", "Standard", "MDDM-G"])
    parser.add_argument("--model", default="lr", choices=["lr", "mlp"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'set':8} {'method':9} {'wrong runs':>10} {'switches':>8} {'trials':>7} {'final - never':>13}  limits")
    for name in given.sets:
        for line in alarms(name, given.methods, given.seeds, given.model):
            print(
                f"{name:8} {line.method:9} {line.wrong:10.0%} {line.switches:8.1f} {line.trials:7.1f} "
                f"{line.final:+13.2f}  {'kept' if line.kept else 'missed'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
