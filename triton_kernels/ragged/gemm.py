# SPDX-License-Identifier: Apache-2.0
"""Products of many sizes in one launch: `c[g] = a[g] @ b[g]`, and groups of rows, columns or the inner dimension.

CoRa (MLSys 2022), section 5 (vgemm). Each program finds its product from the number of tiles before it, so the grid is
flat and nothing is read back from the GPU. Sums are kept in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .launch import on_device

__all__ = ["BATCH", "COLUMNS", "FIELDS", "INNER", "ROWS", "gemm_config", "grouped_mm", "majors", "vgemm"]

ROWS, COLUMNS, INNER, BATCH = 0, 1, 2, 3
FIELDS = 11  # of a row of the table: m, n, k, then offset, row stride, column stride of a and b, offset and stride of c


@dataclass(frozen=True)
class GemmConfig:
    """Tile sizes of a launch."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def gemm_config(dtype: torch.dtype, rows: int, cols: int) -> GemmConfig:
    """Tiles for products of about `rows` x `cols`."""
    if min(rows, cols) <= 32:
        return GemmConfig(32, 32, 32, 4, 2)
    if dtype == torch.float32:
        return GemmConfig(64, 64, 32, 4, 2)
    if min(rows, cols) <= 64:
        return GemmConfig(64, 64, 64, 4, 3)
    return GemmConfig(128, 128, 64, 8, 3)


def majors(row: int, col: int) -> int:
    """Which stride of a matrix is 1: 1 that of columns, 2 that of rows, 0 neither."""
    return 1 if col == 1 else 2 if row == 1 else 0


