# SPDX-License-Identifier: Apache-2.0
"""Pooling of packed rows: out[n] = reduce of x[offsets[n]:offsets[n + 1]] (ragged spec, section 12.1)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import on_device, traffic
from .segments import rows_of

__all__ = ["ragged_pool_bwd", "ragged_pool_fwd"]

SUM, MEAN, MAX, MIN, LOGSUMEXP = range(5)


@triton.jit(launch_metadata=traffic("ragged_pool_fwd", "x", "out"), do_not_specialize=["total"])
def _ragged_pool_fwd_kernel(
    x,
    offsets,
    out,
    stride_xt,
    stride_on,
    total,
    width,
    MODE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum (0), mean (1), maximum (2), minimum (3) or log-sum-exp (4) of the rows of one segment, in float32.

    An empty segment gives 0, -inf for the last.
    """
    segment = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, count = rows_of(offsets, segment, total)
    top = tl.full([BLOCK_R, BLOCK_C], float("-inf"), tl.float32)
    if MODE == 2 or MODE == 3:
        acc = tl.full([BLOCK_R, BLOCK_C], float("-inf"), tl.float32)
    else:
        acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(0, count, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        mask = (rows[:, None] < count) & (cols[None, :] < width)
        ptrs = x + (start + rows[:, None]) * stride_xt + cols[None, :]
        # [BLOCK_R, BLOCK_C]
        if MODE == 4:
            value = tl.load(ptrs, mask=mask, other=float("-inf")).to(tl.float32)
            higher = tl.maximum(top, value)
            # inf - inf would make NaN of places that hold infinities only
            base = tl.where(tl.abs(higher) == float("inf"), 0.0, higher)
            acc = acc * tl.exp(top - base) + tl.exp(value - base)
            top = higher
        elif MODE == 3:
            value = -tl.load(ptrs, mask=mask, other=float("inf")).to(tl.float32)
            acc = tl.where((acc != acc) | (acc > value), acc, value)
        elif MODE == 2:
            # NaN must stay visible, as with torch.amax; a plain maximum may drop it
            value = tl.load(ptrs, mask=mask, other=float("-inf")).to(tl.float32)
            acc = tl.where((acc != acc) | (acc > value), acc, value)
        else:
            acc += tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
    if MODE == 4:
        most = tl.max(top, 0)
        endless = tl.abs(most) == float("inf")
        base = tl.where(endless, 0.0, most)
        sums = tl.sum(acc * tl.exp(tl.where(endless[None, :], 0.0, top - base[None, :])), 0)
        # NaN stays in the sum even beside an infinity
        result = tl.where(endless & (sums == sums), most, base + tl.log(tl.where(endless & (sums == sums), 1.0, sums)))
    elif MODE == 2 or MODE == 3:
        missing = acc != acc
        result = tl.max(tl.where(missing, float("-inf"), acc), 0)
        result = tl.where(tl.max(missing.to(tl.int32), 0) > 0, float("nan"), result)
    else:
        result = tl.sum(acc, 0)
    if MODE == 3:
        result = -result
    if MODE == 1:
        result = result / tl.maximum(count, 1).to(tl.float32)
    if MODE != 4:
        result = tl.where(count > 0, result, 0.0)
    tl.store(out + segment * stride_on + cols, result.to(out.dtype.element_ty), mask=cols < width)


@triton.jit(launch_metadata=traffic("ragged_pool_bwd", "dx"), do_not_specialize=["total"])
def _ragged_pool_bwd_kernel(
    grad,
    x,
    out,
    offsets,
    dx,
    stride_gn,
    stride_xt,
    stride_on,
    stride_dt,
    total,
    width,
    MODE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient of one segment's row in each of its rows; rows that reach the maximum share it evenly."""
    segment = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, count = rows_of(offsets, segment, total)
    share = tl.load(grad + segment * stride_gn + cols, mask=cols < width, other=0.0).to(tl.float32)
    if MODE == 1:
        share = share / tl.maximum(count, 1).to(tl.float32)
    if MODE == 2:
        best = tl.load(out + segment * stride_on + cols, mask=cols < width, other=0.0)
        hits = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        for first in range(0, count, BLOCK_R):
            rows = first + tl.arange(0, BLOCK_R)
            mask = (rows[:, None] < count) & (cols[None, :] < width)
            value = tl.load(x + (start + rows[:, None]) * stride_xt + cols[None, :], mask=mask, other=0.0)
            hits += tl.where(mask & (value == best[None, :]), 1.0, 0.0)
        number = tl.sum(hits, 0)
        # no row equals a NaN maximum: the gradient is NaN there, as with torch.amax
        share = tl.where(number > 0, share / tl.maximum(number, 1.0), float("nan"))
    for first in range(0, count, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        mask = (rows[:, None] < count) & (cols[None, :] < width)
        # [BLOCK_R, BLOCK_C]
        d = tl.broadcast_to(share[None, :], [BLOCK_R, BLOCK_C])
        if MODE == 2:
            value = tl.load(x + (start + rows[:, None]) * stride_xt + cols[None, :], mask=mask, other=0.0)
            d = tl.where(value == best[None, :], 1.0, 0.0) * d  # a product: NaN reaches all rows of the column
        tl.store(dx + (start + rows[:, None]) * stride_dt + cols[None, :], d.to(dx.dtype.element_ty), mask=mask)


def ragged_pool_bwd(
    grad: torch.Tensor, x: torch.Tensor, out: torch.Tensor, offsets: torch.Tensor, mode: int
) -> torch.Tensor:
    """Gradient of `ragged_pool_fwd` in its rows.

    Args:
        grad: `[N, C]` of the output, last stride 1.
        x: `[T, C]` float32, float16 or bfloat16, last stride 1.
        out: `[N, C]`, what the forward kernel gave; read for the extremes alone.
        offsets: `[N + 1]` int32 or int64.
        mode: 0 sum, 1 mean, 2 maximum, 3 minimum.

    Returns:
        `[T, C]` in the dtype of `x`; 0 in rows that belong to no segment.
    """
    num_segments, width = offsets.shape[0] - 1, x.shape[1]
    dx = x.new_zeros(x.shape)
    if dx.numel() == 0 or num_segments == 0:
        return dx
    block_c = min(triton.next_power_of_2(width), 128)
    with on_device(x):
        _ragged_pool_bwd_kernel[(num_segments, triton.cdiv(width, block_c))](
            grad, x, out, offsets, dx, grad.stride(0), x.stride(0), out.stride(0), dx.stride(0), x.shape[0], width,
            MODE=min(mode, 2), BLOCK_R=32, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return dx


def ragged_pool_fwd(x: torch.Tensor, offsets: torch.Tensor, mode: int) -> torch.Tensor:
    """Reduce each segment of packed rows to one row.

    Args:
        x: `[T, C]` float32, float16 or bfloat16, last stride 1.
        offsets: `[N + 1]` int32 or int64, on the device of `x`.
        mode: 0 sum, 1 mean, 2 maximum, 3 minimum, 4 log-sum-exp.

    Returns:
        `[N, C]` in the dtype of `x`. Empty segments give 0 (-inf in mode 4); NaN in a segment gives NaN.
    """
    num_segments, width = offsets.shape[0] - 1, x.shape[1]
    out = x.new_empty(num_segments, width)
    if out.numel() == 0:
        return out
    block_c = min(triton.next_power_of_2(width), 128)
    with on_device(x):
        _ragged_pool_fwd_kernel[(num_segments, triton.cdiv(width, block_c))](
            x, offsets, out, x.stride(0), out.stride(0), x.shape[0], width,
            MODE=mode, BLOCK_R=32, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return out
