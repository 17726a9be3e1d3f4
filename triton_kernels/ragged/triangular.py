# SPDX-License-Identifier: Apache-2.0
"""Products and element-wise ops on triangles of dense matrices. CoRa (MLSys 2022), section 5: ragged loops."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import on_device, traffic

__all__ = ["tri_binary", "trmm_bwd_l", "trmm_fwd"]


@triton.jit(launch_metadata=traffic("trmm_fwd", "a", "b", "c"))
def _trmm_fwd_kernel(
    a,
    b,
    c,
    stride_ai,
    stride_ak,
    stride_bk,
    stride_bj,
    stride_ci,
    size,
    width,
    alpha,
    REVERSED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """c = alpha * tri(a) b. REVERSED counts rows and columns of a from the end: an upper triangle as a lower one."""
    # longest reductions first
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    i = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = block.to(tl.int64) * BLOCK_M
    row = size - 1 - i if REVERSED else i
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in range(0, start, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        col = size - 1 - k if REVERSED else k
        left = tl.load(a + row[:, None] * stride_ai + col[None, :] * stride_ak, mask=(i[:, None] < size), other=0.0)
        right = tl.load(b + col[:, None] * stride_bk + j[None, :] * stride_bj, mask=(j[None, :] < width), other=0.0)
        acc = tl.dot(left, right, acc, input_precision="ieee")
    # the diagonal block one column at a time: a product of tiles would let b[k] meet rows above k (0 * NaN)
    for k in range(start, tl.minimum(start + BLOCK_M, size)):
        col = size - 1 - k if REVERSED else k
        inside = (i >= k) & (i < size)
        left = tl.load(a + row * stride_ai + col * stride_ak, mask=inside, other=0.0).to(tl.float32)
        right = tl.load(b + col * stride_bk + j * stride_bj, mask=j < width, other=0.0).to(tl.float32)
        acc += tl.where(inside[:, None], left[:, None] * right[None, :], 0.0)
    out = c + row[:, None] * stride_ci + j[None, :]
    tl.store(out, (acc * alpha).to(c.dtype.element_ty), mask=(i[:, None] < size) & (j[None, :] < width))


@triton.jit(launch_metadata=traffic("trmm_bwd_l", "g", "b", "out"))
def _trmm_bwd_l_kernel(
    g,
    b,
    out,
    stride_gi,
    stride_gn,
    stride_bj,
    stride_bn,
    stride_oi,
    size,
    width,
    alpha,
    UPPER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = tri(alpha * g b^T): tiles outside the triangle are zeros without any product."""
    row_block, col_block = tl.program_id(0), tl.program_id(1)
    i = row_block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = col_block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    steps = width
    if UPPER:
        steps = tl.where(col_block >= row_block, width, 0)
    else:
        steps = tl.where(col_block <= row_block, width, 0)
    for n0 in range(0, steps, BLOCK_K):
        n = n0 + tl.arange(0, BLOCK_K)
        there = n < width
        left = tl.load(
            g + i[:, None] * stride_gi + n[None, :] * stride_gn, mask=(i[:, None] < size) & there[None, :], other=0.0
        )
        right = tl.load(
            b + j[None, :] * stride_bj + n[:, None] * stride_bn, mask=(j[None, :] < size) & there[:, None], other=0.0
        )
        acc = tl.dot(left, right, acc, input_precision="ieee")
    inside = j[None, :] >= i[:, None] if UPPER else j[None, :] <= i[:, None]
    value = tl.where(inside, acc * alpha, 0.0).to(out.dtype.element_ty)
    tl.store(out + i[:, None] * stride_oi + j[None, :], value, mask=(i[:, None] < size) & (j[None, :] < size))


@triton.jit(launch_metadata=traffic("tri_binary", "out"))
def _tri_binary_kernel(
    x,
    y,
    out,
    stride_xi,
    stride_xj,
    stride_yi,
    stride_yj,
    stride_oi,
    size,
    MULTIPLY: tl.constexpr,
    UPPER: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Sum or product on the triangle, zeros outside, where nothing is read."""
    i = tl.program_id(0).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    j = tl.program_id(1).to(tl.int64) * BLOCK_J + tl.arange(0, BLOCK_J)
    there = (i[:, None] < size) & (j[None, :] < size)
    inside = there & (j[None, :] >= i[:, None] if UPPER else j[None, :] <= i[:, None])
    left = tl.load(x + i[:, None] * stride_xi + j[None, :] * stride_xj, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(y + i[:, None] * stride_yi + j[None, :] * stride_yj, mask=inside, other=0.0).to(tl.float32)
    value = left * right if MULTIPLY else left + right
    tl.store(out + i[:, None] * stride_oi + j[None, :], value.to(out.dtype.element_ty), mask=there)


def trmm_fwd(l: torch.Tensor, b: torch.Tensor, upper: bool, transpose: bool, alpha: float) -> torch.Tensor:  # noqa: E741
    """`alpha * tri(l) b`, or with the transpose of the triangle.

    Args:
        l: `[M, M]` float32, float16 or bfloat16, any strides; only its triangle is read.
        b: `[M, N]` in the dtype of l, any strides.
        upper: the triangle of l.
        transpose: multiply by its transpose.
        alpha: factor.

    Returns:
        `[M, N]` in the dtype of b, summed in float32.
    """
    size, width = b.shape
    out = b.new_empty(size, width)
    if out.numel() == 0:
        return out
    row, col = (l.stride(1), l.stride(0)) if transpose else l.stride()
    block_n = 64 if width > 32 else 32
    with on_device(b):
        _trmm_fwd_kernel[(triton.cdiv(size, 64), triton.cdiv(width, block_n))](
            l, b, out, row, col, b.stride(0), b.stride(1), out.stride(0), size, width, alpha,
            REVERSED=upper != transpose, BLOCK_M=64, BLOCK_N=block_n, BLOCK_K=32, num_warps=4,
        )  # fmt: skip
    return out


def trmm_bwd_l(grad_out: torch.Tensor, b: torch.Tensor, upper: bool, alpha: float) -> torch.Tensor:
    """The triangle of `alpha * grad_out b^T`, zeros outside: `[M, M]` of grad_out and b `[M, N]`, any strides."""
    size, width = b.shape
    out = b.new_empty(size, size)
    if size == 0:
        return out
    tiles = triton.cdiv(size, 64)
    with on_device(b):
        _trmm_bwd_l_kernel[(tiles, tiles)](
            grad_out, b, out, grad_out.stride(0), grad_out.stride(1), b.stride(0), b.stride(1), out.stride(0),
            size, width, alpha, UPPER=upper, BLOCK_M=64, BLOCK_K=32, num_warps=4,
        )  # fmt: skip
    return out


def tri_binary(l1: torch.Tensor, l2: torch.Tensor, multiply: bool, upper: bool) -> torch.Tensor:
    """Sum or product of the triangles of l1 and l2 `[M, M]`, any strides, computed in float32; zeros outside."""
    size = l1.shape[0]
    out = l1.new_empty(size, size)
    if size == 0:
        return out
    with on_device(l1):
        _tri_binary_kernel[(triton.cdiv(size, 8), triton.cdiv(size, 128))](
            l1, l2, out, l1.stride(0), l1.stride(1), l2.stride(0), l2.stride(1), out.stride(0), size,
            MULTIPLY=multiply, UPPER=upper, BLOCK_I=8, BLOCK_J=128, num_warps=4,
        )  # fmt: skip
    return out
