# SPDX-License-Identifier: Apache-2.0
"""The pipeline over CUDA streams: the bits of the serial loop, and copies that overlap with compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgeops.offload import CudaLink, Pipeline

pytestmark = pytest.mark.gpu
LAYERS, SIZE = 6, 1 << 18


class Momentum:
    """A weight on the device, its momentum on the host, one pinned buffer and one on the device for both ways."""

    def __init__(self, layer: int, link: CudaLink) -> None:
        self.layer, self.down_bytes, self.up_bytes = layer, 4 * SIZE, 4 * SIZE
        self.weight = torch.linspace(-1, 1, SIZE, device="cuda") * (layer + 1)
        self.staged = torch.zeros(SIZE, device="cuda")
        self.host = link.host_buffer((SIZE,), torch.float32)
        self.momentum = torch.zeros(SIZE)

    def down(self) -> None:
        self.host.copy_(self.staged, non_blocking=True)

    def update(self) -> None:
        self.momentum.mul_(0.9).add_(self.host)
        self.host.copy_(self.momentum)

    def up(self) -> None:
        self.staged.copy_(self.host, non_blocking=True)

    def apply(self) -> None:
        self.weight.sub_(self.staged, alpha=1e-2)


def _train(policy: str, slots: int | None) -> list[Tensor]:
    link = CudaLink()
    tasks = [Momentum(layer, link) for layer in range(LAYERS)]
    assert all(task.host.is_pinned() for task in tasks)
    with Pipeline(LAYERS, policy, link=link, slots=slots) as pipeline:
        for _ in range(5):
            x, seen = torch.full((SIZE,), 0.5, device="cuda"), []
            for task in tasks:
                pipeline.wait(task.layer)
                x = torch.tanh(x * task.weight)
                seen.append(x)
            grad = torch.ones_like(x)
            for task, out in zip(reversed(tasks), reversed(seen)):
                grad = grad * (1 - out.square())
                task.staged.copy_(grad)
                pipeline.submit(task)
                grad = grad * task.weight
        pipeline.finish()
    return [task.weight.cpu() for task in tasks]


@pytest.mark.parametrize("slots", [None, 2])
@pytest.mark.parametrize("policy", ["zero", "fcfs", "lcfs", "transition:3"])
def test_every_policy_has_the_bits_of_the_serial_loop(policy: str, slots: int | None) -> None:
    for got, want in zip(_train(policy, slots), _train("serial", None)):
        assert torch.equal(got, want)
