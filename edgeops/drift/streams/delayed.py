# SPDX-License-Identifier: Apache-2.0
"""Labels that arrive late. Drift spec, section 12.5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from edgeops._common import message
from edgeops.drift.streams.stream import DriftStream


@dataclass(frozen=True)
class Delayed:
    """A stream whose labels are shown some batches late: batch by batch its features, and what may be learned after.

    With a delay of `k`, the labels of batch `t - k` become known once batch `t` was predicted; so a prediction of
    batch `t` rests on labels up to batch `t - k - 1`. No delay is the usual protocol. The labels of the last batches
    are never shown.

    Args:
        stream: the stream.
        delay: batches, 0 or more.

    >>> import torch
    >>> stream = DriftStream("toy", torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(3), 3)
    >>> [(float(x), None if late is None else float(late[0])) for x, late in Delayed(stream, 1)]
    [(1.0, None), (2.0, 1.0), (3.0, 2.0)]
    """

    stream: DriftStream
    delay: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.delay, int) and self.delay >= 0):
            raise ValueError(
                message("Delayed", "delay must be a whole number of batches from 0", str(self.delay), "0 is none.")
            )

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor] | None]]:
        for t in range(len(self.stream)):
            yield self.stream.batch(t)[0], self.stream.batch(t - self.delay) if t >= self.delay else None
