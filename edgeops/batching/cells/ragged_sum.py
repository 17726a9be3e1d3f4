# SPDX-License-Identifier: Apache-2.0
"""Sums over lists of any length as one kind of call: an arity more does not make a batch more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops._common.errors import message
from edgeops.batching._classes import value_class
from edgeops.batching._program import Program
from edgeops.batching._runtime import runtime
from edgeops.batching.cell import LIST, Body, Ragged


class RaggedSum:
    """`RaggedSum()(hs, cs, ...)`: the sum of every list of values, which may have any length. ED-Batch spec, section 4.

    A list operand makes calls of one kind out of sums of two, three or ten values, so they run in one batch.

    >>> from edgeops import batching
    >>> total, double = RaggedSum(), batching.cell(lambda x: 2 * x)
    >>> with batching.session() as s:
    ...     a, b = double(torch.ones(2)), double(torch.ones(2))
    ...     one, two = total([a]), total([a, b])
    >>> s.stack([one, two])
    tensor([[2., 2.],
            [4., 4.]])
    """

    def __init__(self) -> None:
        self._cell = runtime().Cell(_Sum())

    def __call__(self, *lists: Sequence[Any]) -> Any:
        """One value a list, in a session; outside of one the sums of lists of tensors."""
        return self._cell(*lists)


class _Sum(Body):
    name = "RaggedSum"

    def __init__(self) -> None:
        self._programs: dict[int, Program] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_programs": {}}

    def parameters(self) -> list[Tensor]:
        return []

    def run(self, *lists: Ragged) -> Any:
        sums = []
        for values, offsets in lists:
            which = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=values.device), offsets.diff())
            sums.append(values.new_zeros(len(offsets) - 1, *values.shape[1:]).index_add(0, which, values))
        return tuple(sums)

    def infer(self, operands: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        for slot, (kind, number) in enumerate(operands):
            if kind != LIST:
                rule, advice = "operands must be lists of values", "Put a single value into a list."
                raise TypeError(message(f"batching cell {self.name}", rule, f"something else at {slot}", advice))
            if not value_class(number).dtype.is_floating_point:
                rule, advice = "values must be floating point", "Cast them in the cell that makes them."
                raise TypeError(message(f"batching cell {self.name}", rule, str(value_class(number).dtype), advice))
        return tuple(number for _, number in operands)

    def program(self, variant: int, operands: Sequence[tuple[int, int]]) -> Program:
        found = self._programs.get(variant)
        if found is None:
            of = value_class(operands[0][1])
            found = self._programs[variant] = Program(None, of.dtype, of.device)
            for slot in range(len(operands)):
                found.sum(found.result(slot), slot)
        return found
