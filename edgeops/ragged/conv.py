# SPDX-License-Identifier: Apache-2.0
"""Convolution along packed sequences: no tap crosses from one sequence into the next.

CoRa (MLSys 2022), section 3.1: the loop over sequences and their rows is fused, so that rows of several sequences share
a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops._common import describe, message

_WHO = "ragged_conv1d"
_fwd = _native.kernel("_ragged_conv1d_fwd", _WHO)
_bwd_weight = _native.kernel("_ragged_conv1d_bwd_weight", _WHO)


def _turned(weight: Tensor, groups: int) -> Tensor:
    """The weight of the convolution that carries gradients back: input and output exchanged, taps reversed."""
    out_width, width, taps = weight.shape
    blocks = weight.reshape(groups, out_width // groups, width, taps)
    return blocks.transpose(1, 2).flip(-1).reshape(groups * width, out_width // groups, taps)


def _moved(offsets: Tensor, grown: int) -> Tensor:
    """Offsets of the result, whose every sequence has `grown` more rows."""
    if isinstance(grown, int) and grown == 0:
        return offsets
    return offsets + grown * torch.arange(offsets.shape[0], device=offsets.device, dtype=offsets.dtype)


def _back(grad: Tensor, offsets: Tensor, weight: Tensor, options: Sequence[int]) -> Tensor:
    """The gradient in x: a convolution of the gradient in the result."""
    left, right, dilation, groups = options
    reach = dilation * (weight.shape[2] - 1)
    moved = _moved(offsets, left + right - reach)
    result: Tensor = _conv(grad, moved, _turned(weight, groups), None, reach - left, reach - right, dilation, groups)
    return result


def _save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    x, offsets, weight, _, *options = args
    ctx.save_for_backward(x, offsets, weight)
    ctx.options = options


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    x, offsets, weight = ctx.saved_tensors
    dx = _back(grad, offsets, weight, ctx.options) if ctx.needs_input_grad[0] else None
    dw = _weight(grad, x, offsets, weight.shape[2], *ctx.options) if ctx.needs_input_grad[2] else None
    db = grad.sum(0) if ctx.needs_input_grad[3] else None
    return dx, None, dw, db, None, None, None, None


def _weight_save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    grad, x, offsets, _, *options = args
    ctx.save_for_backward(grad, x, offsets)
    ctx.options = options


def _weight_backward(ctx: Any, seed: Tensor | None) -> tuple[Tensor | None, ...]:
    if seed is None:
        return (None,) * 8
    grad, x, offsets = ctx.saved_tensors
    dgrad = _conv(x, offsets, seed, None, *ctx.options) if ctx.needs_input_grad[0] else None
    dx = _back(grad, offsets, seed, ctx.options) if ctx.needs_input_grad[1] else None
    return dgrad, dx, None, None, None, None, None, None


_conv = _native.differentiable(_WHO, _fwd, _save, _backward, (0, 2, 3), twice=True)
_weight = _native.differentiable(_WHO, _bwd_weight, _weight_save, _weight_backward, (0, 1), twice=True)


def ragged_conv1d_op(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pad_left: int = 0,
    pad_right: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.ops.edgeops.ragged_conv1d`: as `ragged_conv1d`, with the padding in rows."""
    dtype = _native.autocast_dtype(x)
    if dtype is not None and x.dtype != torch.float64:
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    result: Tensor = _conv(x, offsets, weight, bias, pad_left, pad_right, dilation, groups)
    return result


def _sides(padding: str | int | tuple[int, int], reach: int) -> tuple[int, int]:
    if padding == "same":
        return reach // 2, reach - reach // 2
    if padding == "valid":
        return 0, 0
    sides = (padding, padding) if isinstance(padding, int) else padding
    pair = isinstance(sides, (tuple, list)) and len(sides) == 2 and all(isinstance(n, int) for n in sides)
    if not pair or sides[0] < 0 or sides[1] < 0:  # type: ignore[operator]
        rule = "padding must be 'same', 'valid', a number of rows or a pair of numbers, not negative"
        raise ValueError(message(_WHO, rule, repr(padding), "For a causal layer pass (dilation * (K - 1), 0)."))
    return sides[0], sides[1]  # type: ignore[return-value]


def ragged_conv1d(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    padding: str | int | tuple[int, int] = "same",
    dilation: int = 1,
    groups: int = 1,
    stride: int = 1,
) -> Tensor:
    """Convolve each sequence of a packed batch alone, as `torch.nn.functional.conv1d` would between zeros.

    Args:
        x: `[T, C_in]`, floating point.
        offsets: int32 or int64 `[N + 1]`: 0 first, never decreasing, T last.
        weight: `[C_out, C_in / groups, K]`, same dtype: that of a `torch.nn.Conv1d`.
        bias: `[C_out]` or `None`.
        padding: "same" keeps the lengths (an odd row goes to the right end, as in torch), "valid" adds none; a number
            of rows for both ends of every sequence, or (left, right): (dilation * (K - 1), 0) is a causal layer.
        dilation: rows between taps.
        groups: blocks of channels that do not mix.
        stride: 1; others are not implemented.

    Returns:
        `[T + N * g, C_out]`: every sequence has `g = left + right - dilation * (K - 1)` rows more (0 with "same"), so
        that its offsets are `offsets + g * torch.arange(N + 1)`. Differentiable any number of times. Half precision is
        summed in float32; under autocast it runs in the autocast dtype.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or a sequence is shorter than the kernel.
        NotImplementedError: a stride other than 1.

    >>> x, offsets = torch.tensor([[1.0], [2.0], [10.0]]), torch.tensor([0, 2, 3])
    >>> ragged_conv1d(x, offsets, torch.ones(1, 1, 3)).T
    tensor([[ 3.,  3., 10.]])
    """
    if stride != 1:
        raise NotImplementedError(message(_WHO, "takes stride 1 only", f"stride {stride}", "Select rows afterwards."))
    if not isinstance(weight, Tensor) or weight.dim() != 3:
        rule = "weight must have shape [C_out, C_in per group, K]"
        raise ValueError(message(_WHO, rule, describe(weight), "As in torch.nn.functional.conv1d."))
    left, right = _sides(padding, dilation * (weight.shape[2] - 1))
    return ragged_conv1d_op(x, offsets, weight, bias, pad_left=left, pad_right=right, dilation=dilation, groups=groups)
