# SPDX-License-Identifier: Apache-2.0
"""The items of drift that need a GPU, and the benchmarks beside them: their code on a CPU, in small sizes."""

import pytest
import torch

from bench import check, speed_gpu, targets
from bench.drift import gpu, images, population

CPU = torch.device("cpu")


def figures_of(item):
    return {target.figure for target in targets.of(item)}


def test_learners():
    seen = gpu.learners(CPU, 6, 3, 2, 3, 12)
    assert set(seen) == figures_of("DG1")
    assert seen["decisions that differ from the CPU's"] == 0


def test_streams_are_the_same_wherever_there_are_more_learners():
    few, many = population.Streams(3, "cpu"), population.Streams(5, "cpu")
    for _ in range(2):
        for a, b in zip(few(), many()):
            torch.testing.assert_close(a, b[:3])


def test_corrupted():
    assert set(gpu.corrupted(CPU, 2, 64, 16, 2, 1)) == figures_of("DG2")


def test_the_network_has_the_size_of_the_named_one():
    assert 11e6 < sum(p.numel() for p in gpu.resnet().parameters()) < 12e6


def test_trial():
    seen = gpu.trial(CPU, 8, 16, 2)
    assert set(seen) == figures_of("DG3")
    assert sum(p.numel() for p in gpu._deep(256).parameters()) < 1e6


@pytest.mark.parametrize("item", [name for name in speed_gpu.ITEMS if name.startswith("DG")])
def test_without_a_gpu_it_says_so(item, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([item]) == 1
    assert f"{item} FAIL  needs a GPU that torch can use" in capsys.readouterr().out


def test_corruptions():
    g = torch.Generator().manual_seed(0)
    x, _ = images.generated(8, 4, 16, seed=0, channels=3)
    assert 0 <= float(x.min()) < 0.1 < 0.9 < float(x.max()) <= 1
    assert float((images.noise(x, 0.5, g) - x).std()) == pytest.approx(0.5, rel=0.1)
    assert float(images.contrast(x, 0.5, g).std()) == pytest.approx(float(x.std()) / 2)
    blurred = images.blur(torch.ones(1, 3, 9, 9), 1.0, g)
    assert blurred[0, 1, 4, 4] == pytest.approx(1.0)
    assert float(images.blur(x, 3.0, g)[..., 8, 8].std()) < float(x[..., 8, 8].std()) / 2


def test_streams_of_few_classes():
    x, y = images.generated(200, 4, 8, seed=0)
    parts = list(images.stream(x, y, {"noise": 0.1}, batches=4, size=32, rounds=1, few=1))
    assert [name for name, *_ in parts] == ["noise, all"] * 4 + ["noise, few"] * 4
    assert [len(labels.unique()) for *_, labels in parts] == [4] * 4 + [1] * 4
