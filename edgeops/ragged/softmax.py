# SPDX-License-Identifier: Apache-2.0
"""Softmax over the rows of each packed sequence: attention pooling, pointer networks, edge softmax of a graph.

CoRa (MLSys 2022), section 5: softmax with a ragged inner loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edgeops import _native
from edgeops._common import describe, message

_fwd = _native.kernel("_ragged_softmax_fwd", "ragged_softmax")
_bwd = _native.kernel("_ragged_softmax_bwd", "ragged_softmax")


def _save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(output, args[1])
    ctx.log = args[2]


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    out, offsets = ctx.saved_tensors
    return _bwd(grad, out, offsets, ctx.log), None, None


_softmax = _native.differentiable("ragged_softmax", _fwd, _save, _backward)


def ragged_softmax(x: Tensor, offsets: Tensor, *, log: bool = False) -> Tensor:
    """Softmax over the rows of each sequence of a packed batch, each column for itself.

    Args:
        x: `[T, ...]`, floating point: scores of the rows, for example `[T]` or `[T, heads]`.
        offsets: int32 or int64 `[N + 1]`: 0 first, never decreasing, T last.
        log: the logarithm of the softmax instead.

    Returns:
        Like x: every column of a sequence sums to 1 over its rows (their exponentials do with `log`). As with
        `torch.softmax`, a column of nothing but -inf, or with NaN or +inf in it, becomes NaN, in its own sequence only.
        Half precision is computed in float32. Differentiable in x, once.

    Raises:
        TypeError: x is not floating point.
        ValueError: x has no dimension, or offsets do not fit it.

    >>> import torch
    >>> ragged_softmax(torch.tensor([0.0, 0.0, 5.0]), torch.tensor([0, 2, 3]))
    tensor([0.5000, 0.5000, 1.0000])
    """
    if not isinstance(x, Tensor):
        raise TypeError(message("ragged_softmax", "x must be a tensor", describe(x), "Pass it."))
    if x.dim() == 0:
        raise ValueError(message("ragged_softmax", "x must be [T, ...]", describe(x), "It needs a row per token."))
    if x.dim() == 2:
        result: Tensor = _softmax(x, offsets, log)
        return result
    columns = x[:, None] if x.dim() == 1 else x.flatten(1)
    flat: Tensor = _softmax(columns, offsets, log)
    return flat.view(x.shape)
