# SPDX-License-Identifier: Apache-2.0
"""What a monitor compares: errors of outputs, point by point, in a unit in which its thresholds mean something."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeops._common import describe, message

PerSample = Callable[[Tensor, Tensor], Tensor]
KINDS = ("error", "residual")


def aligned(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and labels in the forms that losses take.

    `[n, 1]` beside labels `[n]` becomes `[n]`, labels beside outputs of their shape get their dtype, class numbers
    become int64.
    """
    more = outputs.dim() - y.dim()
    if more == 1:
        if outputs.shape[-1] != 1:
            return outputs, y if y.dtype == torch.int64 or y.is_floating_point() else y.long()
        outputs = outputs.squeeze(-1)
    if outputs.shape == y.shape:
        y = y.to(outputs.dtype)
    elif not y.is_floating_point():
        y = y.long()
    return outputs, y


def per_sample(losses: Tensor, n: int, who: str) -> Tensor:
    """One number a point, `[n]`, of losses `[n, ...]`; or the error that they are not that."""
    if losses.dim() == 0 or len(losses) != n:
        rule = f"{who} must return one loss for each of the {n} points"
        raise ValueError(message("DriftSurf", rule, describe(losses), "Build the loss with reduction='none'."))
    return losses if losses.dim() == 1 else losses.flatten(1).mean(1)


def zero_one(outputs: Tensor, y: Tensor) -> Tensor:
    """Whether the class is wrong, `[n]`: of logits `[n, classes, ...]` the largest, of `[n]` and `[n, 1]` the sign.

    >>> zero_one(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1])).tolist()
    [0.0, 1.0]
    >>> zero_one(torch.tensor([2.0, -1.0]), torch.tensor([-1.0, -1.0])).tolist()
    [1.0, 0.0]
    """
    outputs, y = aligned(outputs, y)
    if outputs.shape == y.shape:
        wrong = (outputs >= 0) != (y > 0)
    elif outputs.dim() == y.dim() + 1:
        low, high = (int(edge) for edge in y.aminmax())
        if low < 0 or high >= outputs.shape[1]:
            rule = f"labels must lie in [0, {outputs.shape[1]}), the classes that the outputs have"
            advice = "Give the last layer room for classes that come later."
            raise ValueError(message("DriftSurf", rule, f"labels from {low} to {high}", advice))
        wrong = outputs.argmax(1) != y
    else:
        rule = "labels must have the outputs' shape, or that without the classes"
        advice = "Pass score= for another kind of output."
        raise ValueError(message("DriftSurf", rule, f"{describe(outputs)} and {describe(y)}", advice))
    return per_sample(wrong.to(torch.float64), len(y), "score")


def residual(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference, `[n]`, of outputs and targets `[n, ...]`."""
    outputs, y = aligned(outputs, y)
    if outputs.shape != y.shape:
        rule = "targets must have the outputs' shape"
        raise ValueError(message("DriftSurf", rule, f"{describe(outputs)} and {describe(y)}", "Reshape one."))
    return per_sample((outputs - y).abs().to(torch.float64), len(y), "score")


class Score:
    """What is compared, and its unit: 1 for errors and given scores, a running median for residuals (section 12.1).

    Args:
        given: "error", "residual", a function of outputs and labels that returns one number a point, or `None`: errors
            where labels are whole numbers or the first batch has none but -1, 0 and 1, else residuals.
        memory: batches whose median counts.
    """

    def __init__(self, given: str | PerSample | None, memory: int = 20) -> None:
        if isinstance(given, str) and given not in KINDS:
            rule, advice = "score must be 'error', 'residual' or a function", "Leave it out to choose by the labels."
            raise ValueError(message("DriftSurf", rule, repr(given), advice))
        self.function = None if given is None or isinstance(given, str) else given
        self.kind = given if isinstance(given, str) else None
        self.memory = memory
        self.medians: list[float] = []
        self.unit = 1.0

    def decide(self, y: Tensor) -> None:
        """Choose between errors and residuals by the first labels."""
        if self.function is None and self.kind is None:
            whole = not y.is_floating_point() or bool((y.abs() * (1 - y.abs()) == 0).all())
            self.kind = "error" if whole else "residual"

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """One number a point, `[n]`; NaN everywhere where an output is not finite."""
        if self.function is not None:
            losses = per_sample(self.function(*aligned(outputs, y)), len(y), "score")
        elif self.kind == "error":
            losses = zero_one(outputs, y)
        else:
            losses = residual(outputs, y)
            if not self.medians:
                self.learn(losses)
            losses = losses / self.unit
        return losses if bool(outputs.isfinite().all()) else torch.full_like(losses, torch.nan, dtype=torch.float64)

    def learn(self, residuals: Tensor) -> float:
        """Take residuals of the model, in absolute terms, into the unit; the unit before over the one now."""
        before, median = self.unit, float(residuals.median())
        median = median if median > 0 else float(residuals.mean())
        if 0 < median < float("inf"):
            self.medians = [*self.medians, median][-self.memory :]
            self.unit = statistics.median(self.medians)
        return before / self.unit

    def state_dict(self) -> dict[str, Any]:
        """Everything but a given function."""
        return {"kind": self.kind, "medians": list(self.medians), "unit": self.unit}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""
        self.kind, self.medians, self.unit = state["kind"], list(state["medians"]), state["unit"]
