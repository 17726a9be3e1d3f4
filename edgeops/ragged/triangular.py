# SPDX-License-Identifier: Apache-2.0
"""Triangular matrices as ragged tensors: dense storage, loops over the triangle only. CoRa (MLSys 2022), section 5.

Row i of a lower triangle has i + 1 elements. Elements outside the triangle are never used, whatever they hold, so that
a product does half the work of a dense one. All three ops are differentiable any number of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native

_trmm_fwd = _native.kernel("_trmm_fwd", "trmm")
_trmm_bwd_l = _native.kernel("_trmm_bwd_l", "trmm")
_tri_binary = _native.kernel("_tri_binary", "tradd")


def _product_save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    l, b, *options = args  # noqa: E741
    ctx.save_for_backward(l, b)
    ctx.options = options


def _product_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None
    l, b = ctx.saved_tensors  # noqa: E741
    upper, transpose, alpha = ctx.options
    # C = T B with T = L or L^T: dL = tri(dC B^T), or with rows and columns exchanged tri(B dC^T)
    pair = (b, grad) if transpose else (grad, b)
    dl = _outer(*pair, upper, alpha) if ctx.needs_input_grad[0] else None
    db = _product(l, grad, upper, not transpose, alpha) if ctx.needs_input_grad[1] else None
    return dl, db, None, None, None


def _outer_save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    grad_out, b, *options = args
    ctx.save_for_backward(grad_out, b)
    ctx.options = options


def _outer_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    grad_out, b = ctx.saved_tensors
    upper, alpha = ctx.options
    first = _product(grad, b, upper, False, alpha) if ctx.needs_input_grad[0] else None
    second = _product(grad, grad_out, upper, True, alpha) if ctx.needs_input_grad[1] else None
    return first, second, None, None


def _binary_save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    l1, l2, multiply, upper = args
    ctx.save_for_backward(*((l1, l2) if multiply else ()))
    ctx.upper = upper


def _binary_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    saved = ctx.saved_tensors
    if not saved:
        both = torch.triu(grad) if ctx.upper else torch.tril(grad)
        return both, both, None, None
    l1, l2 = saved
    first = _binary(grad, l2, True, ctx.upper) if ctx.needs_input_grad[0] else None
    second = _binary(grad, l1, True, ctx.upper) if ctx.needs_input_grad[1] else None
    return first, second, None, None


_product = _native.differentiable("trmm", _trmm_fwd, _product_save, _product_backward, (0, 1), twice=True)
_outer = _native.differentiable("trmm", _trmm_bwd_l, _outer_save, _outer_backward, (0, 1), twice=True)
_binary = _native.differentiable("tradd", _tri_binary, _binary_save, _binary_backward, (0, 1), twice=True)


def trmm(l: Tensor, b: Tensor, *, upper: bool = False, alpha: float = 1.0) -> Tensor:  # noqa: E741
    """Product of a triangular and a dense matrix, `alpha * tri(l) @ b`.

    Args:
        l: `[M, M]`, floating point, any strides. Only its triangle is used.
        b: `[M, N]`, same dtype, any strides.
        upper: take the upper triangle of l instead of the lower one; the diagonal is part of both.
        alpha: factor.

    Returns:
        `[M, N]`. Differentiable in l (its triangle; 0 outside) and b. Half precision is summed in float32; under
        autocast it runs in the autocast dtype, as `torch.mm` does. Row i depends on rows 0..i of b only (i..M-1 when
        `upper`): NaN elsewhere does not reach it.

    Raises:
        TypeError: dtypes differ or are not floating point.
        ValueError: l is not square, or b does not have M rows.

    >>> trmm(torch.tensor([[1.0, 9.0], [2.0, 3.0]]), torch.tensor([[1.0], [10.0]]))
    tensor([[ 1.],
            [32.]])
    """
    dtype = _native.autocast_dtype(l)
    if dtype is not None and l.dtype != torch.float64:
        l, b = l.to(dtype), b.to(dtype)  # noqa: E741
    result: Tensor = _product(l, b, upper, False, float(alpha))
    return result


def _elementwise(l1: Tensor, l2: Tensor, multiply: bool, upper: bool) -> Tensor:
    if _native.autocast_dtype(l1) is not None and l1.dtype != l2.dtype:
        wide = torch.promote_types(l1.dtype, l2.dtype)
        l1, l2 = l1.to(wide), l2.to(wide)
    result: Tensor = _binary(l1, l2, multiply, upper)
    return result


def tradd(l1: Tensor, l2: Tensor, *, upper: bool = False) -> Tensor:
    """Sum of two triangular matrices, `tri(l1 + l2)`.

    Args:
        l1: `[M, M]`, floating point. Only its triangle is used.
        l2: `[M, M]`, same dtype.
        upper: take upper triangles instead of lower ones; the diagonal is part of both.

    Returns:
        `[M, M]` with zeros outside the triangle. Differentiable in both. A result larger than 32 MiB is memory of its
        own whose empty half costs nothing; its storage cannot be resized in place.

    Raises:
        TypeError: dtypes differ or are not floating point.
        ValueError: not square, or of different sizes.

    >>> tradd(torch.ones(2, 2), torch.ones(2, 2))
    tensor([[2., 0.],
            [2., 2.]])
    """
    return _elementwise(l1, l2, False, upper)


def trmul(l1: Tensor, l2: Tensor, *, upper: bool = False) -> Tensor:
    """Element-wise product of two triangular matrices, `tri(l1 * l2)`.

    Args:
        l1: `[M, M]`, floating point. Only its triangle is used.
        l2: `[M, M]`, same dtype.
        upper: take upper triangles instead of lower ones; the diagonal is part of both.

    Returns:
        `[M, M]` with zeros outside the triangle. Differentiable in both. Memory as in `tradd`.

    Raises:
        TypeError: dtypes differ or are not floating point.
        ValueError: not square, or of different sizes.

    >>> trmul(torch.tensor([[2.0, 5.0], [3.0, 4.0]]), torch.tensor([[3.0, 5.0], [2.0, 2.0]]))
    tensor([[6., 0.],
            [6., 8.]])
    """
    return _elementwise(l1, l2, True, upper)
