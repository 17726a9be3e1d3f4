# SPDX-License-Identifier: Apache-2.0
"""Convolution along packed sequences as an implicit product: rows of several sequences share a tile."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import on_device, traffic

__all__ = ["ragged_conv1d_bwd_weight", "ragged_conv1d_fwd"]


@triton.jit(launch_metadata=traffic("ragged_conv1d_fwd", "x", "weight", "out"))
def _ragged_conv1d_fwd_kernel(
    x,
    first,
    length,
    place,
    weight,
    bias,
    out,
    stride_xt,
    stride_xc,
    stride_wo,
    stride_wc,
    stride_wk,
    stride_ot,
    rows,
    total,
    width,
    out_width,
    pad_left,
    dilation,
    out_tiles,
    TAPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows of one tile by output channels of one group. width, out_width: channels of a group."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    group = (tl.program_id(1) // out_tiles).to(tl.int64)
    o = (tl.program_id(1) % out_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.load(first + r, mask=r < rows, other=0).to(tl.int64)
    count = tl.load(length + r, mask=r < rows, other=0).to(tl.int64)
    at = tl.load(place + r, mask=r < rows, other=0).to(tl.int64) - pad_left
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(TAPS):
        there = (at >= 0) & (at < count) & (start + at >= 0) & (start + at < total)
        for c0 in range(0, width, BLOCK_K):
            c = c0 + tl.arange(0, BLOCK_K)
            left = tl.load(
                x + (start + at)[:, None] * stride_xt + (group * width + c)[None, :] * stride_xc,
                mask=there[:, None] & (c[None, :] < width),
                other=0.0,
            )
            right = tl.load(
                weight + (group * out_width + o)[None, :] * stride_wo + c[:, None] * stride_wc + k * stride_wk,
                mask=(o[None, :] < out_width) & (c[:, None] < width),
                other=0.0,
            )
            acc = tl.dot(left, right, acc, input_precision="ieee")
        at += dilation
    if HAS_BIAS:
        acc += tl.load(bias + group * out_width + o, mask=o < out_width, other=0.0).to(tl.float32)[None, :]
    target = out + r[:, None] * stride_ot + (group * out_width + o)[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=(r[:, None] < rows) & (o[None, :] < out_width))


@triton.jit(launch_metadata=traffic("ragged_conv1d_bwd_weight", "grad", "x", "dw"))
def _ragged_conv1d_bwd_weight_kernel(
    grad,
    x,
    first,
    length,
    place,
    dw,
    stride_gt,
    stride_gc,
    stride_xt,
    stride_xc,
    stride_wo,
    stride_wc,
    stride_wk,
    rows,
    total,
    width,
    out_width,
    pad_left,
    dilation,
    out_tiles,
    taps,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One tap, a tile of output by input channels of one group, over all rows in order."""
    k = tl.program_id(0) % taps
    group = (tl.program_id(0) // taps).to(tl.int64)
    o = (tl.program_id(1) % out_tiles) * BLOCK_O + tl.arange(0, BLOCK_O)
    c = (tl.program_id(1) // out_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_O, BLOCK_C], tl.float32)
    for r0 in range(0, rows, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R)
        start = tl.load(first + r, mask=r < rows, other=0).to(tl.int64)
        count = tl.load(length + r, mask=r < rows, other=0).to(tl.int64)
        at = tl.load(place + r, mask=r < rows, other=0).to(tl.int64) + k * dilation - pad_left
        there = (r < rows) & (at >= 0) & (at < count) & (start + at >= 0) & (start + at < total)
        left = tl.load(
            grad + r[None, :].to(tl.int64) * stride_gt + (group * out_width + o)[:, None] * stride_gc,
            mask=there[None, :] & (o[:, None] < out_width),
            other=0.0,
        )
        right = tl.load(
            x + (start + at)[:, None] * stride_xt + (group * width + c)[None, :] * stride_xc,
            mask=there[:, None] & (c[None, :] < width),
            other=0.0,
        )
        acc = tl.dot(left, right, acc, input_precision="ieee")
    target = dw + (group * out_width + o)[:, None] * stride_wo + c[None, :] * stride_wc + k * stride_wk
    tl.store(target, acc.to(dw.dtype.element_ty), mask=(o[:, None] < out_width) & (c[None, :] < width))


def _row_tables(offsets: torch.Tensor, rows: int, grown: int) -> tuple[torch.Tensor, ...]:
    """For each result row: first row and length of its sequence in x, and its place in the sequence. No host copy."""
    offsets = offsets.long()
    count = offsets.shape[0] - 1
    moved = offsets + grown * torch.arange(count + 1, device=offsets.device)
    row = torch.arange(rows, device=offsets.device)
    # the sequence whose rows hold this one: offsets that are wrong give a wrong sequence, never one outside
    sequence = (torch.searchsorted(moved, row, right=True) - 1).clamp_(0, count - 1)
    first = offsets[sequence]
    return first, offsets[sequence + 1] - first, row - moved[sequence]


def ragged_conv1d_fwd(
    x: torch.Tensor,
    offsets: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    pad_left: int,
    pad_right: int,
    dilation: int,
    groups: int,
) -> torch.Tensor:
    """Convolve each sequence alone.

    Args:
        x: `[T, C_in]` float32, float16 or bfloat16, any strides.
        offsets: `[N + 1]` int32 or int64, on the device of `x`.
        weight: `[C_out, C_in / groups, K]` in the dtype of x, any strides.
        bias: `[C_out]` or `None`.
        pad_left: rows of zeros before each sequence; rows are cut where it is negative.
        pad_right: rows of zeros behind each sequence.
        dilation: rows between taps.
        groups: blocks of channels.

    Returns:
        `[T + N * (pad_left + pad_right - dilation * (K - 1)), C_out]`, summed in float32.
    """
    taps = weight.shape[2]
    grown = pad_left + pad_right - dilation * (taps - 1)
    rows, width, out_width = x.shape[0] + (offsets.shape[0] - 1) * grown, weight.shape[1], weight.shape[0] // groups
    out = x.new_empty(rows, weight.shape[0])
    if out.numel() == 0:
        return out
    tables = _row_tables(offsets, rows, grown)
    bias = None if bias is None else bias.contiguous()
    block_n = 64 if out_width > 32 else 32
    out_tiles = triton.cdiv(out_width, block_n)
    with on_device(x):
        _ragged_conv1d_fwd_kernel[(triton.cdiv(rows, 64), groups * out_tiles)](
            x, *tables, weight, bias, out, *x.stride(), *weight.stride(), out.stride(0),
            rows, x.shape[0], width, out_width, pad_left, dilation, out_tiles,
            TAPS=taps, HAS_BIAS=bias is not None, BLOCK_M=64, BLOCK_N=block_n, BLOCK_K=32, num_warps=4,
        )  # fmt: skip
    return out


def ragged_conv1d_bwd_weight(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    offsets: torch.Tensor,
    taps: int,
    pad_left: int,
    pad_right: int,
    dilation: int,
    groups: int,
) -> torch.Tensor:
    """The gradient in weight `[C_out, C_in / groups, K]` of `ragged_conv1d_fwd`: grad_out `[rows, C_out]`."""
    grown = pad_left + pad_right - dilation * (taps - 1)
    rows, width, out_width = grad_out.shape[0], x.shape[1] // groups, grad_out.shape[1] // groups
    if rows == 0 or width == 0 or out_width == 0 or taps == 0:
        return x.new_zeros(grad_out.shape[1], width, taps)
    dw = x.new_empty(grad_out.shape[1], width, taps)
    tables = _row_tables(offsets, rows, grown)
    out_tiles = triton.cdiv(out_width, 64)
    with on_device(x):
        _ragged_conv1d_bwd_weight_kernel[(taps * groups, out_tiles * triton.cdiv(width, 64))](
            grad_out, x, *tables, dw, *grad_out.stride(), *x.stride(), *dw.stride(),
            rows, x.shape[0], width, out_width, pad_left, dilation, out_tiles, taps,
            BLOCK_O=64, BLOCK_C=64, BLOCK_R=32, num_warps=4,
        )  # fmt: skip
    return dw
