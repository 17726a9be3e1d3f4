# SPDX-License-Identifier: Apache-2.0
"""Matrix products of many sizes in one call. CoRa (MLSys 2022), section 5 (vgemm) and section 7 (its evaluation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops._common import describe, message

_vgemm_kernel = _native.kernel("_vgemm", "vgemm")
_packed_kernel = _native.kernel("_vgemm_packed", "vgemm_packed")
_grouped_kernel = _native.kernel("_grouped_mm", "grouped_mm")

# The gradients of a product are products: with C = op(A) op(B), stored A and B get
#   dA = dC op(B)^T   or, where A is stored transposed, op(B) dC^T
#   dB = op(A)^T dC   or, where B is stored transposed, dC^T op(A)
# so backward is the forward op with other flags, and every function here has derivatives of any order.


def _list_forward(trans_a: bool, trans_b: bool, *both: Tensor) -> tuple[Tensor, ...]:
    half = len(both) // 2
    return tuple(_vgemm_kernel(both[:half], both[half:], trans_a, trans_b))


def _list_save(ctx: Any, args: Sequence[Any], outputs: Any) -> None:
    ctx.save_for_backward(*args[2:])
    ctx.flags = args[:2]


def _list_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    trans_a, trans_b = ctx.flags
    saved, count = ctx.saved_tensors, len(grads)
    a, b = saved[:count], saved[count:]
    results: list[Tensor | None] = [None] * (2 + 2 * count)
    for first, other, flags, grad_first in (
        (2, b, (trans_b, True) if trans_a else (False, not trans_b), not trans_a),
        (2 + count, a, (True, trans_a) if trans_b else (not trans_a, False), trans_b),
    ):
        wanted = [g for g in range(count) if grads[g] is not None and ctx.needs_input_grad[first + g]]
        if wanted:
            lists = [[grads[g] for g in wanted], [other[g] for g in wanted]]
            left, right = lists if grad_first else lists[::-1]
            for g, gradient in zip(wanted, _lists(*flags, *left, *right)):
                results[first + g] = gradient
    return tuple(results)


_lists = _native.differentiable("vgemm", _list_forward, _list_save, _list_backward, None, twice=True)


def _packed_save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(*args[:3])
    ctx.flags = args[3:5]


def _packed_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    a, b, sizes = ctx.saved_tensors
    trans_a, trans_b = ctx.flags
    da = db = None
    if ctx.needs_input_grad[0]:
        if trans_a:
            da = _packed(b, grad, sizes[:, [2, 0, 1]], trans_b, True, a.shape[0])
        else:
            da = _packed(grad, b, sizes[:, [0, 2, 1]], False, not trans_b, a.shape[0])
    if ctx.needs_input_grad[1]:
        if trans_b:
            db = _packed(grad, a, sizes[:, [1, 2, 0]], True, trans_a, b.shape[0])
        else:
            db = _packed(a, grad, sizes[:, [2, 1, 0]], not trans_a, False, b.shape[0])
    return da, db, None, None, None, None


_packed = _native.differentiable("vgemm_packed", _packed_kernel, _packed_save, _packed_backward, (0, 1), twice=True)


def _grouped_save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(*(x for x in args if x is not None))


def _grouped_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    x, w, *rest = ctx.saved_tensors
    offs = rest[0] if rest else None
    if grad is None:
        return None, None, None
    dx = _grouped(grad, w.mT, offs) if ctx.needs_input_grad[0] else None
    dw = _grouped(x.mT, grad, offs) if ctx.needs_input_grad[1] else None
    return dx, dw, None


_grouped = _native.differentiable("grouped_mm", _grouped_kernel, _grouped_save, _grouped_backward, (0, 1), twice=True)


def _in_autocast_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    wanted = _native.autocast_dtype(tensors[0])
    if wanted is None:
        return tensors
    return tuple(x if x.dtype == torch.float64 or not x.is_floating_point() else x.to(wanted) for x in tensors)


def vgemm(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """Products of pairs of matrices of different sizes, `a[g] @ b[g]`, in one call.

    Args:
        a: G matrices `[m_g, k_g]`, float32, float64, float16 or bfloat16, one dtype for all; any strides: transposed
            and sliced views are read where they are. A size may be 0; where k_g is 0 the result is 0.
        b: G matrices `[k_g, n_g]` of the same dtype.

    Returns:
        G matrices `[m_g, n_g]`. Differentiable, any number of times. On a CPU the bits of a product depend on nothing
        but its operands. For many small products `vgemm_packed` saves the cost of handling each tensor.

    Raises:
        TypeError: not sequences of tensors, or mixed dtypes.
        ValueError: different numbers of matrices, or shapes that do not fit.

    >>> import torch
    >>> [c.tolist() for c in vgemm([torch.ones(1, 2), torch.ones(2, 1)], [torch.ones(2, 1), torch.ones(1, 2)])]
    [[[2.0]], [[1.0, 1.0], [1.0, 1.0]]]
    """
    for name, given in (("a", a), ("b", b)):
        if not isinstance(given, (list, tuple)):
            rule = f"{name} must be a list or tuple of matrices"
            raise TypeError(message("vgemm", rule, describe(given), "Use .unbind() for a batch of one size."))
        for g, x in enumerate(given):
            if not isinstance(x, Tensor):
                raise TypeError(message("vgemm", f"{name}[{g}] must be a tensor", describe(x), "Pass a matrix."))
    if len(a) != len(b):
        rule = "a and b must have the same number of matrices"
        raise ValueError(message("vgemm", rule, f"{len(a)} and {len(b)}", "Pair each matrix of a with one of b."))
    if not a:
        return []
    if _native.autocast_dtype(a[0]) is not None:
        a, b = _in_autocast_dtype(*a), _in_autocast_dtype(*b)
    return list(_lists(False, False, *a, *b))


def vgemm_packed(a: Tensor, b: Tensor, sizes: Tensor, total: int | None = None) -> Tensor:
    """`vgemm` on matrices that lie flattened one after another in three buffers: the fast form for small products.

    Args:
        a: flat `[sum of m_g k_g]`, float32, float64, float16 or bfloat16: G row-major matrices `[m_g, k_g]`.
        b: flat `[sum of k_g n_g]`, same dtype: G row-major matrices `[k_g, n_g]`.
        sizes: int64 `[G, 3]` on the CPU: m_g, n_g, k_g of each product, in the order of BLAS.
        total: number of elements of the result, the sum of m_g n_g; computed where left out. Under
            `torch.compile(fullgraph=True)` it must be given.

    Returns:
        Flat `[total]`: G row-major matrices `[m_g, n_g]`. Differentiable in a and b, any number of times.

    Raises:
        TypeError: dtypes differ, or sizes are not int64.
        ValueError: a, b or total do not fit the sizes, or a size is negative.

    >>> import torch
    >>> vgemm_packed(torch.ones(4), torch.ones(4), torch.tensor([[1, 1, 2], [2, 2, 1]]))
    tensor([2., 1., 1., 1., 1.])
    """
    if total is None:
        if not isinstance(sizes, Tensor) or sizes.dim() != 2 or sizes.shape[1] != 3:
            rule = "sizes must be an int64 tensor [G, 3], the m, n, k of each product"
            advice = "Build it with torch.tensor([(m, n, k), ...])."
            kind = ValueError if isinstance(sizes, Tensor) else TypeError
            raise kind(message("vgemm_packed", rule, describe(sizes), advice))
        total = int((sizes[:, 0] * sizes[:, 1]).sum())
    if _native.autocast_dtype(a) is not None:
        a, b = _in_autocast_dtype(a, b)
    result: Tensor = _packed(a, b, sizes, False, False, total)
    return result


def _add_bias(out: Tensor, bias: Tensor, offs: Tensor | None, groups: int) -> Tensor:
    """`bias` `[N]` or `[G, N]` to the rows of each group; rows behind the last group stay 0."""
    if bias.dim() not in (1, 2) or bias.shape[-1] != out.shape[-1] or (bias.dim() == 2 and bias.shape[0] != groups):
        rule = f"bias must have shape ({out.shape[-1]},) or ({groups}, {out.shape[-1]})"
        raise ValueError(message("grouped_mm", rule, describe(bias), "It needs one value per column of the result."))
    bias = bias.to(out.dtype)
    if out.dim() == 3 or offs is None:
        return out + (bias if bias.dim() == 1 else bias[:, None, :])
    rows = torch.arange(out.shape[0], device=out.device, dtype=offs.dtype)
    group = torch.searchsorted(offs, rows, right=True)  # the number of groups for rows behind the last
    wide = bias.expand(groups, -1) if bias.dim() == 1 else bias
    return out + torch.cat([wide, wide.new_zeros(1, wide.shape[1])]).index_select(0, group)


def grouped_mm(x: Tensor, w: Tensor, *, offs: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Products of groups that share sizes but one, as `torch.nn.functional.grouped_mm` (a mixture of experts).

    Args:
        x: `[T, K]`, G groups of rows; or `[G, M, K]`. float32, float64, float16 or bfloat16, any strides.
        w: `[G, K, N]`; or `[K, T]`, G groups of columns. Where both are 2-D they are `[M, T]` and `[T, N]`, and the
            groups lie along T. Where both are 3-D this is `torch.bmm`.
        offs: int32 or int64 `[G]`: the end of each group in T, never decreasing, at most T. Given where x or w is 2-D.
        bias: `[N]`, or `[G, N]` with one row for each group; not for groups of columns.

    Returns:
        `[T, N]` for groups of rows, `[M, T]` for groups of columns, `[G, M, N]` otherwise. What lies behind the last
        group is 0 (torch leaves it undefined). Differentiable, any number of times, expanded gradients included.

    Raises:
        TypeError: dtypes differ, or offs are not integers.
        ValueError: shapes or offs do not fit.

    >>> import torch
    >>> x, w = torch.ones(3, 2), torch.tensor([[[1.0], [1.0]], [[2.0], [2.0]]])
    >>> grouped_mm(x, w, offs=torch.tensor([1, 3], dtype=torch.int32))
    tensor([[2.],
            [4.],
            [4.]])
    """
    if _native.autocast_dtype(x) is not None:
        x, w = _in_autocast_dtype(x, w)
    if bias is not None and x.dim() == 3 and w.dim() == 2:
        rule = "bias needs groups with the same columns"
        raise ValueError(message("grouped_mm", rule, "groups of columns (w is 2-D)", "Add it to the result."))
    result: Tensor = _grouped(x, w, offs)
    if bias is None:
        return result
    groups = x.shape[0] if x.dim() == 3 else w.shape[0] if w.dim() == 3 else result.shape[0]
    return _add_bias(result, bias, offs, groups)
