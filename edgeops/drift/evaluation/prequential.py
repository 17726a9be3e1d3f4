# SPDX-License-Identifier: Apache-2.0
"""Prequential evaluation in batches: predict, then learn. Drift spec, section 8."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from edgeops.drift.streams import Delayed, DriftStream


class Learner(Protocol):
    """What the evaluator asks of a learner, in this order for each batch."""

    def begin(self) -> None: ...
    def predict(self, x: Tensor) -> Tensor: ...
    def observe(self, x: Tensor, y: Tensor) -> None: ...


def prequential(learner: Learner, stream: DriftStream, *, delay: int = 0) -> Tensor:
    """The share of wrong predictions in each batch, `[batches]`, each made before the batch's labels were shown.

    Args:
        learner: predicts and learns.
        stream: what from.
        delay: batches by which labels come later (`Delayed`); trials and switches are told by `Evaluation`.

    >>> from edgeops.drift.linear.logistic import Logistic
    >>> from edgeops.drift.streams import synthetic
    >>> stream = synthetic.sine1(seed=0).with_constant()
    >>> errors = prequential(Logistic(3, eta=0.2, mu=1e-3, seed=0), stream)
    >>> errors.shape, bool(errors[10:20].mean() < 0.3), bool(errors[20:22].mean() > 0.7)
    (torch.Size([100]), True, True)
    """
    errors = []
    for (x, late), (_, y) in zip(Delayed(stream, delay), stream, strict=True):
        learner.begin()
        errors.append(float((learner.predict(x) != y).double().mean()))
        if late is not None:
            learner.observe(*late)
    return torch.tensor(errors, dtype=torch.float64)


def no_change(stream: DriftStream) -> Tensor:
    """The error in each batch of repeating the label before, point by point: what any result must be seen beside.

    The very first point counts as wrong.

    >>> no_change(DriftStream("toy", torch.zeros(4, 1), torch.tensor([1.0, 1.0, -1.0, -1.0]), 2)).tolist()
    [0.5, 0.5]
    """
    n = stream.batches * stream.batch_size
    wrong = torch.ones(n, dtype=torch.float64)
    wrong[1:] = (stream.y[1:n] != stream.y[: n - 1]).double()
    return wrong.view(stream.batches, -1).mean(1)


def majority(stream: DriftStream) -> Tensor:
    """The error in each batch of predicting the label that was the more frequent one in all batches before.

    >>> majority(DriftStream("toy", torch.zeros(4, 1), torch.tensor([1.0, 1.0, -1.0, -1.0]), 2)).tolist()
    [0.0, 1.0]
    """
    y = stream.y[: stream.batches * stream.batch_size].view(stream.batches, -1)
    before = y.sum(1).cumsum(0) - y.sum(1)
    guess = torch.where(before >= 0, 1.0, -1.0).to(y.dtype)
    return (y != guess[:, None]).double().mean(1)
