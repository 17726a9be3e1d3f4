# SPDX-License-Identifier: Apache-2.0
"""Normalisation over the rows of each packed sequence. CoRa (MLSys 2022), section 3.1: reductions over a fused loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edgeops import _native

_fwd = _native.kernel("_ragged_instance_norm_fwd", "ragged_instance_norm")
_bwd = _native.kernel("_ragged_instance_norm_bwd", "ragged_instance_norm")


def _save(ctx: Any, args: Sequence[Any], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    x, offsets, weight, _, _ = args
    _, mean, rstd = outputs
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, offsets, mean, rstd, *([] if weight is None else [weight]))
    ctx.has_bias = args[3] is not None


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None
    x, offsets, mean, rstd, *weight = ctx.saved_tensors
    dx, dweight, dbias = _bwd(grad, x, offsets, mean, rstd, weight[0] if weight else None)
    return dx, None, dweight if weight else None, dbias if ctx.has_bias else None, None


_norm = _native.differentiable("ragged_instance_norm", _fwd, _save, _backward, (0, 2, 3))


def ragged_instance_norm(
    x: Tensor, offsets: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalise each column of each sequence over the rows of that sequence: `instance_norm` on packed rows.

    For normalisation over the columns of a row use `add_layer_norm` or `torch.nn.functional.layer_norm`, which need no
    offsets.

    Args:
        x: `[T, C]`, floating point.
        offsets: int32 or int64 `[N + 1]`: 0 first, never decreasing, T last.
        weight: `[C]`, same dtype, scale of the normalised columns, or `None` for 1.
        bias: `[C]`, same dtype, shift of the normalised columns, or `None` for 0.
        eps: added to the variance (of the population, as in torch), > 0 to keep constant columns finite.

    Returns:
        `[T, C]`. A sequence of one row becomes the bias. Half precision is computed in float32. Differentiable in x,
        weight and bias, once.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit.

    >>> import torch
    >>> ragged_instance_norm(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 2, 3])).T
    tensor([[-1.0000,  1.0000,  0.0000]])
    """
    if _native.autocast_dtype(x) is not None:
        weight = None if weight is None else weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
    result: Tensor = _norm(x, offsets, weight, bias, eps)[0]
    return result
