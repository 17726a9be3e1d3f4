# SPDX-License-Identifier: Apache-2.0
"""Products with a sparse projector P `[m, d]` of r entries a row. LSP-Offload (AAAI 2025), sections 3 and 4.

Both directions gather whole rows and neither adds atomically, so results have the same bits in every run. Integers are
not read back: an entry outside its matrix counts as 0. A transposed operand is copied first, tile by tile: every row of
it is read r times after that, 16 bytes a thread.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from edgeops.triton_kernels.ragged.launch import on_device, traffic

__all__ = ["dense_rows", "subspace_expand", "subspace_project", "subspace_value_grad"]

TILE = 64  # of the transposing copy
BLOCK_E = 8  # entries of a column that are on their way at once
BLOCK_I = 8  # rows of an expansion


@triton.jit(launch_metadata=traffic("transpose", "x", "out"))
def _transpose_kernel(x, out, stride_x, stride_o, height, width, TILE: tl.constexpr):
    """out[i, j] = x[j, i], `[height, width]`: read along i, written along j."""
    high = tl.cdiv(height, TILE)
    i = tl.program_id(0) % high * TILE + tl.arange(0, TILE)
    j = tl.program_id(0) // high * TILE + tl.arange(0, TILE)
    mask = (i < height)[:, None] & (j < width)[None, :]
    tile = tl.load(x + j[None, :].to(tl.int64) * stride_x + i[:, None], mask=mask)
    tl.store(out + i[:, None].to(tl.int64) * stride_o + j[None, :], tile, mask=mask)


@triton.jit(launch_metadata=traffic("subspace_project", "x", "out"), do_not_specialize=["d", "total"])
def _subspace_project_kernel(
    x, value, starts, order, out, stride_x, stride_o, m, r, d, total, width,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out[c] = sum over the entries e of column c of value[e] * x[row of e], one column and BLOCK_N of its numbers."""
    column = tl.program_id(0) % d  # programs that run together share a slice of x, which stays in the cache
    cols = tl.program_id(0) // d * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = cols < width
    begin = tl.maximum(tl.load(starts + column), 0)
    end = tl.minimum(tl.load(starts + column + 1), total)
    acc = tl.zeros([BLOCK_E, BLOCK_N], tl.float32)
    for first in range(begin, end, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        place = tl.load(order + e, mask=e < end, other=-1)
        good = (place >= 0) & (place < m * r)
        scale = tl.load(value + place, mask=good, other=0.0)
        row = (place // r).to(tl.int64)
        rows = tl.load(x + row[:, None] * stride_x + cols[None, :], mask=good[:, None] & inside[None, :], other=0.0)
        acc += scale[:, None] * rows.to(tl.float32)  # [BLOCK_E, BLOCK_N]
    result = tl.sum(acc, 0).to(out.dtype.element_ty)
    tl.store(out + column.to(tl.int64) * stride_o + cols, result, mask=inside)


@triton.jit(launch_metadata=traffic("subspace_expand", "y", "out"), do_not_specialize=["d"])
def _subspace_expand_kernel(
    y, index, value, out, stride_y, stride_oi, stride_oj, m, r, d, width,
    TURNED: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out[i] = sum over k of value[i, k] * y[index[i, k]], BLOCK_I rows and BLOCK_N of their numbers."""
    if TURNED:
        stride_oi = 1
    else:
        stride_oj = 1
    high = tl.cdiv(m, BLOCK_I)
    rows = tl.program_id(0) % high * BLOCK_I + tl.arange(0, BLOCK_I)
    cols = tl.program_id(0) // high * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows, in_cols = rows < m, cols < width
    acc = tl.zeros([BLOCK_I, BLOCK_N], tl.float32)
    for k in range(r):
        entry = rows.to(tl.int64) * r + k
        column = tl.load(index + entry, mask=in_rows, other=0).to(tl.int32)
        good = in_rows & (column >= 0) & (column < d)
        scale = tl.load(value + entry, mask=good, other=0.0)
        from_y = y + column[:, None].to(tl.int64) * stride_y + cols[None, :]
        part = tl.load(from_y, mask=good[:, None] & in_cols[None, :], other=0.0)
        acc += scale[:, None] * part.to(tl.float32)  # [BLOCK_I, BLOCK_N]
    place = out + rows[:, None].to(tl.int64) * stride_oi + cols[None, :].to(tl.int64) * stride_oj
    tl.store(place, acc.to(out.dtype.element_ty), mask=in_rows[:, None] & in_cols[None, :])


@triton.jit(launch_metadata=traffic("subspace_value_grad", "x", "y", "out"), do_not_specialize=["d"])
def _subspace_value_grad_kernel(
    x, y, index, out, stride_x, stride_y, r, d, width, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr
):
    """out[i, k] = sum over n of x[i, n] * y[index[i, k], n], BLOCK_K entries of one row."""
    deep = tl.cdiv(r, BLOCK_K)
    row = (tl.program_id(0) // deep).to(tl.int64)
    k = tl.program_id(0) % deep * BLOCK_K + tl.arange(0, BLOCK_K)
    column = tl.load(index + row * r + k, mask=k < r, other=-1).to(tl.int32)
    good = (column >= 0) & (column < d)
    from_y = y + column.to(tl.int64) * stride_y
    acc = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)
    for first in range(0, width, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        left = tl.load(x + row * stride_x + n, mask=n < width, other=0.0).to(tl.float32)
        right = tl.load(from_y[:, None] + n[None, :], mask=good[:, None] & (n < width)[None, :], other=0.0)
        acc += left[None, :] * right.to(tl.float32)  # [BLOCK_K, BLOCK_N]
    # NaN in x must not reach an entry outside y through a product with 0
    result = tl.where(good, tl.sum(acc, 1), 0.0)
    tl.store(out + row * r + k, result.to(out.dtype.element_ty), mask=k < r)


def block_n(dtype: torch.dtype, width: int) -> int:
    """Numbers of a row that one warp takes, 16 bytes a thread; fewer for short rows."""
    return min(128 if dtype == torch.float32 else 256, triton.next_power_of_2(width))


def dense_rows(x: torch.Tensor) -> torch.Tensor:
    """`x` `[m, N]` with numbers of a row side by side: itself, or a copy, made by tiles of a transposed view."""
    height, width = x.shape
    if x.stride(1) == 1 or width <= 1:
        return x
    if x.stride(0) != 1 or x.numel() == 0:
        return x.contiguous()
    out = x.new_empty(height, width)
    with on_device(x):
        _transpose_kernel[(triton.cdiv(height, TILE) * triton.cdiv(width, TILE),)](
            x, out, x.stride(1), out.stride(0), height, width, TILE=TILE, num_warps=8 if x.element_size() > 2 else 4
        )
    return out


def subspace_project(x: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """`P^T x`.

    Args:
        x: `[m, N]` float32, float16 or bfloat16.
        value: dense float32 `[m, r]`.
        starts: dense int32 `[d + 1]`.
        order: dense int32, positions `i * r + k`.

    Returns:
        `[d, N]` in the dtype of x.
    """
    d, (m, width), r = starts.shape[0] - 1, x.shape, value.shape[1]
    out = x.new_empty(d, width)
    if out.numel() == 0:
        return out
    x = dense_rows(x)
    block = block_n(x.dtype, width)
    with on_device(x):
        _subspace_project_kernel[(d * triton.cdiv(width, block),)](
            x, value, starts, order, out, x.stride(0), out.stride(0), m, r, d, order.shape[0], width,
            BLOCK_E=BLOCK_E, BLOCK_N=block, num_warps=4 if block >= 64 else 1,
        )  # fmt: skip
    return out


def subspace_expand(
    y: torch.Tensor, index: torch.Tensor, value: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`P y`.

    Args:
        y: `[d, N]` float32, float16 or bfloat16.
        index: dense int16 or int32 `[m, r]`.
        value: dense float32 `[m, r]`.
        out: where it goes, `[m, N]` whose rows or columns lie side by side; made where it is `None`.

    Returns:
        `[m, N]` in the dtype of y.
    """
    (d, width), (m, r) = y.shape, index.shape
    out = y.new_empty(m, width) if out is None else out
    if out.numel() == 0:
        return out
    y = dense_rows(y)
    turned = out.stride(1) != 1 and out.stride(0) == 1
    block = block_n(y.dtype, width)
    # turned, a tile is written along its rows: as many of them as fill a cache line
    rows = 32 if turned else BLOCK_I
    block = min(block, 64) if turned else block
    with on_device(y):
        _subspace_expand_kernel[(triton.cdiv(m, rows) * triton.cdiv(width, block),)](
            y, index, value, out, y.stride(0), out.stride(0), out.stride(1), m, r, d, width,
            TURNED=turned, BLOCK_I=rows, BLOCK_N=block, num_warps=4 if block >= 64 else 1,
        )  # fmt: skip
    return out


def subspace_value_grad(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """What both products give `value`.

    Args:
        x: `[m, N]` float32, float16 or bfloat16.
        y: `[d, N]` in the dtype of x.
        index: dense int16 or int32 `[m, r]`.

    Returns:
        float32 `[m, r]`.
    """
    (m, r), width = index.shape, x.shape[1]
    out = torch.empty(m, r, dtype=torch.float32, device=x.device)
    if out.numel() == 0:
        return out
    x, y = dense_rows(x), dense_rows(y)
    deep = min(triton.next_power_of_2(r), 8)
    with on_device(x):
        _subspace_value_grad_kernel[(m * triton.cdiv(r, deep),)](
            x, y, index, out, x.stride(0), y.stride(0), r, y.shape[0], width,
            BLOCK_K=deep, BLOCK_N=2 * block_n(x.dtype, max(width, 1)), num_warps=4,
        )  # fmt: skip
    return out
