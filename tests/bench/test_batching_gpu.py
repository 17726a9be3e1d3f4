# SPDX-License-Identifier: Apache-2.0
"""The items of batching that need a GPU: their code on a CPU, in small sizes."""

import pytest
import torch

from bench import check, speed_gpu, targets
from bench.batching import by_hand, gpu
from bench.batching.instances import MODELS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    monkeypatch.setattr(gpu, "instances", lambda name, count, length=20: gpu.drawn(name, count, length=4))


def figures_of(item):
    return {target.figure for target in targets.of(item)}


def test_every_model_has_drawn_instances():
    for name in MODELS:
        assert float(gpu.step(gpu.model_of(name, 8, CPU), gpu.drawn(name, 3, length=4), train=True)) > 0
        assert len(gpu.drawn(name, 5)) == 5
    long = gpu.drawn("LatticeLSTM", 16)
    assert any(len(arcs) > 1 for lattice in long for arcs, _ in lattice)


def test_by_hand_is_the_same_model():
    model, given = gpu.model_of("LatticeLSTM", 8, CPU, torch.float64), gpu.drawn("LatticeLSTM", 6, length=5)
    found = []
    for loss in (model(given), by_hand.loss_of(model, given)):
        found.append((loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(*found)


def test_results():
    seen = gpu.correctness(CPU, ("TreeLSTM", "DRNN"), 8, 3)
    assert set(seen) == figures_of("BG1")
    assert all(target.met(seen[target.figure]) for target in targets.of("BG1"))


def test_overhead():
    seen = gpu.overhead(CPU, ("TreeLSTM",), 8, 3)
    assert set(seen) == figures_of("BG2")
    assert seen["uploads of a flush"] == 0  # a CPU needs none


def test_time_in_kernels_counts_overlaps_once():
    events = [("kernel", 0.0, 2.0), ("Memcpy HtoD", 1.0, 3.0), ("kernel", 5.0, 6.0), ("kernel", 5.5, 5.75)]
    assert gpu.busy_of(events) == (pytest.approx(4e-6), 1)
    assert gpu.busy_of([]) == (0, 0)


def test_ratios():
    seen = gpu.ratios(CPU, ("TreeLSTM", "LatticeLSTM"), 8, 3, 2)
    assert set(seen) == figures_of("BG3")
    assert all(value > 0 for value in seen.values())


def test_captures_and_training():
    assert gpu.captures(CPU, "TreeLSTM", 8, 2, 2) == {"captures after warm-up": 0}
    assert set(gpu.training(CPU, 8, 3, 2)) == figures_of("BG5")


@pytest.mark.parametrize("item", [name for name in speed_gpu.ITEMS if name.startswith("BG")])
def test_without_a_gpu_it_says_so(item, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([item]) == 1
    assert f"{item} FAIL  needs a GPU that torch can use" in capsys.readouterr().out
