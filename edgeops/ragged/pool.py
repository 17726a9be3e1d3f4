# SPDX-License-Identifier: Apache-2.0
"""Pooling of packed sequences, one row for each. CoRa (MLSys 2022), section 3.1: reductions over a fused loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edgeops import _native
from edgeops._common import message
from edgeops.ragged._reference import POOL_MODES

_fwd = _native.kernel("_ragged_pool_fwd", "ragged_pool")
_bwd = _native.kernel("_ragged_pool_bwd", "ragged_pool")


def _save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    x, offsets, mode = args
    ctx.save_for_backward(x, output, offsets)
    ctx.mode = mode


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    x, out, offsets = ctx.saved_tensors
    if grad is None:
        return None, None, None
    return _bwd(grad, x, out, offsets, ctx.mode), None, None


_pool = _native.differentiable("ragged_pool", _fwd, _save, _backward)


def ragged_pool(x: Tensor, offsets: Tensor, reduction: str = "mean") -> Tensor:
    """Reduce each sequence of a packed batch to one row.

    Args:
        x: `[T, ...]`, floating point.
        offsets: int32 or int64 `[N + 1]`: 0 first, never decreasing, T last.
        reduction: "mean", "sum", "max", "min" or "logsumexp" over the rows of a sequence. Rows that tie for the
            maximum or minimum share its gradient evenly, as those of `torch.amax` do.

    Returns:
        `[N, ...]`; 0 for an empty sequence, -inf with "logsumexp". Differentiable in x, once.

    Raises:
        ValueError: unknown reduction, or offsets that do not fit x.

    >>> import torch
    >>> ragged_pool(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 2, 3]))
    tensor([[2.],
            [5.]])
    """
    if reduction not in POOL_MODES:
        rule = f"reduction must be one of {', '.join(POOL_MODES)}"
        raise ValueError(message("ragged_pool", rule, repr(reduction), "Choose one of these."))
    mode = POOL_MODES.index(reduction)
    if not isinstance(x, Tensor) or x.dim() in (0, 2):  # the kernel refuses what is not [T, C]
        result: Tensor = _pool(x, offsets, mode)
        return result
    rows: Tensor = _pool(x[:, None] if x.dim() == 1 else x.flatten(1), offsets, mode)
    return rows.view(rows.shape[0], *x.shape[1:])
