# SPDX-License-Identifier: Apache-2.0
"""The simulator against the emulated pipeline, and its choice of a policy. LSP-Offload specification, 14: items 14, 16.

    python -m bench.offload.simulate                 # both
    python -m bench.offload.simulate --smoke         # a few seconds
    python -m bench.offload.simulate --trace out.json

Emulated: the real pipeline with its worker threads, real copies over a throttled link, and waits for compute and CPU.
Simulated: the event simulation of the same durations from the same start. Tasks take 20 ms or more, as below that a
sleep on a busy machine is noise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edgeops.offload.emulate import EmulatedCompute, EmulatedLink
from edgeops.offload.pipeline import Pipeline
from edgeops.offload.schedule import Policy, Profile, transition_layer
from edgeops.offload.simulate import choose, simulate
from edgeops.offload.trace import write_trace

BYTES_PER_S = 100e6
LAYERS, STEPS, ROUNDS = 5, 3, 3
MS = 1e-3


def _unequal() -> Profile:
    rng = np.random.default_rng(7)
    return Profile(
        *(rng.uniform(20, 60, LAYERS) * MS for _ in range(2)), *(rng.uniform(20, 80, LAYERS) * MS for _ in range(3))
    )


PROFILES: dict[str, Profile] = {
    "compute bound": Profile(25 * MS, 50 * MS, 20 * MS, 20 * MS, 20 * MS, layers=LAYERS),
    "link bound": Profile(20 * MS, 30 * MS, 70 * MS, 20 * MS, 70 * MS, layers=LAYERS),
    "CPU bound": Profile(20 * MS, 40 * MS, 20 * MS, 90 * MS, 20 * MS, layers=LAYERS),
    "even": Profile(20 * MS, 40 * MS, 40 * MS, 40 * MS, 40 * MS, layers=LAYERS),
    "unequal layers": _unequal(),
}


class Chunk:
    """A layer's gradient as bytes: copied down, touched, copied up."""

    def __init__(self, layer: int, down_bytes: int, up_bytes: int, link: EmulatedLink) -> None:
        self.layer, self.down_bytes, self.up_bytes = layer, down_bytes, up_bytes
        size = max(down_bytes, up_bytes, 1)
        self.device, self.host = (link.host_buffer((size,), torch.uint8) for _ in range(2))

    def down(self) -> None:
        self.host[: self.down_bytes].copy_(self.device[: self.down_bytes])

    def update(self) -> None:
        self.host[:1].add_(1)

    def up(self) -> None:
        self.device[: self.up_bytes].copy_(self.host[: self.up_bytes])

    def apply(self) -> None:
        pass


class Emulated(NamedTuple):
    """Seconds from one backward to the next, and the pipeline that ran."""

    steps: tuple[float, ...]
    pipeline: Pipeline


def emulate(profile: Profile, policy: str | Policy, steps: int, record: bool = False) -> Emulated:
    """Run `steps` steps and the forward after them."""
    link, compute = EmulatedLink(BYTES_PER_S), EmulatedCompute(profile)
    down, up = np.asarray(profile.down), np.asarray(profile.up)
    chunks = [
        Chunk(layer, round(BYTES_PER_S * down[layer]), round(BYTES_PER_S * up[layer]), link)
        for layer in range(profile.layers)
    ]
    serial = str(policy) == "serial"
    starts = []
    with Pipeline(profile.layers, policy, link=link, cpu=compute.update, record=record) as pipeline:
        for step in range(steps + 1):
            for layer in range(profile.layers):
                through = pipeline.wait(layer)
                began = time.perf_counter()
                end = compute.forward(layer, through, apply=through is not None)
                pipeline.mark("forward", layer, began, end)
            starts.append(time.perf_counter())
            for layer in reversed(range(profile.layers if step < steps else 0)):
                began = time.perf_counter()
                end = compute.backward(layer, began if serial else None)
                pipeline.mark("backward", layer, began, end)
                pipeline.submit(chunks[layer], at=end)
    return Emulated(tuple(np.diff(starts).tolist()), pipeline)


