# SPDX-License-Identifier: Apache-2.0
"""The readable twins of the triangular ops: dense storage, ragged loops. CoRa (MLSys 2022), section 5."""

from __future__ import annotations

import torch
from torch import Tensor


def triangle_reference(x: Tensor, upper: bool) -> Tensor:
    """x `[M, M]` with zeros outside its lower (or upper) triangle, diagonal included."""
    return torch.triu(x) if upper else torch.tril(x)


def trmm_fwd_reference(l: Tensor, b: Tensor, upper: bool, transpose: bool, alpha: float) -> Tensor:  # noqa: E741
    """`alpha * T b`, T the triangle of l `[M, M]` or its transpose, b `[M, N]`. Row i of T has its own part only."""
    dtype = torch.promote_types(l.dtype, torch.float32)
    triangle, wide = triangle_reference(l.to(dtype), upper), b.to(dtype)
    if transpose:
        triangle, upper = triangle.T, not upper
    out = torch.zeros(b.shape, dtype=dtype, device=b.device)
    for i in range(len(l)):
        part = slice(i, None) if upper else slice(i + 1)
        out[i] = alpha * (triangle[i, part] @ wide[part])
    return out.to(b.dtype)


def trmm_bwd_l_reference(grad_out: Tensor, b: Tensor, upper: bool, alpha: float) -> Tensor:
    """The triangle of `alpha * grad_out b^T` `[M, M]`, zeros outside; grad_out and b `[M, N]`."""
    dtype = torch.promote_types(b.dtype, torch.float32)
    return triangle_reference(alpha * (grad_out.to(dtype) @ b.to(dtype).T), upper).to(b.dtype)


def tri_binary_reference(l1: Tensor, l2: Tensor, multiply: bool, upper: bool) -> Tensor:
    """Sum or product of two triangles `[M, M]`, zeros outside."""
    x, y = (triangle_reference(x, upper) for x in (l1, l2))
    return triangle_reference(x * y if multiply else x + y, upper)
