# SPDX-License-Identifier: Apache-2.0
"""Value classes: dtype, device and row shape of a cell's operands and results, interned to small integers.

All values of a class stand in one table of a session, so the class is what a signature needs to know of an operand.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class ValueClass(NamedTuple):
    """What all rows of a table share."""

    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def empty(self, rows: int) -> Tensor:
        """A table without content."""
        return torch.empty(rows, *self.shape, dtype=self.dtype, device=self.device)


_BY_CLASS: dict[ValueClass, int] = {}
_CLASSES: list[ValueClass] = []


def intern(dtype: torch.dtype, device: torch.device, shape: tuple[int, ...]) -> int:
    """The number of a class; new ones get the next one."""
    key = ValueClass(dtype, device, shape)
    number = _BY_CLASS.get(key)
    if number is None:
        number = _BY_CLASS[key] = len(_CLASSES)
        _CLASSES.append(key)
    return number


def value_class(number: int) -> ValueClass:
    """The class of a number that `intern` gave."""
    return _CLASSES[number]
