# SPDX-License-Identifier: Apache-2.0
"""Emulated resources on a clock of their own: deadlines, lateness carried over, work that takes longer."""

from __future__ import annotations

import pytest
import torch

from edgeops.offload.emulate import EmulatedCompute, EmulatedLink, Pacer
from edgeops.offload.schedule import Profile
from tests.offload.tasks import Adam


class Clock:
    """Time that passes by sleeping, each time a bit too long."""

    def __init__(self, late: float = 0.0) -> None:
        self.now, self.late = 100.0, late

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.late


def test_lateness_does_not_add_up() -> None:
    clock = Clock(late=0.01)
    pacer = Pacer(clock=clock, sleep=clock.sleep)
    ends = [pacer.run(1.0) for _ in range(50)]
    assert ends == pytest.approx([101.0 + i for i in range(50)])
    assert clock.now == pytest.approx(150.01)


def test_an_idle_resource_starts_when_the_work_is_ready() -> None:
    clock = Clock()
    pacer = Pacer(clock=clock, sleep=clock.sleep)
    assert pacer.run(1.0, ready=105.0) == 106.0
    assert pacer.run(1.0, ready=105.5) == 107.0
    clock.now = 200.0
    assert pacer.run(1.0, ready=150.0) == 151.0  # what is long past does not sleep
    assert clock.now == 200.0


def test_work_that_takes_longer_counts() -> None:
    clock = Clock()
    pacer = Pacer(clock=clock, sleep=clock.sleep)
    assert pacer.run(1.0, lambda: clock.sleep(3.0), ready=100.0) == 103.0
    assert pacer.overrun_s == 2.0
    assert pacer.run(1.0, lambda: clock.sleep(0.5), ready=100.0) == 104.0
    assert (clock.now, pacer.overrun_s) == (104.0, 2.0)


def test_link_directions_are_apart() -> None:
    clock = Clock()
    link = EmulatedLink(10.0, 20.0, 0.5, clock=clock, sleep=clock.sleep)
    first, second = Adam(0), Adam(1)
    with torch.no_grad():
        assert link.down(first, 100.0) == 102.5  # 20 bytes at 10 bytes/s
        assert link.down(second, 100.0) == 105.0
        assert link.up(first, 102.5) == 104.0
    assert first.done == ["down", "up"]
    assert (link.moved_down, link.moved_up, link.overrun_s) == (40, 20, 0.0)
    buffer = link.host_buffer((2, 3), torch.bfloat16)
    assert buffer.shape == (2, 3)
    assert not buffer.any()


@pytest.mark.parametrize("arguments", [(0,), (-1.0,), (1.0, 0.0), (1.0, 1.0, -1.0), (float("nan"),)])
def test_a_link_without_speed(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="bytes per second must be above 0 and latency_s at least 0"):
        EmulatedLink(*arguments)


def test_compute_and_cpu_wait_their_durations() -> None:
    clock = Clock()
    profile = Profile([1.0, 2.0], [3.0, 4.0], 0.0, [5.0, 6.0], 0.0, compress=0.5, apply=0.25)
    compute = EmulatedCompute(profile, clock=clock, sleep=clock.sleep)
    assert compute.forward(0, apply=False) == 101.0
    assert compute.forward(1, after=110.0) == 112.25
    assert compute.backward(1) == 116.75
    task = Adam(1)
    with torch.no_grad():
        assert compute.update(task, 116.75) == 122.75
    assert task.done == ["update"]
