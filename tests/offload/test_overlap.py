# SPDX-License-Identifier: Apache-2.0
"""LSPAdamW with overlapped updates: the bits of the serial loop under every policy, failures, what others may read."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgeops.offload import LSPAdamW
from edgeops.offload.emulate import EmulatedLink
from edgeops.offload.pipeline import OffloadError
from tests.messages import refused

POLICIES = ["serial", "zero", "fcfs", "lcfs", "transition:2", "auto"]


class Network(nn.Module):
    """Five layers, recomputed in the backward pass where asked."""

    def __init__(self, recomputed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(20, 20) for _ in range(5)])
        self.norm, self.recomputed = nn.LayerNorm(20), recomputed

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            block = lambda y, layer=layer: layer(y).relu() + y  # noqa: E731
            x = checkpoint(block, x, use_reentrant=False) if self.recomputed else block(x)
        out: Tensor = self.norm(x)
        return out


def steps(model: nn.Module, optimizer: LSPAdamW, count: int, parts: int = 1, first: int = 0) -> None:
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for i in range(first, first + count):
        x = torch.randn(8 * parts, 20, generator=torch.Generator().manual_seed(i)).requires_grad_()
        for part in x.chunk(parts):
            (model(part).square().sum() / parts).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def build(policy: str | None, recomputed: bool = False, **more: Any) -> tuple[Network, LSPAdamW]:
    model = Network(recomputed)
    settings = {"lr": 1e-2, "d": 6, "r": 2, "check_every": 3, "policy": policy, **more}
    return model, LSPAdamW(model, **settings)


@pytest.fixture(scope="module")
def serial() -> dict[tuple[bool, int], dict[str, Tensor]]:
    """Weights after eight steps without a pipeline."""
    results = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as every test has it: the bits of torch's own products depend on it
    for recomputed in (False, True):
        for parts in (1, 2):
            model, optimizer = build(None, recomputed)
            steps(model, optimizer, 8, parts)
            results[recomputed, parts] = model.state_dict()
    torch.set_num_threads(threads)
    return results


@pytest.mark.parametrize("parts", [1, 2], ids=["whole", "accumulated"])
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_the_bits_of_the_serial_loop(
    policy: str, recomputed: bool, parts: int, serial: dict[tuple[bool, int], dict[str, Tensor]]
) -> None:
    """Item 4, with pairs that change on the way."""
    model, optimizer = build(policy, recomputed, accumulation_steps=parts)
    steps(model, optimizer, 8, parts)
    got = model.state_dict()  # waits for what is under way
    want = serial[recomputed, parts]
    assert list(got) == list(want)
    assert all(torch.equal(got[key], want[key]) for key in want)
    assert [t.learned for t in optimizer.targets] == [optimizer.targets[0].learned] * 5
    optimizer.release()


def test_over_a_throttled_link(serial: dict[tuple[bool, int], dict[str, Tensor]]) -> None:
    model, optimizer = build("lcfs", link=EmulatedLink(1e6), record=True)
    steps(model, optimizer, 8)
    want = serial[False, 1]
    assert all(torch.equal(value, want[key]) for key, value in model.state_dict().items())
    assert optimizer.pipeline is not None
    events = optimizer.pipeline.events
    assert {e.stage for e in events} >= {"down", "update", "up", "apply"}
    downs = [e for e in events if e.stage == "down"]
    assert len(downs) == 8 * 5
    optimizer.release()


def test_an_incomplete_accumulation_is_applied_by_step() -> None:
    results = []
    for policy in (None, "fcfs"):
        model, optimizer = build(policy, accumulation_steps=4)
        steps(model, optimizer, 3, parts=2)
        results.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values()))


def test_half_the_bytes_on_the_wire() -> None:
    results = []
    for policy in (None, "fcfs"):
        model, optimizer = build(policy, wire_dtype=torch.bfloat16)
        steps(model, optimizer, 4)
        results.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values()))
    full, optimizer = build(None)
    steps(full, optimizer, 4)
    assert not torch.equal(full.layers[0].weight, results[0]["layers.0.weight"])
    torch.testing.assert_close(full.layers[0].weight, results[0]["layers.0.weight"], rtol=0.05, atol=0.01)


def test_clipping_of_each_gradient() -> None:
    """With eps above the clipped gradient, updates shrink with it."""
    moved = []
    for norm in (None, 1e-6):
        model, optimizer = build("fcfs", max_norm=norm, eps=1e-3, weight_decay=0.0, projector="random")
        before = model.layers[0].weight.clone()
        steps(model, optimizer, 1)
        moved.append(float((model.state_dict()["layers.0.weight"] - before).norm()))
    assert moved[1] < 1e-2 * moved[0]


def test_saving_and_resuming_in_the_middle() -> None:
    model, optimizer = build("lcfs")
    steps(model, optimizer, 4)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    lr = optimizer.param_groups[0]["lr"]
    steps(model, optimizer, 4, first=4)
    other, resumed = build("fcfs", seed=9)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert resumed.param_groups[0]["lr"] == lr
    steps(other, resumed, 4, first=4)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def test_a_copy_of_the_model_has_the_updates_and_no_pipeline() -> None:
    model, optimizer = build("fcfs")
    steps(model, optimizer, 2)
    twin = copy.deepcopy(model)
    assert twin.layers[0].before is None
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), model.state_dict().values()))
    x = torch.randn(3, 20)
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))


def test_a_gradient_that_is_not_finite() -> None:
    model, optimizer = build("fcfs", projector="random")
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(8, 20)
    x[0] = torch.nan
    model(x).sum().backward()
    optimizer.finish()
    assert [t.skipped for t in optimizer.targets] == [1] * 5
    assert all(torch.equal(model.state_dict()[k], before[k]) for k in before if k.startswith("layers"))


def test_a_failing_stage_leaves_weights_whole() -> None:
    """The error is told once; weights have either the whole update or none; a reset pipeline goes on."""
    model, optimizer = build("fcfs")
    steps(model, optimizer, 1)
    before = copy.deepcopy(model.state_dict())
    target = optimizer.targets[2]
    exp_avg = optimizer.state[target.leaf].pop("exp_avg")

    def step() -> None:
        steps(model, optimizer, 1, first=1)
        optimizer.finish()

    with pytest.raises(OffloadError, match=r"layer 2"):
        step()
    assert optimizer.pipeline is not None
    left = optimizer.pipeline.reset()
    assert any(u.task.layer == 2 for u in left)
    now = model.state_dict()
    assert torch.equal(now["layers.2.weight"], before["layers.2.weight"])
    optimizer.state[target.leaf]["exp_avg"] = exp_avg
    optimizer.zero_grad()
    steps(model, optimizer, 1, first=2)
    assert not torch.equal(model.state_dict()["layers.2.weight"], before["layers.2.weight"])


def test_learning_on_a_calibration_batch_updates_nothing() -> None:
    model, optimizer = build("fcfs")
    before = copy.deepcopy(model.state_dict())
    optimizer.learn(lambda: model(torch.randn(4, 20)).square().sum().backward())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(t.learned == 1 and not t.due for t in optimizer.targets)
    steps(model, optimizer, 1)
    assert not torch.equal(before["layers.0.weight"], model.state_dict()["layers.0.weight"])


def test_refuses() -> None:
    with refused(ValueError, "LSPAdamW", "policy needs a model", "parameters"):
        LSPAdamW([{"params": [nn.Parameter(torch.ones(8, 8))], "d": 4}], policy="fcfs")
    with refused(ValueError, "LSPAdamW", "accumulation_steps must be at least 1", "0"):
        build("fcfs", accumulation_steps=0)
    with refused(ValueError, "LSPAdamW", "max_norm must be positive", "-1"):
        build(None, max_norm=-1)
    _, optimizer = build("fcfs")
    with refused(ValueError, "LSPAdamW", "targets cannot be added while updates are overlapped"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(8, 8))], "d": 4})