@triton.jit
def _product_tile(
    a, a_row, a_col, b, b_row, b_col, c, c_row, m, n, k, first_row, first_col,
    MAJOR_A: tl.constexpr, MAJOR_B: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of one product; a, b, c point at its first elements."""
    if MAJOR_A == 1:
        a_col = 1
    if MAJOR_A == 2:
        a_row = 1
    if MAJOR_B == 1:
        b_col = 1
    if MAJOR_B == 2:
        b_row = 1
    rows = first_row + tl.arange(0, BLOCK_M)
    cols = first_col + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    in_rows = rows < m
    in_cols = cols < n
    a_rows = a + rows[:, None].to(tl.int64) * a_row
    b_cols = b + cols[None, :].to(tl.int64) * b_col
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, k, BLOCK_K):
        p = first + depth
        left = tl.load(
            a_rows + p[None, :].to(tl.int64) * a_col, mask=in_rows[:, None] & (p[None, :] < k), other=0.0
        )  # [BLOCK_M, BLOCK_K]
        right = tl.load(
            b_cols + p[:, None].to(tl.int64) * b_row, mask=(p[:, None] < k) & in_cols[None, :], other=0.0
        )  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
    place = c + rows[:, None].to(tl.int64) * c_row + cols[None, :]
    tl.store(place, acc.to(c.dtype.element_ty), mask=in_rows[:, None] & in_cols[None, :])


@triton.jit(do_not_specialize=["count"])
def _vgemm_kernel(
    a, b, c, table, ends, count,
    MAJOR_A: tl.constexpr, MAJOR_B: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    STEPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Products described by a table; `ends[g]` tiles belong to the first g + 1 of them."""
    tile = tl.program_id(0).to(tl.int64)
    low = tl.zeros([], tl.int32)
    high = low + count
    for _ in range(STEPS):  # the first product with more tiles than `tile` up to its end
        middle = (low + high) // 2
        behind = tl.load(ends + middle, mask=middle < count, other=0) <= tile
        low = tl.where((low < high) & behind, middle + 1, low)
        high = tl.where((low < high) & ~behind, middle, high)
    group = table + low.to(tl.int64) * 11
    m = tl.load(group).to(tl.int32)
    n = tl.load(group + 1).to(tl.int32)
    k = tl.load(group + 2).to(tl.int32)
    a_row = tl.load(group + 4)
    a_col = tl.load(group + 5)
    b_row = tl.load(group + 7)
    b_col = tl.load(group + 8)
    a_first = tl.load(group + 3)
    b_first = tl.load(group + 6)
    if ALIGN > 1:  # every offset, stride and size along memory is a multiple of it
        n = tl.multiple_of(n, ALIGN)
        k = tl.multiple_of(k, ALIGN)
        m = tl.multiple_of(m, ALIGN)
        a_row = tl.multiple_of(a_row, ALIGN)
        a_col = tl.multiple_of(a_col, ALIGN)
        b_row = tl.multiple_of(b_row, ALIGN)
        b_col = tl.multiple_of(b_col, ALIGN)
        a_first = tl.multiple_of(a_first, ALIGN)
        b_first = tl.multiple_of(b_first, ALIGN)
    c_first = tl.load(group + 9)
    c_row = tl.load(group + 10)
    if ALIGN > 1:
        c_first = tl.multiple_of(c_first, ALIGN)
        c_row = tl.multiple_of(c_row, ALIGN)
    before = tl.load(ends + low - 1, mask=low > 0, other=0)
    wide = tl.cdiv(n, BLOCK_N)
    place = (tile - before).to(tl.int32)
    _product_tile(
        a + a_first, a_row, a_col, b + b_first, b_row, b_col, c + c_first, c_row, m, n, k,
        place // wide * BLOCK_M, place % wide * BLOCK_N,
        MAJOR_A, MAJOR_B, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def _grouped_mm_kernel(
    x, w, out, offs, count, m, n, k,
    stride_xg, stride_xm, stride_xk, stride_wg, stride_wk, stride_wn, stride_og, stride_om,
    FORM: tl.constexpr, MAJOR_X: tl.constexpr, MAJOR_W: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Groups of rows (0), columns (1), the inner dimension (2) or whole matrices (3).

    Rows or columns behind the last group are one more group, without an inner dimension: its result is 0.
    """
    tile = tl.program_id(0)
    first_m = 0
    first_n = 0
    first_k = 0
    if FORM == 0 or FORM == 1:
        length = m if FORM == 0 else n
        other = tl.cdiv(n, BLOCK_N) if FORM == 0 else tl.cdiv(m, BLOCK_M)
        g = tl.arange(0, BLOCK_G)
        starts = tl.load(offs + g - 1, mask=(g > 0) & (g <= count), other=0).to(tl.int32)
        ends = tl.load(offs + g, mask=g < count, other=0).to(tl.int32)
        starts = tl.minimum(tl.maximum(starts, 0), length)
        ends = tl.where(g < count, tl.minimum(tl.maximum(ends, 0), length), length)
        sizes = tl.where(g <= count, tl.maximum(ends - starts, 0), 0)
        tiles = (sizes + (BLOCK_M if FORM == 0 else BLOCK_N) - 1) // (BLOCK_M if FORM == 0 else BLOCK_N) * other
        total = tl.cumsum(tiles, 0)
        if tile >= tl.max(total, 0):
            return
        done = total <= tile
        group = tl.sum(done.to(tl.int32), 0)
        place = tile - tl.max(tl.where(done, total, 0), 0)
        first = tl.sum(tl.where(g == group, starts, 0), 0)
        size = tl.sum(tl.where(g == group, sizes, 0), 0)
        k = k * (group < count).to(tl.int32)  # a product keeps what is known of the divisors of k
        if FORM == 0:
            first_m = first
            m = size
        else:
            first_n = first
            n = size
    else:
        each = tl.cdiv(m, BLOCK_M) * tl.cdiv(n, BLOCK_N)
        group = tile // each
        place = tile % each
        if FORM == 2:
            start = tl.load(offs + group - 1, mask=group > 0, other=0).to(tl.int32)
            end = tl.load(offs + group).to(tl.int32)
            first_k = tl.minimum(tl.maximum(start, 0), k)
            k = tl.maximum(tl.minimum(tl.maximum(end, 0), k) - first_k, 0)
    wide = tl.cdiv(n, BLOCK_N)
    group = group.to(tl.int64)
    m0 = tl.full([], 0, tl.int64) + first_m
    n0 = tl.full([], 0, tl.int64) + first_n
    k0 = tl.full([], 0, tl.int64) + first_k
    left = x + group * stride_xg + m0 * stride_xm + k0 * stride_xk
    right = w + group * stride_wg + k0 * stride_wk + n0 * stride_wn
    if FORM == 0 or FORM == 1:  # nothing is read for the rest, whose number is beyond the matrices
        left = x + tl.where(group < count, group * stride_xg, 0) + m0 * stride_xm
        right = w + tl.where(group < count, group * stride_wg, 0) + n0 * stride_wn
    _product_tile(
        left, stride_xm, stride_xk, right, stride_wk, stride_wn,
        out + group * stride_og + m0 * stride_om + n0, stride_om, m, n, k,
        place // wide * BLOCK_M, place % wide * BLOCK_N,
        MAJOR_X, MAJOR_W, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip


def vgemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    table: torch.Tensor,
    *,
    major_a: int,
    major_b: int,
    align: int = 1,
    precision: str = "ieee",
) -> None:
    """Write every product of a table.

    Args:
        a, b, c: tensors of one dtype (float32, float16, bfloat16) whose first elements the table's offsets count from.
        table: int64 `[G, 11]` on the CPU: m, n, k, then offset, row and column stride of a and b in elements, offset
            and row stride of c, whose columns are dense.
        major_a, major_b: which stride is 1 in all products, see `majors`.
        align: a number of elements, 1 or 16 bytes' worth, that divides every offset and stride but those of 1, and
            every size.
        precision: of float32 products, "ieee" or "tf32".
    """
    count = table.shape[0]
    largest = table[:, :2].max(0).values.tolist() if count else [0, 0]
    config = gemm_config(c.dtype, *largest)
    tiles = -(-table[:, 0] // config.block_m) * -(-table[:, 1] // config.block_n)
    ends = tiles.cumsum(0)
    total = int(ends[-1]) if count else 0
    if total == 0:
        return
    both = torch.cat([table.flatten(), ends])
    if a.is_cuda:
        both = both.pin_memory().to(a.device, non_blocking=True)
    with on_device(a):
        _vgemm_kernel[(total,)](
            a, b, c, both, both[FIELDS * count :], count,
            MAJOR_A=major_a, MAJOR_B=major_b, ALIGN=align, PRECISION=precision, STEPS=count.bit_length(),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip


def grouped_mm(x: torch.Tensor, w: torch.Tensor, offs: torch.Tensor | None, precision: str = "ieee") -> torch.Tensor:
    """Products of groups, in the four forms of `torch.nn.functional.grouped_mm`.

    Args:
        x: `[T, K]`, `[G, M, K]` or `[M, T]`; float32, float16 or bfloat16, any strides.
        w: `[G, K, N]`, `[K, T]` or `[T, N]`, same dtype.
        offs: int32 or int64 `[G]` ends on the device of x, held to the range that exists; `None` where both are 3-D.
        precision: of float32 products, "ieee" or "tf32".

    Returns:
        `[T, N]`, `[M, T]` or `[G, M, N]`; 0 behind the last group.
    """
    flat_x, flat_w = x.dim() == 2, w.dim() == 2
    form = INNER if flat_x and flat_w else ROWS if flat_x else COLUMNS if flat_w else BATCH
    m, k, n = x.shape[-2], x.shape[-1], w.shape[-1]
    count = x.shape[0] if offs is None else offs.shape[0]
    out = x.new_empty((m, n) if form in (ROWS, COLUMNS) else (count, m, n))
    if out.numel() == 0:
        return out
    groups = max(count, 1)
    config = gemm_config(x.dtype, m // groups if form == ROWS else m, n // groups if form == COLUMNS else n)
    high, wide = triton.cdiv(m, config.block_m), triton.cdiv(n, config.block_n)
    if form == ROWS:
        grid = (high + count) * wide
    elif form == COLUMNS:
        grid = high * (wide + count)
    else:
        grid = count * high * wide
    with on_device(x):
        _grouped_mm_kernel[(grid,)](
            x, w, out, offs, count, m, n, k,
            0 if flat_x else x.stride(0), x.stride(-2), x.stride(-1),
            0 if flat_w else w.stride(0), w.stride(-2), w.stride(-1),
            out.stride(0) if out.dim() == 3 else 0, out.stride(-2),
            FORM=form, MAJOR_X=majors(x.stride(-2), x.stride(-1)), MAJOR_W=majors(w.stride(-2), w.stride(-1)),
            PRECISION=precision, BLOCK_G=triton.next_power_of_2(count + 1),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return out
