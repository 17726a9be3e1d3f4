# SPDX-License-Identifier: Apache-2.0
"""Products with sparse projectors, differentiable. LSP-Offload (AAAI 2025), sections 3 and 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edgeops import _native

_project = _native.kernel("_subspace_project", "subspace_project")
_expand = _native.kernel("_subspace_expand", "subspace_expand")
_value_grad = _native.kernel("_subspace_value_grad", "subspace_project")


def _save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(*args)


def _project_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    x, index, value, _, _ = ctx.saved_tensors
    dx = _expand(grad, index, value) if ctx.needs_input_grad[0] else None
    dvalue = _value_grad(x, grad, index) if ctx.needs_input_grad[2] else None
    return dx, None, dvalue, None, None


def _expand_forward(y: Tensor, index: Tensor, value: Tensor, starts: Tensor, order: Tensor) -> Tensor:
    result: Tensor = _expand(y, index, value)
    return result


def _expand_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    y, index, value, starts, order = ctx.saved_tensors
    dy = _project(grad, index, value, starts, order) if ctx.needs_input_grad[0] else None
    dvalue = _value_grad(grad, y, index) if ctx.needs_input_grad[2] else None
    return dy, None, dvalue, None, None


_projected = _native.differentiable("subspace_project", _project, _save, _project_backward, (0, 2))
_expanded = _native.differentiable("subspace_expand", _expand_forward, _save, _expand_backward, (0, 2))


def subspace_project(x: Tensor, index: Tensor, value: Tensor, starts: Tensor, order: Tensor) -> Tensor:
    """`P^T x` for a sparse projector P `[m, d]` of r entries a row.

    Args:
        x: `[m, N]`, floating point; transposed views are read as they lie.
        index: int16 or int32 `[m, r]`, the columns of the entries, in [0, d).
        value: `[m, r]`, their values: float64 with a float64 x, else float32.
        starts: int32 `[d + 1]`, where each column's entries begin in `order`.
        order: int32, positions `i * r + k` of entries, column by column. `SparseProjector` makes all four.

    Returns:
        `[d, N]` in the dtype of x, half types accumulated in float32. Differentiable in x and value, once. The result
        does not depend on the number of threads.

    Raises:
        ValueError: shapes that do not fit, or an entry outside the matrix.
        TypeError: dtypes that do not fit.

    >>> import torch
    >>> from edgeops.offload import SparseProjector
    >>> p = SparseProjector.draw(6, 3, 2, generator=torch.Generator().manual_seed(0))
    >>> x = torch.ones(6, 4)
    >>> torch.allclose(subspace_project(x, *p.tensors()), p.dense().T @ x)
    True
    """
    result: Tensor = _projected(x, index, value, starts, order)
    return result


def subspace_expand(y: Tensor, index: Tensor, value: Tensor, starts: Tensor, order: Tensor) -> Tensor:
    """`P y` for a sparse projector P `[m, d]` of r entries a row.

    Args:
        y: `[d, N]`, floating point.
        index: int16 or int32 `[m, r]`, the columns of the entries, in [0, d).
        value: `[m, r]`, their values: float64 with a float64 y, else float32.
        starts: int32 `[d + 1]`, where each column's entries begin in `order`; read by the backward pass.
        order: int32, positions `i * r + k` of entries, column by column.

    Returns:
        `[m, N]` in the dtype of y, half types accumulated in float32. Differentiable in y and value, once.

    Raises:
        ValueError: shapes that do not fit, or an entry outside the matrix.
        TypeError: dtypes that do not fit.

    >>> import torch
    >>> from edgeops.offload import SparseProjector
    >>> p = SparseProjector.draw(6, 3, 2, generator=torch.Generator().manual_seed(0))
    >>> y = torch.ones(3, 4)
    >>> torch.allclose(subspace_expand(y, *p.tensors()), p.dense() @ y)
    True
    """
    result: Tensor = _expanded(y, index, value, starts, order)
    return result
