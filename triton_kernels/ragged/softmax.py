# SPDX-License-Identifier: Apache-2.0
"""Softmax over the rows of each packed segment, forward and backward. CoRa (MLSys 2022), section 5."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import on_device, traffic
from .segments import rows_of

__all__ = ["ragged_softmax_bwd", "ragged_softmax_fwd"]


@triton.jit(launch_metadata=traffic("ragged_softmax_fwd", "x", "out"), do_not_specialize=["total"])
def _ragged_softmax_fwd_kernel(
    x,
    offsets,
    out,
    stride_xt,
    stride_ot,
    total,
    width,
    LOG: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One segment and block of columns: a running maximum and sum for each place of the tile, then a second pass."""
    segment = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, count = rows_of(offsets, segment, total)
    top = tl.full([BLOCK_R, BLOCK_C], float("-inf"), tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(0, count, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        mask = (rows[:, None] < count) & (cols[None, :] < width)
        value = tl.load(x + (start + rows[:, None]) * stride_xt + cols[None, :], mask=mask, other=float("-inf"))
        value = value.to(tl.float32)
        higher = tl.maximum(top, value)
        # inf - inf would make NaN where a place has seen nothing but -inf so far
        base = tl.where(tl.abs(higher) == float("inf"), 0.0, higher)
        acc = acc * tl.exp(top - base) + tl.exp(value - base)
        top = higher
    most = tl.max(top, 0)
    lost = tl.abs(most) == float("inf")  # nothing but -inf, or +inf: NaN, as with torch
    base = tl.where(lost, 0.0, most)
    # NaN among the values stays in the sum
    sums = tl.where(lost, 1.0, tl.sum(acc * tl.exp(tl.where(lost[None, :], 0.0, top - base[None, :])), 0))
    for first in range(0, count, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        mask = (rows[:, None] < count) & (cols[None, :] < width)
        value = tl.load(x + (start + rows[:, None]) * stride_xt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        shifted = tl.where(lost[None, :], 0.0, value - base[None, :])
        result = shifted - tl.log(sums)[None, :] if LOG else tl.exp(shifted) / sums[None, :]
        result = tl.where(lost[None, :], float("nan"), result)
        target = out + (start + rows[:, None]) * stride_ot + cols[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=mask)


@triton.jit(launch_metadata=traffic("ragged_softmax_bwd", "grad", "y", "dx"), do_not_specialize=["total"])
def _ragged_softmax_bwd_kernel(
    grad,
    y,
    offsets,
    dx,
    stride_gt,
    stride_yt,
    stride_dt,
    total,
    width,
    LOG: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y * (g - sum(g * y)), or g - exp(y) * sum(g) with LOG."""
    segment = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, count = rows_of(offsets, segment, total)
    acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(0, count, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        mask = (rows[:, None] < count) & (cols[None, :] < width)
        g = tl.load(grad + (start + rows[:, None]) * stride_gt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        if LOG:
            acc += g
        else:
            acc += g * tl.load(y + (start + rows[:, None]) * stride_yt + cols[None, :], mask=mask, other=0.0).to(
                tl.float32
            )
    sums = tl.sum(acc, 0)
    for first in range(0, count, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        mask = (rows[:, None] < count) & (cols[None, :] < width)
        g = tl.load(grad + (start + rows[:, None]) * stride_gt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        value = tl.load(y + (start + rows[:, None]) * stride_yt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        result = g - tl.exp(value) * sums[None, :] if LOG else value * (g - sums[None, :])
        target = dx + (start + rows[:, None]) * stride_dt + cols[None, :]
        tl.store(target, result.to(dx.dtype.element_ty), mask=mask)


def ragged_softmax_fwd(x: torch.Tensor, offsets: torch.Tensor, log: bool) -> torch.Tensor:
    """Softmax (or its logarithm) over the rows of each segment, each column for itself.

    Args:
        x: `[T, C]` float32, float16 or bfloat16, last stride 1.
        offsets: `[N + 1]` int32 or int64, on the device of `x`.
        log: the logarithm.

    Returns:
        `[T, C]` in the dtype of `x`.
    """
    num_segments, width = offsets.shape[0] - 1, x.shape[1]
    out = x.new_empty(x.shape)
    if out.numel() == 0 or num_segments == 0:
        return out
    block_c = min(triton.next_power_of_2(width), 64)
    with on_device(x):
        _ragged_softmax_fwd_kernel[(num_segments, triton.cdiv(width, block_c))](
            x, offsets, out, x.stride(0), out.stride(0), x.shape[0], width,
            LOG=log, BLOCK_R=2048 // block_c, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return out


def ragged_softmax_bwd(grad: torch.Tensor, y: torch.Tensor, offsets: torch.Tensor, log: bool) -> torch.Tensor:
    """The gradient in x of `ragged_softmax_fwd`, from the gradient in its result and the result y, both `[T, C]`."""
    num_segments, width = offsets.shape[0] - 1, y.shape[1]
    dx = y.new_empty(y.shape)
    if dx.numel() == 0 or num_segments == 0:
        return dx
    block_c = min(triton.next_power_of_2(width), 64)
    with on_device(y):
        _ragged_softmax_bwd_kernel[(num_segments, triton.cdiv(width, block_c))](
            grad, y, offsets, dx, grad.stride(0), y.stride(0), dx.stride(0), y.shape[0], width,
            LOG=log, BLOCK_R=2048 // block_c, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return dx
