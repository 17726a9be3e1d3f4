# SPDX-License-Identifier: Apache-2.0
"""How well a detector finds drifts, beside one that fires as often without looking. Drift spec, pitfall 8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from edgeops._common import describe, message
from edgeops.drift.detection.detectors import Detector


@dataclass(frozen=True)
class Detection:
    """What a detector's alarms were worth.

    Args:
        alarms: points at which it fired.
        delays: points from each drift that was found to its first alarm.
        drifts: how many there were.
        reference: the same of alarms at equal distances, as many as here (as many as drifts where there were none);
            `None` in the reference itself.
    """

    alarms: tuple[int, ...]
    delays: tuple[int, ...]
    drifts: int
    reference: Detection | None = None

    @property
    def found(self) -> int:
        """Drifts with an alarm in time."""
        return len(self.delays)

    @property
    def false_alarms(self) -> int:
        """Alarms that were no drift's first."""
        return len(self.alarms) - self.found

    @property
    def mean_delay(self) -> float | None:
        """Points, over the drifts that were found."""
        return sum(self.delays) / self.found if self.delays else None

    @property
    def precision(self) -> float:
        """Share of the alarms that were right; 0 without any."""
        return self.found / len(self.alarms) if self.alarms else 0.0

    @property
    def recall(self) -> float:
        """Share of the drifts that were found; 0 without any."""
        return self.found / self.drifts if self.drifts else 0.0

    @property
    def f1(self) -> float:
        """2 * found / (alarms + drifts); 0 without either."""
        return 2 * self.found / max(1, len(self.alarms) + self.drifts)


def judge(alarms: Sequence[int], drifts: Sequence[int], within: int) -> Detection:
    """Match alarms with drifts: the first one from a drift on, at most `within` points later and before the next drift.

    >>> judge([40, 105, 110], drifts=[100, 200], within=50).delays
    (5,)
    """
    delays = []
    ends = [*drifts[1:], max([*alarms, *drifts], default=0) + 1]
    for drift, end in zip(drifts, ends):
        first = next((alarm for alarm in alarms if drift <= alarm < min(end, drift + within)), None)
        if first is not None:
            delays.append(first - drift)
    return Detection(tuple(alarms), tuple(delays), len(drifts))


def evaluate_detector(
    detector: Detector, errors: Tensor, drifts: Sequence[int], within: int | None = None
) -> Detection:
    """Run a detector over the errors of a model, reset at each alarm, and judge its alarms.

    Args:
        detector: as it is; it is not reset first.
        errors: losses `[n]` in order of time.
        drifts: points at which the distribution changed, rising, in (0, n).
        within: points after a drift in which an alarm counts for it; `None`, until the next drift.

    Raises:
        ValueError: errors that are not `[n]`, drifts that are not rising or outside.

    >>> from edgeops.drift.detection.detectors import Every, Mddm
    >>> errors = torch.zeros(1000)
    >>> errors[600:] = 1.0
    >>> found = evaluate_detector(Mddm(), errors, [600], within=100)
    >>> found.f1, found.delays, found.reference.alarms, found.reference.f1
    (1.0, (18,), (500,), 0.0)
    >>> round(evaluate_detector(Every(100), errors, [600], within=100).f1, 2)
    0.18
    """
    n, who = len(errors), "evaluate_detector"
    if errors.dim() != 1:
        raise ValueError(message(who, "errors must have shape [n]", describe(errors), "Flatten them."))
    if list(drifts) != sorted(set(drifts)) or any(not 0 < drift < n for drift in drifts):
        rule = f"drifts must rise and lie in (0, {n})"
        raise ValueError(message(who, rule, str(list(drifts)), "They are points, not batches."))
    if within is not None and within < 1:
        raise ValueError(message(who, "within must be at least 1", str(within), "None reaches to the next drift."))
    alarms = []
    for i, error in enumerate(errors.tolist()):
        if detector.update(error):
            alarms.append(i)
            detector.reset()
    reach = n if within is None else within
    count = len(alarms) or len(drifts)
    even = [(k + 1) * n // (count + 1) for k in range(count)]
    mine = judge(alarms, drifts, reach)
    return Detection(mine.alarms, mine.delays, mine.drifts, judge(even, drifts, reach))
