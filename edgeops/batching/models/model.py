# SPDX-License-Identifier: Apache-2.0
"""What all models share: a program of one instance, and the sum of all losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from edgeops._common.errors import message
from edgeops.batching.programs import run, stack


class Model(nn.Module):
    """A model whose graph differs from instance to instance.

    A subclass writes `program`, which calls cells on one instance and may `await wait(value)`. Calling the model on a
    list of instances gives the sum of their losses: inside a `session` all programs run together, batched; outside
    they run one cell at a time. Results and gradients are the same to rounding.

    >>> import torch
    >>> from edgeops import batching
    >>> from edgeops.batching.models import TreeLSTM
    >>> trees = [(1, (0, 3), (2, 5)), (0, 7)]  # (label, word) or (label, left, right)
    >>> model = TreeLSTM(words=10, width=4)
    >>> with batching.session() as s:
    ...     loss = model(trees)
    >>> torch.allclose(loss, model(trees)), s.report.nodes, s.report.batches
    (True, 8, 3)
    """

    async def program(self, instance: Any) -> list[Any]:
        """The losses of one instance: values of shape `[]`."""
        raise NotImplementedError

    def forward(self, instances: Sequence[Any]) -> Tensor:
        """The sum of the losses of at least one instance.

        Raises:
            ValueError: no instance.
        """
        if not len(instances):
            rule = "needs at least one instance"
            raise ValueError(message(f"batching.models.{type(self).__name__}", rule, "none", "Check what was read."))
        losses = run(self.program(each) for each in instances)
        return stack([loss for each in losses for loss in each]).sum()


class Classify(nn.Module):
    """Cross entropy of rows and their classes."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, classes)

    def forward(self, h: Tensor, label: Tensor) -> Tensor:
        """`[m, width]` and int64 `[m]` to `[m]`."""
        return F.cross_entropy(self.out(h), label, reduction="none")
