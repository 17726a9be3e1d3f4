# SPDX-License-Identifier: Apache-2.0
"""The tables of a session: all values of a class as rows, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeops.batching._classes import value_class


class Tables:
    """Values and gradients by class."""

    def __init__(self) -> None:
        self.values: dict[int, Tensor] = {}
        self.grads: dict[int, Tensor] = {}
        self.used: list[int] = []
        self.makers: dict[int, Any] = {}  # which batch, counted over all flushes, makes a row
        self.reached = np.zeros(0, dtype=bool)  # by batch: whether a gradient has come to one of its rows

    def reserve(self, used: Sequence[int]) -> None:
        """Make room for so many rows of every class; what is there stays."""
        for number, rows in enumerate(used):
            before = self.used[number] if number < len(self.used) else 0
            if rows == before:
                continue
            table = self.values.get(number)
            if table is None:
                self.values[number] = value_class(number).empty(rows)
            elif table.shape[0] < rows:
                larger = value_class(number).empty(max(rows, table.shape[0] * 3 // 2))
                larger[:before] = table[:before]
                self.values[number] = larger
        self.used = list(used)

    def claim(self, batches: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> int:
        """Note which batch makes which rows. Returns the number of the first one."""
        begin = len(self.reached)
        self.reached = np.concatenate([self.reached, np.zeros(len(batches), dtype=bool)])
        for number, table in self.values.items():
            makers = np.full(table.shape[0], -1, dtype=np.int32)
            known = self.makers.get(number, makers[:0])
            makers[: len(known)] = known
            self.makers[number] = makers
        for i, (count, outs) in enumerate(batches):
            for number, first in outs:
                self.makers[number][first : first + count] = begin + i
        return begin

    def reach(self, number: int, rows: Any) -> None:
        """Gradients come to these rows (a slice or an array)."""
        makers = self.makers[number][rows]
        self.reached[makers[makers >= 0]] = True

    def grad(self, number: int) -> Tensor:
        """The gradient table of a class, zeros at first."""
        table = self.grads.get(number)
        if table is None or table.shape[0] < self.used[number]:
            larger = torch.zeros_like(self.values[number])
            if table is not None:
                larger[: table.shape[0]] = table
            table = self.grads[number] = larger
        return table
