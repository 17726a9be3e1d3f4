# SPDX-License-Identifier: Apache-2.0
"""LSPAdamW under DistributedDataParallel: compressed gradients are averaged, and all processes learn the same pairs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeops.offload import LSPAdamW

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="this torch has no gloo",
    ),
]
STEPS = 4


def build(projector: str) -> tuple[nn.Module, LSPAdamW]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)).double()
    return model, LSPAdamW(model, lr=1e-2, d=4, r=2, projector=projector, check_every=2, fit_steps=5)


def train(model: nn.Module, optimizer: LSPAdamW, part: int, parts: int) -> None:
    for i in range(STEPS):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        model(x.chunk(parts)[part]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def process(rank: int, folder: str, projector: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(os.path.join(folder, "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        model, optimizer = build(projector)
        wrapped = nn.parallel.DistributedDataParallel(model)
        train(wrapped, optimizer, rank, 2)
        values: list[Tensor] = [t.pair.left.state()["value"] for t in optimizer.targets]
        torch.save({"model": model.state_dict(), "values": values}, os.path.join(folder, f"{rank}.pt"))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("projector", ["random", "learned"])
def test_two_processes_are_one_on_the_whole_batch(projector: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, args=(str(tmp_path), projector), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    model, optimizer = build(projector)
    train(model, optimizer, 0, 1)
    for key, value in model.state_dict().items():
        assert torch.equal(first["model"][key], second["model"][key])
        torch.testing.assert_close(first["model"][key], value, rtol=1e-6, atol=1e-8)
    for a, b in zip(first["values"], second["values"]):
        assert torch.equal(a, b)
