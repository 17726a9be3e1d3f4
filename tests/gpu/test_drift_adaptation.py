# SPDX-License-Identifier: Apache-2.0
"""Entropy minimisation and its guard on the GPU."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from bench.drift import gpu, images
from edgeops.drift.adaptation import EntropyAdapter, GuardedAdapter

pytestmark = pytest.mark.gpu
ADAM = partial(torch.optim.Adam, lr=1e-3)


def test_the_guard_answers_on_the_device() -> None:
    x, y = (t.to("cuda") for t in images.generated(64, gpu.CLASSES, 32, seed=0, channels=3))
    guard = GuardedAdapter(gpu.resnet(8).to("cuda"), ADAM)
    out = guard.adapt(x)
    assert out.device.type == "cuda"
    assert bool(out.isfinite().all())
    assert guard.observe(x[:16], y[:16]) in ("enter", "keep", "switch")
    with torch.no_grad():
        guard.warm.params[0].fill_(torch.nan)
    assert bool(guard.predict(x).isfinite().all())


def test_a_step_is_that_of_the_cpu() -> None:
    x, _ = images.generated(32, gpu.CLASSES, 32, seed=0, channels=3)
    module = gpu.resnet(4).double()
    twin = copy.deepcopy(module).to("cuda")
    make = partial(torch.optim.SGD, lr=1e-2)
    here, there = EntropyAdapter(module, make), EntropyAdapter(twin, make)
    for _ in range(3):
        torch.testing.assert_close(there.adapt(x.double().to("cuda")).cpu(), here.adapt(x.double()))
