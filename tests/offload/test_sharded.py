# SPDX-License-Identifier: Apache-2.0
"""LSPAdamW of models sharded by fully_shard (FSDP2): the same as one process on the whole batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeops.offload import LSPAdamW
from edgeops.offload.pair import Pair
from edgeops.offload.projector import DenseProjector, IdentityProjector, SparseProjector
from tests.messages import refused
from tests.offload.processes import both, needs_gloo

distributed = [pytest.mark.slow, needs_gloo]
STEPS = 5
WAYS = (("random", True), ("learned", True), ("learned", False), ("identity", True))  # projector, reshard_after_forward


def build(projector: str, mesh: Any = None, reshard: bool = True, **more: Any) -> tuple[nn.Module, LSPAdamW]:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(16, 25), nn.LayerNorm(25), nn.ReLU(), nn.Linear(25, 16)) for _ in range(2)]
    model = nn.Sequential(*blocks, nn.Linear(16, 3)).double()  # 25 rows, one more here than there
    if mesh is not None:
        from torch.distributed.fsdp import fully_shard

        for block in (*blocks, model):
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    settings = {"lr": 1e-2, "d": 4, "r": 2, "projector": projector, "check_every": 2, "fit_steps": 3, **more}
    return model, LSPAdamW(model, **settings)


def train(model: nn.Module, optimizer: LSPAdamW, rank: int, parts: int, first: int = 0, last: int = STEPS) -> None:
    for i in range(first, last):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        for part in x.chunk(2):  # two micro-batches a step
            model(part.chunk(parts)[rank]).square().mean().backward()
        nn.utils.clip_grad_norm_([t.leaf for t in optimizer.targets], 0.5)
        optimizer.step()
        optimizer.zero_grad()


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in model.state_dict().items()}


def mesh_of_both() -> Any:
    return torch.distributed.device_mesh.init_device_mesh("cpu", (2,))


def _train(rank: int) -> list[dict[str, Any]]:
    mesh, found = mesh_of_both(), []
    for projector, reshard in WAYS:
        model, optimizer = build(projector, mesh, reshard)
        train(model, optimizer, rank, 2)
        values = [x for t in optimizer.targets for x in t.pair.state()["left"].values() if isinstance(x, Tensor)]
        local = [t.weight.to_local().shape[0] for t in optimizer.targets]
        found.append({"model": whole(model), "values": values, "local": local})
    return found


def _resume(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    mesh = mesh_of_both()
    model, optimizer = build("learned", mesh)
    train(model, optimizer, rank, 2)
    parted, before = build("learned", mesh)
    train(parted, before, rank, 2, 0, 3)
    kept = copy.deepcopy((parted.state_dict(), before.state_dict()))
    again, after = build("learned", mesh, seed=7)
    again.load_state_dict(kept[0])
    after.load_state_dict(kept[1])
    train(again, after, rank, 2, 3)
    return whole(model), whole(again)


def _bad(rank: int) -> list[Any]:
    """A gradient that is not finite in one process, of a target and of the rest."""
    model, optimizer = build("random", mesh_of_both())
    train(model, optimizer, rank, 2, 0, 1)
    before = whole(model)
    x = torch.ones(4, 16, dtype=torch.float64)
    model(x * torch.nan if rank == 1 else x).square().mean().backward()
    optimizer.step()
    return [all(torch.equal(before[k], v) for k, v in whole(model).items()), [t.skipped for t in optimizer.targets]]


def _refused(rank: int) -> list[str]:
    from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import Shard

    mesh = mesh_of_both()
    texts = []

    def attempt(work: Any) -> None:
        try:
            work()
        except (NotImplementedError, RuntimeError, ValueError) as error:
            texts.append(f"{type(error).__name__}: {error}")

    def late() -> None:
        model = nn.Sequential(nn.Linear(16, 16))
        optimizer = LSPAdamW(model, d=4, r=2)
        fully_shard(model, mesh=mesh)
        model(torch.ones(2, 16)).sum().backward()
        optimizer.step()

    def itself() -> None:
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        fully_shard(model[0], mesh=mesh)
        LSPAdamW(model, d=4, r=2, targets=["0"])

    def columns() -> None:
        model = nn.Sequential(nn.Linear(16, 16))
        LSPAdamW(fully_shard(model, mesh=mesh, shard_placement_fn=lambda p: Shard(p.dim() - 1)), d=4, r=2)

    def parameters() -> None:
        model = fully_shard(nn.Sequential(nn.Linear(16, 16)), mesh=mesh)
        LSPAdamW([{"params": [model[0].weight], "d": 4}], r=2)

    def offloaded() -> None:
        model = nn.Sequential(nn.Linear(8, 8))
        LSPAdamW(fully_shard(model, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False)), d=2, r=1)

    attempt(lambda: build("random", mesh, policy="fcfs"))
    attempt(late)
    attempt(itself)
    attempt(columns)
    attempt(parameters)
    attempt(offloaded)
    attempt(lambda: LSPAdamW(FullyShardedDataParallel(nn.Linear(16, 16), device_id=torch.device("cpu")), d=4, r=2))
    return texts


class TestTwoProcesses:
    pytestmark = distributed

    def test_they_are_one_on_the_whole_batch(self, tmp_path: Path) -> None:
        for (projector, _), ours, theirs in zip(WAYS, *both(tmp_path, _train), strict=True):
            model, optimizer = build(projector)
            train(model, optimizer, 0, 1)
            assert ours["local"] == [13, 8, 13, 8]
            assert theirs["local"] == [12, 8, 12, 8]
            for key, value in model.state_dict().items():
                assert torch.equal(ours["model"][key], theirs["model"][key])
                torch.testing.assert_close(ours["model"][key], value, rtol=1e-6, atol=1e-8)
            for a, b in zip(ours["values"], theirs["values"], strict=True):
                assert torch.equal(a, b)

    def test_resuming_is_exact(self, tmp_path: Path) -> None:
        one, other = both(tmp_path, _resume)[0]
        for key, value in one.items():
            assert torch.equal(value, other[key])

    def test_a_bad_gradient_is_left_out_by_all(self, tmp_path: Path) -> None:
        assert both(tmp_path, _bad) == ([True, [1] * 4], [True, [1] * 4])

    def test_what_cannot_work_is_refused(self, tmp_path: Path) -> None:
        texts = both(tmp_path, _refused)[0]
        rules = (
            "NotImplementedError: LSPAdamW: policy needs whole weights",
            "RuntimeError: LSPAdamW: the layer of 0.weight must keep its parameters",
            "ValueError: LSPAdamW: every pattern in targets must match a plain nn.Linear",
            "NotImplementedError: LSPAdamW: 0.weight must be cut by rows",
            "NotImplementedError: LSPAdamW: parameter 0 of its group must be a whole weight",
            "NotImplementedError: LSPAdamW: needs shards on the device that computes",
            "NotImplementedError: LSPAdamW: needs weights as they are, or sharded by fully_shard",
        )
        assert len(texts) == len(rules), texts
        for text, rule in zip(texts, rules):
            assert text.startswith(rule)
            assert "; got " in text


@pytest.mark.parametrize("kind", ["sparse", "dense", "identity"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_are_updated_as_in_the_whole_weight(kind: str, dtype: torch.dtype) -> None:
    g, wide = torch.Generator().manual_seed(0), torch.float64 if dtype == torch.float64 else torch.float32
    left = {
        "sparse": lambda: SparseProjector.draw(300, 8, 2, generator=g, dtype=wide),
        "dense": lambda: DenseProjector(torch.randn(300, 8, generator=g, dtype=wide)),
        "identity": lambda: IdentityProjector(300),
    }[kind]()
    pair = Pair(left, SparseProjector.draw(20, 6, 2, generator=g, dtype=wide))
    delta = torch.randn(pair.shape, generator=g, dtype=wide)
    weight = torch.randn(300, 20, generator=g).to(dtype)
    parts = weight.clone()
    pair.apply_(weight, delta, -0.1, 0.9)
    for first, last in ((0, 7), (7, 290), (290, 300), (300, 300)):
        pair.apply_(parts[first:last], delta, -0.1, 0.9, first=first)
    assert torch.equal(parts, weight)


def test_a_layer_whose_parameters_are_replaced_is_refused() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    optimizer = LSPAdamW(model, d=4, r=2)
    model[0].subspace = nn.Parameter(torch.zeros(4, 4))
    with refused(RuntimeError, "LSPAdamW", "must keep its parameters", "others", "Call fully_shard.*"):
        optimizer.step()
