# SPDX-License-Identifier: Apache-2.0
"""Entropy minimisation: what it touches; and its guard on pictures that are made here."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from bench.drift import adaptation as bench
from bench.drift import images
from edgeops.drift.adaptation import EntropyAdapter, GuardedAdapter, entropy
from edgeops.drift.monitor import DriftMonitor

SGD, ADAM = partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=0.1)


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(0)
    return bench.fit(bench.network(classes=6, width=4), *images.generated(1500, 6, 20, seed=0), epochs=3)


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def broken(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module[1].bias.fill_(math.nan)
    return module


def test_one_step_is_that_of_the_definition() -> None:
    module, x = small(), torch.randn(16, 5)
    twin = copy.deepcopy(module).eval()
    twin[1].track_running_stats = False
    twin[1].train()
    p = twin(x).softmax(1)
    (-(p * p.log()).sum(1).mean()).backward()
    EntropyAdapter(module, SGD)(x)
    for mine, its in zip((module[1].weight, module[1].bias), (twin[1].weight, twin[1].bias)):
        torch.testing.assert_close(mine, its - 0.1 * its.grad)


def test_nothing_else_changes() -> None:
    module, x = small(), torch.randn(16, 5)
    module[0].weight.requires_grad_(False)
    module[1].weight.requires_grad_(False)
    module[1].bias.grad = torch.ones(8)
    before = copy.deepcopy(module.state_dict())
    adapter = EntropyAdapter(module, SGD)
    adapter(x)
    adapter.adapt(x[:0])
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.weight", "1.bias"}
    assert all(part.training for part in module.modules())
    assert module[1].track_running_stats
    assert not module[1].weight.requires_grad
    assert torch.equal(module[1].bias.grad, torch.ones(8))
    assert module[0].bias.grad is None


def test_the_guard_prevents_the_collapse(source) -> None:
    """Of a long run on batches of few classes, on pictures that the source has not seen."""
    strengths = {"noise": 0.3, "contrast": 0.5}
    make = partial(
        images.stream, *images.generated(600, 6, 20, seed=1), strengths, batches=25, size=48, rounds=2, few=1
    )
    found = bench.compared(source, make, lr=0.1)
    statistics = found["batch statistics"]["end"]
    assert found["entropy"]["end"] > statistics + 0.2
    for name in ("guarded, no labels", "guarded, labels"):
        assert found[name]["end"] < found["entropy"]["end"] - 0.15
        assert found[name]["returns"] > 0


def test_what_adapts_well_is_left_alone(source) -> None:
    make = partial(
        images.stream, *images.generated(600, 6, 20, seed=1), {"noise": 0.3}, batches=12, size=48, rounds=1, few=6
    )
    found = bench.compared(source, make, lr=1e-3)
    assert found["guarded, no labels"]["returns"] == 0
    assert found["guarded, no labels"]["mean"] == found["entropy"]["mean"]


def test_a_model_of_one_class_or_no_numbers_is_never_served(source) -> None:
    x, _ = images.generated(40, 6, 20, seed=2)
    guard = GuardedAdapter(source, SGD, diversity=0.0, disagreement=1.0)
    with torch.no_grad():
        guard.warm.module[-1].bias[3] = 1e3
    assert bool((guard.warm.predict(x).argmax(1) == 3).all())
    kept = guard._keep(x)
    for answer in (guard.predict, guard.adapt):
        assert torch.equal(answer(x), kept)
        assert guard.serve == "keep"
    broken(guard.warm.module)
    assert torch.equal(guard.predict(x), kept)
    assert torch.equal(guard.adapt(x), kept)
    assert guard.returns == {"parameters are no numbers": 1}
    guard(x)
    assert guard.serve == "warm"


def test_labels_decide() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=g)
    guard = GuardedAdapter(small(), SGD, diversity=0.0, disagreement=1.0)
    with torch.no_grad():
        guard.warm.module[-1].weight.neg_()
    y = guard.warm.predict(x).argmax(1)
    assert guard.observe(x, y) == "switch"
    assert guard.promotions == 1
    assert torch.equal(guard._keep(x), guard.warm.predict(x))
    with torch.no_grad():
        guard.warm.module[-1].weight.neg_()
    events = [guard.observe(x[i : i + 40], y[i : i + 40]) for i in range(0, 200, 40)]
    assert guard.predict(x).argmax(1).equal(y)
    assert "keep" in events
    assert guard.returns == {"labels": 1}
    broken(guard.warm.module)
    assert guard.observe(x, y) != "switch"
    assert guard.predict(x).argmax(1).equal(y)
    assert guard.observe(x[:0], y[:0]) == "none"


def test_state_goes_on_to_the_bit(source) -> None:
    pictures, labels = images.generated(400, 6, 20, seed=3)
    parts = list(zip(pictures.split(40), labels.split(40)))

    def run(guard: GuardedAdapter, some) -> list[torch.Tensor]:
        found = []
        for turn, (x, y) in enumerate(some):
            found.append(guard.adapt(x))
            if turn % 2:
                guard.observe(x[:10], y[:10])
        return found

    whole = run(GuardedAdapter(source, ADAM), parts)
    first = GuardedAdapter(source, ADAM)
    run(first, parts[:4])
    second = GuardedAdapter(source, ADAM)
    second.load_state_dict(first.state_dict())
    for got, want in zip(run(second, parts[4:]), whole[4:], strict=True):
        assert torch.equal(got, want)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="needs normalisation layers with weights; got Linear"):
        EntropyAdapter(nn.Linear(2, 2), SGD)
    with pytest.raises(ValueError, match=r"memory at least 1; got 2, 0\.2, 0\.9, 10"):
        GuardedAdapter(small(), SGD, diversity=2)
    guard = GuardedAdapter(small(), SGD, monitor=DriftMonitor())
    with pytest.raises(ValueError, match=r"y must be \[4\], one class a point; got float32 tensor of shape \(3,\)"):
        guard.observe(torch.zeros(4, 5), torch.zeros(3))
    with pytest.raises(ValueError, match=r"the module must give logits \[n, classes\]"):
        GuardedAdapter(nn.Sequential(nn.BatchNorm2d(1)), SGD).predict(torch.zeros(4, 1, 2, 2))
    assert guard.adapt(torch.zeros(0, 5)).shape == (0, 3)
    assert entropy(torch.full((1, 2), 0.0)).item() == pytest.approx(math.log(2))


@pytest.mark.skipif(not images.DATA.exists(), reason="no pictures beside the checkout")
def test_digits() -> None:
    x, y = images.digits("t10k")
    assert x.shape == (10000, 1, 28, 28)
    assert y[:5].tolist() == [7, 2, 1, 0, 4]
    assert float(x.max()) == 1
