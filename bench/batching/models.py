# SPDX-License-Identifier: Apache-2.0
"""All models of `edgeops.batching.models` on real instances: inside a session against eager, results and speed.

`python -m bench.batching.models [--width 64] [--batch 32] [--model TreeLSTM]` times a training step without the update
(forward and backward); `python -m bench.check B10` compares losses and all gradients. Eager is the same model outside
of a session, where a call of a cell is a few PyTorch operations on one row.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.batching.instances import MODELS
from bench.registry import Unavailable
from edgeops import batching
from edgeops.batching.models import Model
from edgeops.perf.stats import Samples, paired_ratio


def gradients(model: Model, instances: Sequence[Any]) -> tuple[Tensor, ...]:
    """The loss and the gradients of all parameters, outside of a session."""
    loss = model(instances)
    return (loss.detach(), *torch.autograd.grad(loss, list(model.parameters())))


def batched(model: Model, instances: Sequence[Any]) -> tuple[Tensor, ...]:
    """The same inside of one."""
    with batching.session():
        return gradients(model, instances)


def deviation(name: str, dtype: torch.dtype, width: int = 32, batch: int = 32) -> float:
    """The largest difference of the loss or a gradient from eager, as a share of that tensor's largest entry.

    Raises:
        Unavailable: the data is not there.
    """
    torch.manual_seed(0)
    model, instances = MODELS[name].model(width).to(dtype), MODELS[name].instances(batch)
    pairs = zip(batched(model, instances), gradients(model, instances), strict=True)
    return max(float((ours - eager).abs().max() / eager.abs().max()) for ours, eager in pairs)


def figures() -> dict[str, float]:
    """The largest deviation of any model, in both dtypes; 32 instances.

    Raises:
        Unavailable: the data is not there.
    """
    found: dict[str, float] = {}
    for dtype in (torch.float32, torch.float64):
        by_model = {name: deviation(name, dtype) for name in MODELS}
        for name, share in by_model.items():
            print(f"  {name}, {str(dtype).removeprefix('torch.')}: {share:.1e}")
        found[f"largest deviation from eager, {str(dtype).removeprefix('torch.')}"] = max(by_model.values())
    return found


def measure(name: str, width: int, batch: int, rounds: int) -> tuple[Samples, Samples]:
    """Process seconds of forward and backward, batched and eager, turn by turn.

    Raises:
        Unavailable: the data is not there.
    """
    torch.manual_seed(0)
    model, instances = MODELS[name].model(width), MODELS[name].instances(batch)
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for way, taken in zip((batched, gradients), seconds):
            begin = time.process_time()
            way(model, instances)
            taken.append(time.process_time() - begin)
    ours, eager = (Samples(tuple(taken[1:])) for taken in seconds)
    return ours, eager


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 1 where data is not there."""
    parser = argparse.ArgumentParser(prog="python -m bench.batching.models", description=__doc__)
    parser.add_argument("--width", type=int, default=64, help="H, default 64")
    parser.add_argument("--batch", type=int, default=32, help="instances, default 32")
    parser.add_argument("--model", choices=list(MODELS), action="append", help="one or more; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        for name in given.model or MODELS:
            ours, eager = measure(name, given.width, given.batch, given.rounds)
            ratio = paired_ratio(eager, ours)
            print(f"{name:12s} {1e3 * ours.median:9.2f} ms, eager {1e3 * eager.median:9.2f} ms: {ratio} as fast")
    except Unavailable as error:
        print(f"bench.batching.models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
