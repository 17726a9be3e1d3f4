# SPDX-License-Identifier: Apache-2.0
"""`out = concat(tables[k][rows[k]]) @ weight.T + bias` in one launch, for one or two tables.

ED-Batch (ICML 2023) gathers before it multiplies; here the row numbers are read with the tile, as ACRoBat (MLSys 2024)
does through pointers. Sums are kept in float32, one table after the other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from edgeops.triton_kernels.ragged.gemm import GemmConfig
from edgeops.triton_kernels.ragged.launch import on_device

__all__ = ["rows_linear", "rows_linear_config"]


def rows_linear_config(dtype: torch.dtype, rows: int) -> GemmConfig:
    """Tiles for products with so many rows: batches of a dynamic graph are often a handful."""
    block_k = 32 if dtype == torch.float32 else 64
    if rows <= 16:
        return GemmConfig(16, 64, block_k, 4, 2)
    if rows <= 64 or dtype == torch.float32:
        return GemmConfig(64, 64, block_k, 4, 2)
    return GemmConfig(128, 128, block_k, 8, 3)


@triton.jit
def _add_operand(
    acc, table, ids, limit, stride, weight, stride_wn, stride_wk, m, n, k, rows, cols,
    HAS_IDS: tl.constexpr, WEIGHT_MAJOR: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc + table[ids[rows]] @ weight[cols].T; a row number outside the table reads as zeros."""
    if WEIGHT_MAJOR == 1:
        stride_wk = 1
    if WEIGHT_MAJOR == 2:
        stride_wn = 1
    in_rows = rows < m
    in_cols = cols < n
    if HAS_IDS:
        row = tl.load(ids + rows, mask=in_rows, other=0)
        in_rows = in_rows & (row >= 0) & (row < limit)
    else:
        row = rows
    left_rows = table + row[:, None].to(tl.int64) * stride
    right_cols = weight + cols[None, :].to(tl.int64) * stride_wn
    depth = tl.arange(0, BLOCK_K)
    for first in range(0, k, BLOCK_K):
        p = first + depth
        left = tl.load(
            left_rows + p[None, :], mask=in_rows[:, None] & (p[None, :] < k), other=0.0
        )  # [BLOCK_M, BLOCK_K]
        right = tl.load(
            right_cols + p[:, None].to(tl.int64) * stride_wk, mask=(p[:, None] < k) & in_cols[None, :], other=0.0
        )  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["m", "limit1", "limit2"])
def _rows_linear_kernel(
    table1, ids1, limit1, stride1, k1, table2, ids2, limit2, stride2, k2,
    weight, stride_wn, stride_wk, bias, out, stride_o, m, n,
    HAS_IDS1: tl.constexpr, HAS_SECOND: tl.constexpr, HAS_IDS2: tl.constexpr, HAS_BIAS: tl.constexpr,
    WEIGHT_MAJOR: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the result; tiles of the same columns follow each other, so that their weight stays in the cache."""
    high = tl.cdiv(m, BLOCK_M)
    tile = tl.program_id(0)
    rows = tile % high * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile // high * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc = _add_operand(
        acc, table1, ids1, limit1, stride1, weight, stride_wn, stride_wk, m, n, k1, rows, cols,
        HAS_IDS1, WEIGHT_MAJOR, PRECISION, BLOCK_K,
    )  # fmt: skip
    if HAS_SECOND:
        if WEIGHT_MAJOR == 1:
            behind = weight + k1
        else:
            behind = weight + k1.to(tl.int64) * stride_wk
        acc = _add_operand(
            acc, table2, ids2, limit2, stride2, behind, stride_wn, stride_wk, m, n, k2, rows, cols,
            HAS_IDS2, WEIGHT_MAJOR, PRECISION, BLOCK_K,
        )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias + cols, mask=cols < n, other=0.0).to(tl.float32)[None, :]
    place = out + rows[:, None].to(tl.int64) * stride_o + cols[None, :]
    tl.store(place, acc.to(out.dtype.element_ty), mask=(rows < m)[:, None] & (cols < n)[None, :])


def rows_linear(
    tables: list[torch.Tensor],
    rows: list[torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    precision: str = "ieee",
) -> None:
    """Write the product into `out`.

    Args:
        tables: one or two, `[R, K]` with dense rows; float32, float16 or bfloat16.
        rows: int32 `[m]` for each, or empty for all rows in order; numbers outside a table read as zeros.
        weight: `[N, sum of K]`, any strides.
        bias: dense `[N]` or `None`.
        out: `[m, N]` with dense rows.
        precision: of float32 products, "ieee" or "tf32".
    """
    m, n = out.shape
    if m == 0 or n == 0:
        return
    config = rows_linear_config(out.dtype, m)
    two = len(tables) == 2
    first, second = tables[0], tables[-1]
    ids = [each if each.numel() else None for each in rows]
    major = 1 if weight.stride(1) == 1 else 2 if weight.stride(0) == 1 else 0
    grid = (triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n),)
    with on_device(out):
        _rows_linear_kernel[grid](
            first, ids[0], first.shape[0], first.stride(0), first.shape[1],
            second if two else None, ids[-1] if two else None, second.shape[0], second.stride(0), second.shape[1],
            weight, weight.stride(0), weight.stride(1), bias, out, out.stride(0), m, n,
            HAS_IDS1=ids[0] is not None, HAS_SECOND=two, HAS_IDS2=two and ids[-1] is not None,
            HAS_BIAS=bias is not None, WEIGHT_MAJOR=major, PRECISION=precision,
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
