# SPDX-License-Identifier: Apache-2.0
"""Between padded `[B, L, ...]` and packed `[T, ...]`. CoRa (MLSys 2022), sections 2.2 and 3.1: fused ragged loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops._common import describe, message
from edgeops.ragged.layout import RaggedLayout

_pack_kernel = _native.kernel("_ragged_pack", "pack")
_unpack_kernel = _native.kernel("_ragged_unpack", "unpack")


def _pack_save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(args[1])
    ctx.length = args[0].shape[1]


def _pack_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    (offsets,) = ctx.saved_tensors
    return None if grad is None else _unpack(grad, offsets, ctx.length, 0.0), None, None


def _unpack_save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(args[1])
    ctx.total = args[0].shape[0]


def _unpack_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    (offsets,) = ctx.saved_tensors
    return None if grad is None else ragged_pack(grad, offsets, ctx.total), None, None, None


ragged_pack = _native.differentiable("pack", _pack_kernel, _pack_save, _pack_backward, twice=True)
_unpack = _native.differentiable("unpack", _unpack_kernel, _unpack_save, _unpack_backward, twice=True)


def _check_padding_value(values: Tensor, padding_value: float) -> None:
    if values.is_floating_point() or values.is_complex():
        return
    bounds = (0, 1) if values.dtype == torch.bool else (torch.iinfo(values.dtype).min, torch.iinfo(values.dtype).max)
    if padding_value != int(padding_value) or not bounds[0] <= padding_value <= bounds[1]:
        rule = f"padding_value must be a whole number from {bounds[0]} to {bounds[1]} for {values.dtype}"
        raise ValueError(message("unpack", rule, str(padding_value), "Convert the values to a dtype that holds it."))


def ragged_unpack(values: Tensor, offsets: Tensor, length: int, padding_value: float = 0.0) -> Tensor:
    """`torch.ops.edgeops.ragged_unpack`; use `unpack` with a layout."""
    if padding_value != 0:
        _check_padding_value(values, padding_value)
    result: Tensor = _unpack(values, offsets, length, padding_value)
    return result


def pack(padded: Tensor, layout: RaggedLayout) -> Tensor:
    """Take the tokens of a padded batch, dropping the padding.

    Args:
        padded: `[B, L, ...]`, any dtype. What stands in the padding is never read.
        layout: B sequences; made from a padding mask it may describe left padding and holes.

    Returns:
        `[T, ...]`, tokens in order. Differentiable; the gradient of the padding is 0.

    Raises:
        ValueError: B or L do not fit the layout.

    >>> import torch
    >>> layout = RaggedLayout.from_lengths([1, 2])
    >>> pack(torch.tensor([[1, 0], [2, 3]]), layout)
    tensor([1, 2, 3])
    """
    shape = padded.shape
    if len(shape) < 2 or shape[0] != layout.num_sequences or shape[1] < layout.max_len:
        rule = f"padded must have shape [{layout.num_sequences}, >={layout.max_len}, ...] to fit the layout"
        raise ValueError(message("pack", rule, describe(padded), "Build the layout from this batch's mask or lengths."))
    if layout.indices is not None:
        if shape[1] != layout.padded_len:
            rule = f"padded must have {layout.padded_len} columns, as the mask the layout was made from"
            raise ValueError(message("pack", rule, describe(padded), "Build the layout from this batch's mask."))
        return padded.flatten(0, 1).index_select(0, layout.indices)
    result: Tensor = ragged_pack(padded, layout.offsets, layout.total)
    return result


def unpack(values: Tensor, layout: RaggedLayout, *, padding_value: float = 0.0, length: int | None = None) -> Tensor:
    """Spread packed rows over a padded batch.

    Args:
        values: `[T, ...]`, any dtype.
        layout: N sequences with T rows in all.
        padding_value: written to all other places.
        length: number of columns L; `layout.padded_len` by default, at least `layout.max_len`.

    Returns:
        `[N, L, ...]`. Rows go where `pack` took them from. Differentiable.

    Raises:
        ValueError: T does not fit the layout, or `length` is too small.

    >>> import torch
    >>> layout = RaggedLayout.from_lengths([1, 2])
    >>> unpack(torch.tensor([1, 2, 3]), layout)
    tensor([[1, 0],
            [2, 3]])
    """
    if values.ndim < 1 or values.shape[0] != layout.total:
        rule = f"values must have {layout.total} rows to fit the layout"
        raise ValueError(message("unpack", rule, describe(values), "Pass the tensor that was packed with this layout."))
    columns = layout.padded_len if length is None else length
    if columns < layout.max_len or (layout.indices is not None and columns != layout.padded_len):
        rule = f"length must be {'' if layout.indices is not None else 'at least '}{layout.padded_len}"
        raise ValueError(message("unpack", rule, str(columns), "Leave length out to use the layout's own."))
    if layout.indices is not None:
        _check_padding_value(values, padding_value)
        flat = values.new_full((layout.num_sequences * columns, *values.shape[1:]), padding_value)
        return flat.index_copy(0, layout.indices, values).unflatten(0, (layout.num_sequences, columns))
    if padding_value != 0:
        _check_padding_value(values, padding_value)
    result: Tensor = _unpack(values, layout.offsets, columns, padding_value)
    return result
