# SPDX-License-Identifier: Apache-2.0
"""A slower machine than this one: links and compute that really work, and take as long as they would there.

Every emulated resource is a `Pacer`: it does the work, then sleeps until the time at which the slower one would be
through. It reckons from when the work could have started, not from when this machine got round to it, so the lateness
of one sleep is made up in the next. Tasks should take 20 ms or more: below, sleeps on a busy machine are noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgeops._common import message
from edgeops.offload.links import Task
from edgeops.offload.schedule import Profile


class Pacer:
    """A serial resource of a given speed.

    Args:
        clock: seconds that never go back.
        sleep: waits for a number of seconds.

    >>> now = [0.0]
    >>> pacer = Pacer(clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s + 0.25))  # sleeps too long
    >>> pacer.run(2.0), pacer.run(2.0), now[0]
    (2.0, 4.0, 4.25)
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self.next_free = clock()
        self.overrun_s = 0.0

    def run(self, seconds: float, work: Callable[[], None] | None = None, ready: float | None = None) -> float:
        """Do the work and return when the emulated resource is through, which is now or a moment ago.

        Args:
            seconds: how long it takes, 0 or more. Work that takes longer here counts with what it took, and adds the
                excess to `overrun_s`.
            work: called once.
            ready: when it could have started, by the clock; `None`: as soon as the resource was free.
        """
        begun = self._clock()
        if work is not None:
            work()
        excess = max(0.0, self._clock() - begun - seconds) if work is not None else 0.0
        self.overrun_s += excess
        start = self.next_free if ready is None else max(self.next_free, ready)
        self.next_free = start + seconds + excess
        left = self.next_free - self._clock()
        if left > 0:
            self._sleep(left)
        return self.next_free


class EmulatedLink:
    """A link of a given speed: tasks really copy, and each direction takes its time.

    A task takes `latency_s + bytes / bytes_per_s`; the two directions work at the same time, as PCIe does.

    Args:
        down_bytes_per_s, up_bytes_per_s: above 0. The second is by default as the first.
        latency_s: of a copy, 0 or more.
        clock, sleep: as of `Pacer`.

    Raises:
        ValueError: a speed or latency outside of its range.
    """

    def __init__(
        self,
        down_bytes_per_s: float,
        up_bytes_per_s: float | None = None,
        latency_s: float = 0.0,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        up_bytes_per_s = down_bytes_per_s if up_bytes_per_s is None else up_bytes_per_s
        if not (down_bytes_per_s > 0 and up_bytes_per_s > 0 and latency_s >= 0):
            rule = "bytes per second must be above 0 and latency_s at least 0"
            got = f"{down_bytes_per_s}, {up_bytes_per_s} and {latency_s}"
            raise ValueError(message("EmulatedLink", rule, got, "Pass for example 12e9."))
        self.down_bytes_per_s, self.up_bytes_per_s = float(down_bytes_per_s), float(up_bytes_per_s)
        self.latency_s = float(latency_s)
        self._down, self._up = (Pacer(clock=clock, sleep=sleep) for _ in range(2))
        self.moved_down = self.moved_up = 0

    def submitted(self, task: Task) -> None:
        """Nothing to prepare."""

    def down(self, task: Task, ready: float) -> float:
        """Run `task.down` and wait as long as the slower link would."""
        self.moved_down += task.down_bytes
        return self._down.run(self.latency_s + task.down_bytes / self.down_bytes_per_s, task.down, ready)

    def up(self, task: Task, ready: float) -> float:
        """Run `task.up` and wait as long as the slower link would."""
        self.moved_up += task.up_bytes
        return self._up.run(self.latency_s + task.up_bytes / self.up_bytes_per_s, task.up, ready)

    def before_apply(self, task: Task) -> None:
        """Nothing to wait for."""

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Plain memory, zeroed, so that every page is there before the first copy."""
        return torch.zeros(tuple(shape), dtype=dtype)

    @property
    def overrun_s(self) -> float:
        """Seconds by which real copies were slower than the emulated ones: above 0, this machine is the limit."""
        return self._down.overrun_s + self._up.overrun_s


class EmulatedCompute:
    """Compute and CPU of another machine as pure waits of given durations.

    Args:
        profile: seconds of each stage of each layer.
        clock, sleep: as of `Pacer`.

    Use `forward` and `backward` in the training thread and `update` as the pipeline's `cpu`.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.profile = profile
        self.compute, self.cpu = (Pacer(clock=clock, sleep=sleep) for _ in range(2))

    def forward(self, layer: int, after: float | None = None, *, apply: bool = True) -> float:
        """Apply the layer's update, if there is one, then its forward; not before `after`. Returns when through."""
        stages = ("apply", "forward") if apply else ("forward",)
        return self.compute.run(sum(float(getattr(self.profile, s)[layer]) for s in stages), ready=after)

    def backward(self, layer: int, after: float | None = None) -> float:
        """Backward and compression of the layer, not before `after`. Returns when through."""
        seconds = sum(float(getattr(self.profile, s)[layer]) for s in ("backward", "compress"))
        return self.compute.run(seconds, ready=after)

    def update(self, task: Task, ready: float) -> float:
        """Run `task.update` on the emulated CPU."""
        return self.cpu.run(float(self.profile.update[task.layer]), task.update, ready)  # type: ignore[index]
