# SPDX-License-Identifier: Apache-2.0
"""Durations of a running pipeline, taken where it passes by anyway, as a profile for the simulator."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any

from edgeops.offload.schedule import STAGES, Profile

_KEPT = 9  # steps over which the median is taken


class Stopwatch:
    """Seconds of each stage of each layer.

    Forward and backward are the time between two calls of the training thread: from the end of the wait for a layer to
    the next wait is that layer's forward; from one gradient to the next is the backward of the second.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._seen: dict[tuple[str, int], deque[float]] = {}
        self._last: tuple[str, int, float] | None = None

    def add(self, stage: str, layer: int, seconds: float) -> None:
        """A stage took so long."""
        self._seen.setdefault((stage, layer), deque(maxlen=_KEPT)).append(max(0.0, seconds))

    def arrived(self, call: str, layer: int, now: float) -> None:
        """The training thread calls `wait` or `submit`."""
        if self._last is None:
            return
        before, which, since = self._last
        if (before, call) == ("wait", "wait"):
            self.add("forward", which, now - since)
        elif (before, call) == ("submit", "submit"):
            self.add("backward", layer, now - since)
        elif (before, call) == ("wait", "submit"):
            self.add("turn", layer, now - since)  # the last forward and the first backward

    def left(self, call: str, layer: int, now: float) -> None:
        """The training thread goes on."""
        self._last = (call, layer, now)

    def pause(self) -> None:
        """What comes next is no forward or backward."""
        self._last = None

    def _median(self, stage: str, layer: int) -> float:
        seen = self._seen.get((stage, layer))
        return statistics.median(seen) if seen else 0.0

    def profile(self) -> Profile | None:
        """Medians of the last steps, or `None` before a whole step has been seen. A stage never seen counts 0."""
        if not any(stage == "up" for stage, _ in self._seen):
            return None
        found: dict[str, Any] = {
            stage: [self._median(stage, layer) for layer in range(self.layers)] for stage in STAGES
        }
        for layer in range(self.layers):
            turn = self._median("turn", layer)
            if turn and not found["forward"][layer]:
                others = [seconds for seconds in found["forward"] if seconds]
                found["forward"][layer] = min(statistics.median(others), turn / 2) if others else turn / 3
                found["backward"][layer] = turn - found["forward"][layer]
        return Profile(**found)
