# SPDX-License-Identifier: Apache-2.0
"""Robust statistics of repeated timings: median, quartiles, and ratios taken pair by pair.

A shared machine slows down for seconds at a time. Dividing two medians mixes such a slow spell into one side; dividing
the two samples of the same round cancels it, because both saw the same machine. All ratios of edgeops are of that kind.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Return the 25 %, 50 % and 75 % points, linearly interpolated (one value stands for all three).

    Raises:
        ValueError: no value, or one that is not finite.

    >>> quartiles([4.0, 1.0, 3.0, 2.0])
    (1.75, 2.5, 3.25)
    """
    data = [float(v) for v in values]
    if not data:
        raise ValueError("quartiles: at least one value is needed; got none. Measure one round or more.")
    bad = [v for v in data if not math.isfinite(v)]
    if bad:
        raise ValueError(f"quartiles: every value must be finite; got {bad[0]}. Drop or explain that sample first.")
    if len(data) == 1:
        return data[0], data[0], data[0]
    low, middle, high = statistics.quantiles(data, n=4, method="inclusive")
    return low, middle, high


@dataclass(frozen=True)
class Samples:
    """Timings of one candidate, one entry a round: seconds per call, averaged over a block of `calls` calls.

    Args:
        seconds: positive, finite; in the order of the rounds, which is what `paired_ratio` pairs by.
        calls: calls in a block (>= 1).
        clock: the clock that measured, one of `edgeops.perf.CLOCKS`.

    Raises:
        ValueError: no sample, a sample that is not positive and finite, or `calls < 1`.

    >>> s = Samples((0.2, 0.1, 0.3), calls=4)
    >>> s.median, round(s.iqr, 3), s.best
    (0.2, 0.1, 0.1)
    """

    seconds: tuple[float, ...]
    calls: int = 1
    clock: str = "process"

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", tuple(float(s) for s in self.seconds))
        bad = [s for s in self.seconds if not (math.isfinite(s) and s > 0)]
        if not self.seconds or bad:
            raise ValueError(
                f"Samples: at least one sample, each positive and finite; got {bad[0] if bad else 'none'}. "
                "Let edgeops.perf.interleave choose the block size."
            )
        if self.calls < 1:
            raise ValueError(f"Samples: calls must be 1 or more; got {self.calls}. Pass the size of a timed block.")

    @property
    def median(self) -> float:
        """Median, seconds per call."""
        return quartiles(self.seconds)[1]

    @property
    def low(self) -> float:
        """First quartile, seconds per call."""
        return quartiles(self.seconds)[0]

    @property
    def high(self) -> float:
        """Third quartile, seconds per call."""
        return quartiles(self.seconds)[2]

    @property
    def iqr(self) -> float:
        """Interquartile range `high - low`, seconds per call."""
        return self.high - self.low

    @property
    def best(self) -> float:
        """Smallest sample, seconds per call: the figure for call overheads, where every disturbance only adds."""
        return min(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """`baseline / candidate` in time, so 2.0 means twice as fast: median and quartiles over the pairs."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x [{self.low:.2f}, {self.high:.2f}]"


def paired_ratio(baseline: Samples, candidate: Samples) -> Ratio:
    """How many times faster `candidate` is than `baseline`: median and quartiles of the ratios of each round.

    Raises:
        ValueError: different numbers of rounds or different clocks: the two were not measured in one interleaved run.

    >>> print(paired_ratio(Samples((2.0, 4.0, 2.0)), Samples((1.0, 2.0, 2.0))))
    2.00x [1.50, 2.00]
    """
    if len(baseline.seconds) != len(candidate.seconds) or baseline.clock != candidate.clock:
        raise ValueError(
            "paired_ratio: both sides must come from one interleaved run; "
            f"got {len(baseline.seconds)} {baseline.clock} and {len(candidate.seconds)} {candidate.clock} samples. "
            "Measure both with one call of edgeops.perf.interleave."
        )
    low, middle, high = quartiles(b / c for b, c in zip(baseline.seconds, candidate.seconds, strict=True))
    return Ratio(median=middle, low=low, high=high)


def geomean(values: Iterable[float]) -> float:
    """Geometric mean, the only fair mean of ratios.

    Raises:
        ValueError: no value, or one that is not positive and finite.

    >>> geomean([0.5, 2.0])
    1.0
    """
    data = [float(v) for v in values]
    bad = [v for v in data if not (math.isfinite(v) and v > 0)]
    if not data or bad:
        raise ValueError(
            f"geomean: at least one value, each positive and finite; got {bad[0] if bad else 'none'}. "
            "A ratio of zero means that the measurement failed."
        )
    return statistics.geometric_mean(data)
