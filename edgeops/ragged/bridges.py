# SPDX-License-Identifier: Apache-2.0
"""Zero-copy bridges to and from `torch.nested` (jagged layout)."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeops._common import describe, message
from edgeops.ragged.layout import RaggedLayout


def from_nested(nested: Tensor) -> tuple[Tensor, RaggedLayout]:
    """Values `[T, ...]` and layout of a jagged nested tensor; the values share its memory.

    Raises:
        TypeError: not a nested tensor of layout `torch.jagged`.
        ValueError: a nested tensor with holes.

    >>> nested = torch.nested.nested_tensor_from_jagged(torch.arange(3.0), torch.tensor([0, 1, 3]))
    >>> values, layout = from_nested(nested)
    >>> values, layout.lengths
    (tensor([0., 1., 2.]), (1, 2))
    """
    layout = RaggedLayout.from_nested(nested)
    return nested.values(), layout


def to_nested(values: Tensor, layout: RaggedLayout) -> Tensor:
    """A jagged nested tensor over packed values `[T, ...]`, sharing their memory.

    Raises:
        ValueError: T does not fit the layout.

    >>> to_nested(torch.zeros(3, 4), RaggedLayout.from_lengths([1, 2])).is_nested
    True
    """
    if values.ndim < 1 or values.shape[0] != layout.total:
        rule = f"values must have {layout.total} rows to fit the layout"
        raise ValueError(message("to_nested", rule, describe(values), "Pass the tensor packed with this layout."))
    nested: Tensor = torch.nested.nested_tensor_from_jagged(values, layout.offsets)
    return nested
