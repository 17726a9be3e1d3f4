# SPDX-License-Identifier: Apache-2.0
"""What it costs to record a call of a cell from Python, the loop that makes it left out.

`python -m bench.check B6`. A Python function of four arguments costs about 0.05 µs here, `torch.add` 1.9 µs.
"""

from __future__ import annotations

import torch

from bench.batching.schedule import best_seconds
from edgeops import batching

CALLS = 100_000


def figures() -> dict[str, float]:
    """Microseconds of process time a call, the best of ten sessions each."""
    one = batching.cell(lambda a: 2 * a)
    four = batching.cell(lambda a, b, c, d: (a + c, b + d))

    def loop() -> None:
        for _ in range(CALLS):
            pass

    def small() -> None:
        with batching.session():
            h = one(torch.zeros(4))
            for _ in range(CALLS):
                one(h)

    def large() -> None:
        with batching.session():
            h = one(torch.zeros(4))
            for _ in range(CALLS):
                four(h, h, h, h)

    empty, *calls = (best_seconds(run, 10) for run in (loop, small, large))
    names = ("one operand, one result", "four operands, two results")
    return {name: 1e6 * (seconds - empty) / CALLS for name, seconds in zip(names, calls)}
