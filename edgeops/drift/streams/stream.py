# SPDX-License-Identifier: Apache-2.0
"""A labelled stream in batches of equal size, with the places of its drifts where they are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeops._common import describe, message


@dataclass(frozen=True)
class DriftStream:
    """Points in order of time, cut into batches.

    Args:
        name: what tables call it.
        x: features `[n, d]`, floating.
        y: labels `[n]` of the same dtype, -1 or 1.
        batches: how many; each has `n // batches` points, and a tail that fills none is dropped.
        drifts: batch numbers at which the distribution changes, as far as known.

    >>> stream = DriftStream("toy", torch.zeros(7, 2), torch.ones(7), 3)
    >>> [x.shape[0] for x, y in stream], stream.batch_size
    ([2, 2, 2], 2)
    """

    name: str
    x: Tensor
    y: Tensor
    batches: int
    drifts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        who = "DriftStream"
        if self.x.dim() != 2 or self.y.shape != self.x.shape[:1] or self.y.dtype != self.x.dtype:
            rule = "x must have shape [n, d] and y shape [n], of one dtype"
            raise ValueError(message(who, rule, f"{describe(self.x)} and {describe(self.y)}", "Reshape or cast them."))
        if not bool((self.y.abs() == 1).all()):
            raise ValueError(message(who, "labels must be -1 or 1", "others", "For 0 and 1: 2 * y - 1."))
        if not 1 <= self.batches <= len(self.x):
            got = f"{self.batches} batches of {len(self.x)} points"
            raise ValueError(message(who, "each batch must have a point", got, "Ask for fewer batches."))
        if any(not 0 < t < self.batches for t in self.drifts):
            rule = f"drifts must be batches in (0, {self.batches})"
            raise ValueError(message(who, rule, str(self.drifts), "Batch 0 begins the stream."))

    @property
    def batch_size(self) -> int:
        """Points in a batch."""
        return len(self.x) // self.batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for t in range(self.batches):
            yield self.batch(t)

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """`x` and `y` of batch t."""
        part = slice(t * self.batch_size, (t + 1) * self.batch_size)
        return self.x[part], self.y[part]

    def standardised(self, batches: int = 1) -> DriftStream:
        """The same with every feature shifted and scaled by mean and deviation of the first batches.

        They stay what they are for the rest of the stream: a scaler that adapted would hide drift from whoever watches.
        A feature that is constant there is shifted alone.

        Raises:
            ValueError: not 1 to all of the batches.

        >>> stream = DriftStream("toy", torch.tensor([[1.0], [3.0], [7.0], [7.0]]), torch.ones(4), 2)
        >>> stream.standardised().x[:, 0].tolist()
        [-1.0, 1.0, 5.0, 5.0]
        """
        if not 1 <= batches <= self.batches:
            rule = f"batches must be in [1, {self.batches}]"
            raise ValueError(message("DriftStream.standardised", rule, str(batches), "1 is usual."))
        seen = self.x[: batches * self.batch_size]
        mean, deviation = seen.mean(0), seen.std(0, correction=0)
        return replace(self, x=(self.x - mean) / torch.where(deviation > 0, deviation, torch.ones_like(deviation)))

    def inverted(self, first: int, last: int) -> DriftStream:
        """The same with the labels of batches `[first, last)` turned round, and drifts there.

        Raises:
            ValueError: batches outside the stream.

        >>> stream = DriftStream("toy", torch.zeros(3, 1), torch.ones(3), 3)
        >>> stream.inverted(1, 2).y.tolist(), stream.inverted(1, 2).drifts
        ([1.0, -1.0, 1.0], (1, 2))
        """
        if not 0 <= first < last <= self.batches:
            rule = f"batches must be [first, last) within [0, {self.batches}]"
            raise ValueError(message("DriftStream.inverted", rule, f"[{first}, {last})", "The last one is left out."))
        y = self.y.clone()
        y[first * self.batch_size : last * self.batch_size] *= -1
        places = sorted({*self.drifts, first, last} - {0, self.batches})
        return replace(self, y=y, drifts=tuple(places))

    def with_constant(self) -> DriftStream:
        """The same with a last feature that is 1, for linear models without a bias of their own."""
        return replace(self, x=torch.cat([self.x, self.x.new_ones(len(self.x), 1)], dim=1))
