# SPDX-License-Identifier: Apache-2.0
"""The replay buffer: what it holds, what it costs, and what it draws."""

from __future__ import annotations

import pytest
import torch

from edgeops.drift import ReplayBuffer


def filled(n: int, batch: int = 7, **settings: object) -> ReplayBuffer:
    buffer = ReplayBuffer(**settings)  # type: ignore[arg-type]
    for part in torch.arange(n).split(batch):
        buffer.append(part[:, None, None].float().expand(-1, 2, 3), part)
    return buffer


def test_ring_holds_the_last_points_of_any_shape():
    buffer = filled(100, max_points=32)
    assert len(buffer) == 32
    assert buffer.window(0) == (68, 100)
    numbers = torch.arange(68, 100)
    x, y = buffer.gather(numbers)
    assert x.shape == (32, 2, 3)
    torch.testing.assert_close(x[:, 0, 0], numbers.float())
    assert y.equal(numbers)


def test_a_batch_larger_than_the_ring_leaves_its_end():
    buffer = filled(50, batch=50, max_points=8)
    assert buffer.gather(torch.arange(42, 50))[1].tolist() == list(range(42, 50))


def test_bytes_stay_under_the_cap_and_never_grow():
    buffer = filled(10, max_bytes=1000)
    first = buffer.nbytes
    assert first <= 1000 < first + 6 * 4 + 8
    buffer.append(torch.zeros(500, 2, 3), torch.zeros(500, dtype=torch.int64))
    assert buffer.nbytes == first


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64, torch.bool])
def test_dtypes_are_kept(dtype):
    buffer = ReplayBuffer(max_points=4)
    buffer.append(torch.ones(3, 2, dtype=dtype), torch.ones(3))
    assert buffer.gather(torch.tensor([0]))[0].dtype == dtype


def test_draws_are_uniform_over_the_window():
    buffer = filled(100, max_points=64)
    drawn = buffer.draw(80, 20_000, torch.Generator().manual_seed(0))
    counts = drawn.bincount(minlength=100)
    assert counts[:80].sum() == 0
    assert 850 < counts[80:].min() <= counts[80:].max() < 1150


def test_reservoir_stands_for_the_points_that_left():
    share = torch.zeros(10)
    for seed in range(20):
        buffer = filled(1000, max_points=64, reservoir=0.5, seed=seed)
        assert len(buffer) == 64
        drawn = buffer.draw(0, 1000, torch.Generator().manual_seed(seed))
        assert buffer.gather(drawn)[1].equal(drawn)
        share += drawn.div(100, rounding_mode="floor").bincount(minlength=10) / 20_000
    assert float((share - 0.1).abs().max()) < 0.04


def test_reservoir_forgets_what_no_window_holds_any_more():
    buffer = filled(1000, max_points=64, reservoir=0.5)
    buffer.release(1000)
    assert len(buffer) == 32
    start = buffer.count
    buffer.append(torch.zeros(96, 2, 3), torch.full((96,), -1))
    drawn = buffer.draw(start, 500, torch.Generator().manual_seed(0))
    assert int(drawn.min()) >= start
    assert buffer.gather(drawn)[1].eq(-1).all()
    assert len(buffer) == 64


def test_reservoir_with_a_batch_larger_than_the_ring():
    buffer = filled(400, batch=200, max_points=32, reservoir=0.5)
    drawn = buffer.draw(0, 300, torch.Generator().manual_seed(0))
    assert buffer.gather(drawn)[1].equal(drawn)


def test_state_goes_on_as_before():
    buffer, other = filled(300, max_points=48, reservoir=0.25), ReplayBuffer()
    other.load_state_dict(buffer.state_dict())
    for part in (buffer, other):
        part.append(torch.ones(40, 2, 3), torch.arange(300, 340))
    first, second = (part.draw(0, 100, torch.Generator().manual_seed(3)) for part in (buffer, other))
    assert first.equal(second)
    assert buffer.gather(first)[1].equal(other.gather(second)[1])


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="reservoir in"):
        ReplayBuffer(reservoir=1.0)
    with pytest.raises(ValueError, match="Allow at least 32"):
        filled(3, max_bytes=8)
    with pytest.raises(ValueError, match="one row a point"):
        ReplayBuffer().append(torch.zeros(3, 2), torch.zeros(2))
    buffer = filled(3, max_points=4)
    with pytest.raises(ValueError, match=r"rows of shape \(2, 3\)"):
        buffer.append(torch.zeros(3, 2, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="must hold points"):
        buffer.draw(3, 1, torch.Generator())
