# SPDX-License-Identifier: Apache-2.0
"""Tasks for tests: a weight, its gradient on the way, and what a stage should do wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor


class Adam:
    """A weight whose update is Adam on the host; `down`, `update`, `up` and `apply` as an optimizer would do them."""

    def __init__(self, layer: int, size: int = 5) -> None:
        self.layer = layer
        self.weight = torch.linspace(-1, 1, size) * (layer + 1)
        self.device_side = torch.zeros(size)
        self.host = torch.zeros(size)
        self.m, self.v, self.t = torch.zeros(size), torch.zeros(size), 0
        self.down_bytes = self.up_bytes = 4 * size
        self.before: dict[str, Callable[[], None]] = {}
        self.done: list[str] = []
        self.threads: dict[str, str] = {}

    def _begin(self, stage: str) -> None:
        assert not torch.is_grad_enabled()
        self.before.get(stage, lambda: None)()
        self.threads[stage] = threading.current_thread().name

    def gradient(self, value: Tensor) -> Adam:
        self.device_side = value.clone()
        return self

    def down(self) -> None:
        self._begin("down")
        self.host.copy_(self.device_side)
        self.done.append("down")

    def update(self) -> None:
        self._begin("update")
        self.t += 1
        self.m.lerp_(self.host, 0.1)
        self.v.lerp_(self.host.square(), 0.001)
        self.host = (self.m / (1 - 0.9**self.t)) / ((self.v / (1 - 0.999**self.t)).sqrt() + 1e-8)
        self.done.append("update")

    def up(self) -> None:
        self._begin("up")
        self.device_side = self.host.clone()
        self.done.append("up")

    def apply(self) -> None:
        self._begin("apply")
        self.weight.sub_(self.device_side, alpha=0.01)
        self.done.append("apply")


def boom() -> None:
    """What a broken stage does."""
    raise ValueError("boom")
