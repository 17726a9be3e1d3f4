# SPDX-License-Identifier: Apache-2.0
"""The tables of a session: all values of a class as rows, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeops.batching._classes import value_class
from edgeops.batching._program import Packed, Program


class Tables:
    """Values and gradients by class."""

    def __init__(self) -> None:
        self.values: dict[int, Tensor] = {}
        self.grads: dict[int, Tensor] = {}
        self.packed: dict[tuple[int, bool], Packed] = {}  # weights by program and direction, for all flushes
        # gradients of parameters, summed over the flushes of one backward: by program and number of the need
        self.sums: dict[int, dict[int, Tensor]] = {}
        self._backward = -1  # the one that sums, gradients and marks belong to
        self._firsts: dict[int, list[tuple[int, bool]]] = {}  # by program: the parameters as its first flush had them
        self.used: list[int] = []
        self.batches = 0  # of all flushes
        self.views: dict[Any, tuple[int, Tensor, list[Tensor]]] = {}  # of runners: what they named, until the next move
        self.moves = 0  # how often a table was made or made larger
        # by batch: 1 when a gradient has come to one of its rows, 2 when its backward has run
        self.reached = np.zeros(0, np.uint8)

    def reserve(self, used: Sequence[int]) -> None:
        """Make room for so many rows of every class; what is there stays."""
        for number, rows in enumerate(used):
            before = self.used[number] if number < len(self.used) else 0
            if rows == before:
                continue
            table = self.values.get(number)
            self.moves += table is None or table.shape[0] < rows
            if table is None:
                self.values[number] = value_class(number).empty(rows)
            elif table.shape[0] < rows:
                larger = value_class(number).empty(max(rows, table.shape[0] * 3 // 2))
                larger[:before] = table[:before]
                self.values[number] = larger
        self.used = list(used)

    def claim(self, batches: int) -> int:
        """Number the batches of a flush that is differentiated. Returns the number of the first one."""
        begin = self.batches
        self.batches += batches
        if self.batches > len(self.reached):
            larger = np.zeros(max(self.batches, 2 * len(self.reached)), np.uint8)
            larger[: len(self.reached)] = self.reached
            self.reached = larger
        return begin

    def packed_of(self, program: Program, backward: bool) -> Packed:
        """Where a program's packed weights stand in this session."""
        key = program.serial, backward
        found = self.packed.get(key)
        if found is None:
            found = self.packed[key] = Packed(program, backward)
        return found

    def first(self, program: Program) -> bool | None:
        """Whether this flush, which is differentiated, is a program's first one; `None` where parameters differ since.

        Its backward is the last one and gives the sum of the gradients away: tokens tie every flush to the one before.
        """
        seen = [(id(p), p.requires_grad) for p in program.module._parameters.values() if p is not None]
        known = self._firsts.get(program.serial)
        if known is None:
            self._firsts[program.serial] = seen
            return True
        return False if seen == known else None

    def in_backward(self) -> None:
        """Forget what another backward has left: one that was asked for few gradients stops before the first flush."""
        now = torch._C._current_graph_task_id()
        if now == self._backward:
            return
        self._backward = now
        self.sums.clear()
        if self.reached.any():
            self.reached[:] = 0
            for table in self.grads.values():
                table.zero_()

    def grad(self, number: int) -> Tensor:
        """The gradient table of a class, zeros at first."""
        table = self.grads.get(number)
        if table is None or table.shape[0] < self.used[number]:
            larger = torch.zeros_like(self.values[number])
            if table is not None:
                larger[: table.shape[0]] = table
            table = self.grads[number] = larger
        return table
