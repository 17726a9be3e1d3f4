# SPDX-License-Identifier: Apache-2.0
"""The loss of decisions with known scores as a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeops._common.errors import message
from edgeops.batching._classes import intern, value_class
from edgeops.batching._program import Program
from edgeops.batching._runtime import runtime
from edgeops.batching.cell import LIST, NUMBER, Body


class DecisionLoss:
    """`DecisionLoss()(scores, taken, ...) -> []`: `-log` of the probability of decisions.

    `scores` is a row of logits, `taken` one integer a logit: 1 where the decision was taken, 0 where it was not. The
    sum of `F.binary_cross_entropy_with_logits` over the row.

    Raises:
        ValueError: when the session runs, an integer other than 0 or 1.

    >>> from edgeops import batching
    >>> loss, double = DecisionLoss(), batching.cell(lambda x: 2 * x)
    >>> with batching.session() as s:
    ...     total = loss(double(torch.tensor([0.0, 1.0])), 1, 0)
    >>> total.tensor()
    tensor(2.8201)
    """

    def __init__(self) -> None:
        self._cell = runtime().Cell(_Loss())

    def __call__(self, scores: Any, *taken: int) -> Any:
        """A value in a session, a tensor outside of one."""
        return self._cell(scores, *taken)


class _Loss(Body):
    name = "DecisionLoss"

    def __init__(self) -> None:
        self._programs: dict[int, Program] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_programs": {}}

    def parameters(self) -> list[Tensor]:
        return []

    def run(self, scores: Tensor, *taken: Tensor) -> Tensor:
        wanted = torch.stack(taken, 1).to(scores)
        return F.binary_cross_entropy_with_logits(scores, wanted, reduction="none").sum(1)

    def infer(self, operands: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        who = f"batching cell {self.name}"
        kind, number = operands[0] if operands else (NUMBER, -1)
        if kind in (NUMBER, LIST) or any(k != NUMBER for k, _ in operands[1:]):
            rule, advice = "takes a row of scores, and an integer for each", "Call it as loss(scores, 1, 0)."
            raise TypeError(message(who, rule, f"{len(operands)} operands", advice))
        of = value_class(number)
        if not of.dtype.is_floating_point:
            rule = "scores must be floating point"
            raise TypeError(message(who, rule, str(of.dtype), "Cast them in the cell that makes them."))
        if of.shape != (len(operands) - 1,):
            rule = f"scores must have shape ({len(operands) - 1},), one an integer"
            raise ValueError(message(who, rule, str(of.shape), "Give an integer for each score."))
        return (intern(of.dtype, of.device, ()),)

    def program(self, variant: int, operands: Sequence[tuple[int, int]]) -> Program:
        found = self._programs.get(variant)
        if found is None:
            of = value_class(operands[0][1])
            found = self._programs[variant] = Program(None, of.dtype, of.device)
            found.decide(0, of.shape[0], 0)
        return found
