# SPDX-License-Identifier: Apache-2.0
"""Normalisation of each column over the rows of each packed segment, forward and backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import on_device, traffic
from .segments import rows_of

__all__ = ["ragged_instance_norm_bwd", "ragged_instance_norm_fwd"]


@triton.jit(launch_metadata=traffic("ragged_instance_norm_fwd", "x", "out"), do_not_specialize=["total"])
def _ragged_instance_norm_fwd_kernel(
    x,
    offsets,
    weight,
    bias,
    out,
    mean,
    rstd,
    stride_xt,
    stride_ot,
    total,
    width,
    eps,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One segment and block of columns: mean, then variance around it, then the result."""
    segment = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, count = rows_of(offsets, segment, total)
    share = 1.0 / tl.maximum(count, 1).to(tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(0, count, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        mask = (rows[:, None] < count) & (cols[None, :] < width)
        acc += tl.load(x + (start + rows[:, None]) * stride_xt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    center = tl.sum(acc, 0) * share
    acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(0, count, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        mask = (rows[:, None] < count) & (cols[None, :] < width)
        value = tl.load(x + (start + rows[:, None]) * stride_xt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        gap = tl.where(mask, value - center[None, :], 0.0)
        acc += gap * gap
    inverse = 1.0 / tl.sqrt(tl.sum(acc, 0) * share + eps)
    tl.store(mean + segment * width + cols, center, mask=cols < width)
    tl.store(rstd + segment * width + cols, inverse, mask=cols < width)
    scale = inverse
    if HAS_WEIGHT:
        scale = inverse * tl.load(weight + cols, mask=cols < width, other=0.0).to(tl.float32)
    shift = tl.zeros([BLOCK_C], tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + cols, mask=cols < width, other=0.0).to(tl.float32)
    for first in range(0, count, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        mask = (rows[:, None] < count) & (cols[None, :] < width)
        value = tl.load(x + (start + rows[:, None]) * stride_xt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        result = (value - center[None, :]) * scale[None, :] + shift[None, :]
        target = out + (start + rows[:, None]) * stride_ot + cols[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=mask)


@triton.jit(launch_metadata=traffic("ragged_instance_norm_bwd", "grad", "x", "dx"), do_not_specialize=["total"])
def _ragged_instance_norm_bwd_kernel(
    grad,
    x,
    offsets,
    mean,
    rstd,
    weight,
    dx,
    dweight,
    dbias,
    stride_gt,
    stride_xt,
    stride_dt,
    total,
    width,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dx, and the segment's own sums for weight and bias, which the launcher adds up in order."""
    segment = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, count = rows_of(offsets, segment, total)
    share = 1.0 / tl.maximum(count, 1).to(tl.float32)
    center = tl.load(mean + segment * width + cols, mask=cols < width, other=0.0)
    inverse = tl.load(rstd + segment * width + cols, mask=cols < width, other=0.0)
    along = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    plain = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(0, count, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        mask = (rows[:, None] < count) & (cols[None, :] < width)
        value = tl.load(x + (start + rows[:, None]) * stride_xt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + (start + rows[:, None]) * stride_gt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        along += g * (value - center[None, :]) * inverse[None, :]
        plain += g
    total_along = tl.sum(along, 0)
    total_plain = tl.sum(plain, 0)
    tl.store(dweight + segment * width + cols, total_along, mask=cols < width)
    tl.store(dbias + segment * width + cols, total_plain, mask=cols < width)
    scale = inverse
    if HAS_WEIGHT:
        scale = inverse * tl.load(weight + cols, mask=cols < width, other=0.0).to(tl.float32)
    for first in range(0, count, BLOCK_R):
        rows = first + tl.arange(0, BLOCK_R)
        mask = (rows[:, None] < count) & (cols[None, :] < width)
        value = tl.load(x + (start + rows[:, None]) * stride_xt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + (start + rows[:, None]) * stride_gt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        normal = (value - center[None, :]) * inverse[None, :]
        result = (g - (total_plain[None, :] + normal * total_along[None, :]) * share) * scale[None, :]
        tl.store(dx + (start + rows[:, None]) * stride_dt + cols[None, :], result.to(dx.dtype.element_ty), mask=mask)


def ragged_instance_norm_fwd(
    x: torch.Tensor, offsets: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each column of each segment with mean 0 and variance 1, scaled and shifted.

    Args:
        x: `[T, C]` float32, float16 or bfloat16, last stride 1.
        offsets: `[N + 1]` int32 or int64, on the device of `x`.
        weight: `[C]` or `None`.
        bias: `[C]` or `None`.
        eps: added to the variance.

    Returns:
        (out `[T, C]` in the dtype of x, mean and rstd `[N, C]` float32).
    """
    num_segments, width = offsets.shape[0] - 1, x.shape[1]
    out = x.new_empty(x.shape)
    mean, rstd = (x.new_empty(num_segments, width, dtype=torch.float32) for _ in range(2))
    if mean.numel() == 0:
        return out, mean, rstd
    weight, bias = (None if v is None else v.contiguous() for v in (weight, bias))
    block_c = min(triton.next_power_of_2(width), 64)
    with on_device(x):
        _ragged_instance_norm_fwd_kernel[(num_segments, triton.cdiv(width, block_c))](
            x, offsets, weight, bias, out, mean, rstd, x.stride(0), out.stride(0), x.shape[0], width, eps,
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
            BLOCK_R=2048 // block_c, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return out, mean, rstd


def ragged_instance_norm_bwd(
    grad: torch.Tensor,
    x: torch.Tensor,
    offsets: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `ragged_instance_norm_fwd` in x, weight and bias; grad and x `[T, C]` with last stride 1."""
    num_segments, width = offsets.shape[0] - 1, x.shape[1]
    dx = x.new_empty(x.shape)
    dweight, dbias = (x.new_zeros(num_segments, width, dtype=torch.float32) for _ in range(2))
    if dweight.numel():
        weight = None if weight is None else weight.contiguous()
        block_c = min(triton.next_power_of_2(width), 64)
        with on_device(x):
            _ragged_instance_norm_bwd_kernel[(num_segments, triton.cdiv(width, block_c))](
                grad, x, offsets, mean.contiguous(), rstd.contiguous(), weight, dx, dweight, dbias,
                grad.stride(0), x.stride(0), dx.stride(0), x.shape[0], width,
                HAS_WEIGHT=weight is not None, BLOCK_R=2048 // block_c, BLOCK_C=block_c, num_warps=4,
            )  # fmt: skip
    return dx, dweight.sum(0).to(x.dtype), dbias.sum(0).to(x.dtype)
