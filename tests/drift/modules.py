# SPDX-License-Identifier: Apache-2.0
"""Models and streams that the tests of DriftSurf share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgeops.drift import DriftMonitor, DriftSurf, ReplayBuffer

CROSS = nn.CrossEntropyLoss(reduction="none")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))


def norm() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 1, 2)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 2),
    )


MODELS = {"mlp": mlp, "norm": norm, "dropout": dropout, "cnn": cnn}


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=0.02)


def batches(n: int, drifts: tuple[int, ...] = (), size: int = 60, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Points in the plane and the side of a line that they lie on, which turns over at each drift."""
    generator = torch.Generator().manual_seed(seed)
    turned = False
    for step in range(n):
        turned ^= step in drifts
        x = torch.randn(size, 2, generator=generator)
        yield x, (x.sum(1) > 0).long() ^ int(turned)


def surf(model: Any = mlp, **settings: Any) -> DriftSurf:
    settings = {"monitor": DriftMonitor(), "minibatch": 32, "buffer": ReplayBuffer(max_points=600), **settings}
    return DriftSurf(model, adam, CROSS, **settings)


def run(drift: DriftSurf, stream: Any) -> tuple[list[Tensor], list[tuple[str, str]]]:
    """The outputs of each batch, and what each step led to."""
    outputs, events = [], []
    for x, y in stream:
        outputs.append(drift.predict(x))
        report = drift.observe(x, y)
        events.append((report.event, report.served))
    return outputs, events
