# SPDX-License-Identifier: Apache-2.0
"""Facts about the streams, of files and of generators. Drift spec, section 7."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeops.drift.evaluation.prequential import no_change
from edgeops.drift.streams import DriftStream, read_rows, read_stream, synthetic
from tests.messages import refused


def agreement(x: Tensor, y: Tensor, positive: Tensor) -> float:
    return float((positive == (y > 0)).double().mean())


def below_sine(x: Tensor) -> Tensor:
    return x[:, 1] <= x[:, 0].sin()


@pytest.fixture
def read(shared_data: Callable[[str], Path]) -> Callable[[str], DriftStream]:
    def stream(name: str) -> DriftStream:
        return read_stream(name, shared_data("streams"))

    return stream


def swaps(stream: DriftStream, rule: Callable[[Tensor], Tensor], width: int = 50) -> list[float]:
    """Agreement with the rule in each fifth of the stream, behind its transition."""
    length = len(stream.x) // 5
    parts = [slice(k * length + width, (k + 1) * length) for k in range(5)]
    return [agreement(stream.x[p], stream.y[p], rule(stream.x[p])) for p in parts]


@pytest.mark.parametrize("source", ["file", "generator"])
def test_sine1(source: str, request: pytest.FixtureRequest) -> None:
    stream = synthetic.sine1(seed=1) if source == "generator" else request.getfixturevalue("read")("SINE1")
    assert (stream.x.shape, stream.batch_size, stream.drifts) == ((10_000, 2), 100, (20, 40, 60, 80))
    assert swaps(stream, below_sine) == pytest.approx([0.9, 0.1, 0.9, 0.1, 0.9], abs=0.025)
    assert float((stream.y > 0).double().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("source", ["file", "generator"])
def test_mixed(source: str, request: pytest.FixtureRequest) -> None:
    stream = synthetic.mixed(seed=1) if source == "generator" else request.getfixturevalue("read")("Mixed")
    assert (stream.x.shape, stream.batch_size) == ((100_000, 4), 1000)
    assert swaps(stream, synthetic.mixed_rule) == pytest.approx([0.9, 0.1, 0.9, 0.1, 0.9], abs=0.01)


def outside(x: Tensor, circle: int) -> Tensor:
    a, b, r = synthetic.CIRCLES[circle]
    return (x - torch.tensor([a, b], dtype=x.dtype)).square().sum(1) > r * r


def around(stream: DriftStream, first: int, last: int, circle: int) -> float:
    """Agreement with a circle over points [first, last)."""
    part = slice(first, last)
    return agreement(stream.x[part], stream.y[part], outside(stream.x[part], circle))


@pytest.mark.parametrize("source", ["file", "generator"])
def test_circles_glide_to_the_next_concept_and_snap_back(source: str, request: pytest.FixtureRequest) -> None:
    stream = synthetic.circles(seed=1) if source == "generator" else request.getfixturevalue("read")("Circles")
    assert (stream.x.shape, stream.drifts) == ((10_000, 2), (25, 30, 50, 55, 75, 80))
    for k in range(4):
        assert around(stream, 2500 * k + 500, 2500 * (k + 1), k) == pytest.approx(0.9, abs=0.025)
    for k in range(3):  # the last fifth of the glide is nearer to the next circle than to its own
        late = 2500 * k + 400, 2500 * k + 500
        assert around(stream, *late, k + 1) > around(stream, *late, k) + 0.05
        early = 2500 * k, 2500 * k + 100
        assert around(stream, *early, k) > around(stream, *early, k + 1)


def test_circles_without_the_fault_come_from_the_concept_before() -> None:
    stream = synthetic.circles(seed=1, fault=False)
    assert around(stream, 0, 2500, 0) == pytest.approx(0.9, abs=0.02)
    assert around(stream, 2500, 2600, 0) > around(stream, 2500, 2600, 1)
    assert around(stream, 3000, 5000, 1) == pytest.approx(0.9, abs=0.025)


@pytest.mark.parametrize(("noise", "right"), [(0.0, 1.0), (0.2, 0.8)])
def test_sea(noise: float, right: float) -> None:
    stream = synthetic.sea(noise, seed=3)
    assert (stream.name, stream.x.shape, stream.drifts) == (f"SEA{round(100 * noise)}", (100_000, 3), (25, 50, 75))
    for k, threshold in enumerate(synthetic.SEA_THRESHOLDS):
        part = slice(25_000 * k, 25_000 * (k + 1))
        x, y = stream.x[part], stream.y[part]
        assert agreement(x, y, x[:, :2].sum(1) <= threshold) == pytest.approx(right, abs=0.01 if noise else 0)
        assert float((y > 0).double().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(stream.x.max()) <= 10


def test_hyperplane() -> None:
    """The twin in words: a weight moves after each point, and may turn round."""
    slow, still = synthetic.hyperplane(0.001, seed=0, n=2000), synthetic.hyperplane(0.0, seed=0, n=2000, noise=0.0)
    assert (slow.name, slow.drifts) == ("Hyper-slow", ())
    g = torch.Generator().manual_seed(0)
    w = torch.rand(10, dtype=torch.float64, generator=g)
    x = torch.rand(2000, 10, dtype=torch.float64, generator=g)
    turn = torch.rand(2000, 10, dtype=torch.float64, generator=g) < 0.1
    assert torch.equal(slow.x, x)
    assert agreement(still.x, still.y, x @ w >= 0.5 * w.sum()) == 1
    sign, right = torch.ones(10, dtype=torch.float64), 0
    for i in range(2000):
        right += int(bool(w @ x[i] >= 0.5 * w.sum()) == bool(slow.y[i] > 0))
        w = w + 0.001 * sign
        sign = torch.where(turn[i], -sign, sign)
    assert right / 2000 == pytest.approx(0.95, abs=0.02)


def test_seeds_are_all_there_is() -> None:
    for make in (synthetic.sine1, synthetic.circles, synthetic.sea, lambda **k: synthetic.hyperplane(0.1, **k)):
        a, b, c = make(seed=5, n=500), make(seed=5, n=500), make(seed=6, n=500)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert not torch.equal(a.x, c.x)


def test_electricity(read: Callable[[str], DriftStream]) -> None:
    stream = read("Electricity")
    assert (stream.x.shape, len(stream), stream.batch_size) == ((45_312, 13), 34, 1332)
    assert 34 * 1332 == 45_312 - 24
    assert bool((stream.x[:, :7].sum(1) == 1).all())
    assert stream.x[0, :7].tolist() == [0, 1, 0, 0, 0, 0, 0]
    priors = torch.stack([(y > 0).double().mean() for _, y in stream])
    assert (float(priors.min()), float(priors.max())) == (pytest.approx(0.31, abs=0.01), pytest.approx(0.54, abs=0.01))
    assert float(no_change(stream).mean()) == pytest.approx(0.1467, abs=2e-4)


def test_powersupply(read: Callable[[str], DriftStream]) -> None:
    stream = read("PowerSupply")
    assert (stream.x.shape, len(stream), stream.batch_size) == ((29_928, 2), 100, 299)
    assert stream.x.amax(0).tolist() == [1, 1]
    assert float(no_change(stream).mean()) == pytest.approx(0.0833, abs=2e-4)


def test_rows_of_any_file(tmp_path: Path) -> None:
    plain, headed = tmp_path / "a.arff", tmp_path / "b.arff"
    plain.write_text("1,2,\r\n\r\n3,4\r\n")
    assert read_rows(plain) == [["1", "2"], ["3", "4"]]
    pytest.importorskip("scipy", reason="the drift extra is not installed")
    headed.write_text("@relation t\n@attribute x real\n@attribute c {p,n}\n@data\n0.5,p\n1,n\n")
    assert [[float(a), b] for a, b in read_rows(headed)] == [[0.5, "p"], [1.0, "n"]]


def test_refusals(tmp_path: Path) -> None:
    x, y = torch.zeros(4, 2), torch.ones(4)
    with refused(ValueError, "DriftStream", r"labels must be -1 or 1"):
        DriftStream("t", x, torch.zeros(4), 2)
    with refused(ValueError, "DriftStream", r"x must have shape .n, d. and y shape .n."):
        DriftStream("t", x, y[:3], 2)
    with refused(ValueError, "DriftStream", "each batch must have a point", "5 batches of 4 points"):
        DriftStream("t", x, y, 5)
    with refused(ValueError, "DriftStream", r"drifts must be batches in \(0, 2\)", r"\(2,\)"):
        DriftStream("t", x, y, 2, (2,))
    with refused(ValueError, "read_stream", "name must be one of", "'x'"):
        read_stream("x", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^read_stream: the folder must hold sine1.arff; got no such file\."):
        read_stream("SINE1", tmp_path)
    with refused(ValueError, "sea", r"noise in \[0, 1\]", "noise=20"):
        synthetic.sea(20, seed=0)