def policies(profile: Profile) -> dict[str, Policy]:
    """The fixed policies, the paper's switch and the choice."""
    found = {name: Policy.parse(name) for name in ("serial", "zero", "fcfs", "lcfs", "delayed")}
    found["the paper's switch"] = Policy("transition", transition_layer(profile))
    found["choice"] = choose(profile)
    return found


class Cell(NamedTuple):
    """One policy on one profile: seconds of all steps together."""

    profile: str
    policy: str
    emulated: float
    simulated: float

    @property
    def error(self) -> float:
        return abs(self.emulated / self.simulated - 1)


def cells(
    names: Sequence[str], steps: int, rounds: int, tell: Callable[[Cell], None] = lambda cell: None
) -> list[Cell]:
    """Every policy on the named profiles, emulated (the median of rounds) and simulated."""
    found = []
    emulate(PROFILES[names[0]].scaled(0.1), "fcfs", 1)  # the first run of everything is slow
    for name in names:
        for label, policy in policies(PROFILES[name]).items():
            emulated = statistics.median(sum(emulate(PROFILES[name], policy, steps).steps) for _ in range(rounds))
            cell = Cell(name, label, emulated, sum(simulate(PROFILES[name], policy, steps=steps).steps))
            tell(cell)
            found.append(cell)
    return found


def random_profiles(count: int) -> list[Profile]:
    """Profiles of 4 to 40 layers, from compute bound to far from it, equal and unequal layers."""
    rng = np.random.default_rng(16)
    found = []
    for _ in range(count):
        layers = int(rng.integers(4, 41))
        base = rng.lognormal(0, 0.7, 7)[:, None] * np.array([[1.0], [2.0], [0.1], [1.5], [1.5], [1.5], [0.1]])
        spread = rng.uniform(1, 1 + rng.choice([0.0, 1.0, 3.0]), (7, layers))
        found.append(Profile.of_seconds(base * spread * MS))
    return found


def excess(profile: Profile, chosen: Policy) -> float:
    """The choice's seconds over those of the best fixed policy."""
    fixed = ("serial", "zero", "fcfs", "lcfs", f"transition:{transition_layer(profile)}")
    return simulate(profile, chosen).step_seconds / min(simulate(profile, name).step_seconds for name in fixed)


def choice_figures() -> dict[str, float]:
    """Item 16: on exact durations, and with choices made from durations measured with an error of 5 %."""
    rng, found = np.random.default_rng(5), random_profiles(50)
    noisy = [Profile.of_seconds(p.seconds * rng.normal(1, 0.05, p.seconds.shape).clip(0.8, 1.2)) for p in found]
    return {
        "choice over the best fixed policy, worst of 50": max(excess(p, choose(p)) for p in found),
        "the same, chosen by durations 5 % off": max(
            excess(p, choose(q, uncertainty=0.05)) for p, q in zip(found, noisy)
        ),
    }


def emulation_figures() -> dict[str, float]:
    """Item 14."""
    found = cells(list(PROFILES), STEPS, ROUNDS, lambda cell: print(_line(cell)))
    errors = sorted(cell.error for cell in found)
    return {"largest difference, simulated to emulated": errors[-1]}


def _line(cell: Cell) -> str:
    return (
        f"  {cell.profile:15s} {cell.policy:18s} emulated {cell.emulated:6.3f} s  simulated {cell.simulated:6.3f} s  "
        f"{100 * cell.error:4.1f} %"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.offload.simulate", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one profile, one step")
    parser.add_argument("--trace", type=Path, help="write the emulated timeline of the choice on unequal layers")
    given = parser.parse_args(argv)
    names = list(PROFILES)[-1:] if given.smoke else list(PROFILES)
    counts = (1, 1) if given.smoke else (STEPS, ROUNDS)
    errors = sorted(cell.error for cell in cells(names, *counts, lambda cell: print(_line(cell))))
    print(f"largest difference {100 * errors[-1]:.1f} %, median {100 * errors[len(errors) // 2]:.1f} %")
    for name, value in choice_figures().items():
        print(f"{name}: {value:.4f} (simulated)")
    if given.trace is not None:
        profile = PROFILES["unequal layers"]
        write_trace(given.trace, emulate(profile, choose(profile), 2, record=True).pipeline.events, "emulated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
