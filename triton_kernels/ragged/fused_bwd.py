# SPDX-License-Identifier: Apache-2.0
"""Gradients of the fused row operators (ragged spec, sections 5 and 12.2), column sums included.

Column sums go through partial sums, one row of `[blocks, C]` for each block of `BLOCK_ROWS` rows, which a second kernel
adds in order: no atomics, so the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import on_device, traffic

__all__ = ["add_layer_norm_bwd", "bias_gelu_bwd"]

BLOCK_ROWS = 64


@triton.jit(launch_metadata=traffic("bias_gelu_bwd", "grad", "x", "dx"), do_not_specialize=["total"])
def _bias_gelu_bwd_kernel(
    grad,
    x,
    bias,
    dx,
    partial,
    stride_gt,
    stride_xt,
    stride_dt,
    stride_pb,
    total,
    width,
    TANH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """dx = grad * gelu'(x + bias) for `ROWS` rows, and the sums of their columns, computed in float32."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    cols = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    b = tl.load(bias + cols, mask=cols < width, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK_C], tl.float32)
    for step in range(0, ROWS, BLOCK_T):
        rows = first + step + tl.arange(0, BLOCK_T)
        mask = (rows[:, None] < total) & (cols[None, :] < width)
        # [BLOCK_T, BLOCK_C]
        z = tl.load(x + rows[:, None] * stride_xt + cols[None, :], mask=mask, other=0.0).to(tl.float32) + b[None, :]
        up = tl.load(grad + rows[:, None] * stride_gt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        if TANH:
            u2 = 1.5957691216057308 * z * (1.0 + 0.044715 * z * z)
            e = tl.exp(-tl.abs(u2))
            s = tl.where(u2 >= 0, 1.0, e) / (1.0 + e)
            # e runs out before z * z does: beyond 30 both sides are flat to the last bit
            near = tl.where(tl.abs(u2) < 30.0, z, 0.0)
            curve = 1.5957691216057308 * (1.0 + 0.134145 * near * near)
            slope = s + near * curve * e / ((1.0 + e) * (1.0 + e))
        else:
            bell = tl.exp(-0.5 * z * z)
            slope = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * bell * 0.3989422804014327
        d = up * slope
        tl.store(dx + rows[:, None] * stride_dt + cols[None, :], d.to(dx.dtype.element_ty), mask=mask)
        sums += tl.sum(tl.where(mask, d, 0.0), 0)
    tl.store(partial + tl.program_id(0).to(tl.int64) * stride_pb + cols, sums, mask=cols < width)


@triton.jit(launch_metadata=traffic("add_layer_norm_bwd", "grad", "x", "residual", "dsum"), do_not_specialize=["total"])
def _add_layer_norm_bwd_kernel(
    grad,
    x,
    x_bias,
    residual,
    mean,
    rstd,
    weight,
    dsum,
    partial,
    stride_gt,
    stride_xt,
    stride_rt,
    stride_dt,
    stride_pb,
    total,
    width,
    HAS_X_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    """`ROWS` rows in turn: dsum = rstd (g - mean g - n mean(g n)), g = grad * weight, n the normalised row.

    `partial` gets the column sums of these rows, `3 * width` of them: for dweight, dbias and dx_bias.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    cols = tl.arange(0, BLOCK_C)
    mask = cols < width
    w = tl.load(weight + cols, mask=mask, other=0.0).to(tl.float32)
    if HAS_X_BIAS:
        b = tl.load(x_bias + cols, mask=mask, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK_C], tl.float32)
    dbias = tl.zeros([BLOCK_C], tl.float32)
    dx_bias = tl.zeros([BLOCK_C], tl.float32)
    for row in range(first, tl.minimum(first + ROWS, total)):
        z = tl.load(x + row * stride_xt + cols, mask=mask, other=0.0).to(tl.float32)
        z += tl.load(residual + row * stride_rt + cols, mask=mask, other=0.0).to(tl.float32)
        if HAS_X_BIAS:
            z += b
        up = tl.load(grad + row * stride_gt + cols, mask=mask, other=0.0).to(tl.float32)
        inverse = tl.load(rstd + row)
        n = tl.where(mask, (z - tl.load(mean + row)) * inverse, 0.0)
        g = up * w
        d = inverse * (g - tl.sum(g, 0) / width - n * (tl.sum(g * n, 0) / width))
        tl.store(dsum + row * stride_dt + cols, d.to(dsum.dtype.element_ty), mask=mask)
        dweight += up * n
        dbias += up
        if HAS_X_BIAS:
            dx_bias += d
    target = partial + tl.program_id(0).to(tl.int64) * stride_pb + cols
    tl.store(target, dweight, mask=mask)
    tl.store(target + width, dbias, mask=mask)
    if HAS_X_BIAS:
        tl.store(target + 2 * width, dx_bias, mask=mask)


@triton.jit(launch_metadata=traffic("add_columns", "partial"), do_not_specialize=["blocks"])
def _add_columns_kernel(partial, out, stride_pb, blocks, width, BLOCK_C: tl.constexpr):
    """out[c] = sum over the blocks of partial[block, c], in order."""
    cols = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = cols < width
    total = tl.zeros([BLOCK_C], tl.float32)
    source = partial + cols
    for _ in range(blocks):
        total += tl.load(source, mask=mask, other=0.0)
        source += stride_pb
    tl.store(out + cols, total.to(out.dtype.element_ty), mask=mask)


def _add_columns(partial: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Column sums of `[blocks, C]` float32 in `dtype`."""
    blocks, width = partial.shape
    out = torch.empty(width, dtype=dtype, device=partial.device)
    block_c = min(triton.next_power_of_2(max(width, 1)), 128)
    if width:
        _add_columns_kernel[(triton.cdiv(width, block_c),)](
            partial, out, partial.stride(0), blocks, width, BLOCK_C=block_c, num_warps=4
        )
    return out


def bias_gelu_bwd(
    grad: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, tanh: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of GELU of `x + bias`.

    Args:
        grad: `[T, C]` of the output, last stride 1.
        x: `[T, C]` float32, float16 or bfloat16, last stride 1.
        bias: `[C]` contiguous.
        tanh: the tanh form instead of the exact one.

    Returns:
        `dx [T, C]` in the dtype of `x`, `dbias [C]` in that of `bias`.
    """
    total, width = x.shape
    dx = x.new_empty(total, width)
    blocks = triton.cdiv(total, BLOCK_ROWS)
    partial = torch.empty(blocks, width, dtype=torch.float32, device=x.device)
    if width == 0 or total == 0:
        return dx, torch.zeros_like(bias)
    block_c = min(triton.next_power_of_2(width), 256)
    block_t = max(min(2048 // block_c, BLOCK_ROWS), 1)
    with on_device(x):
        _bias_gelu_bwd_kernel[(blocks, triton.cdiv(width, block_c))](
            grad, x, bias, dx, partial, grad.stride(0), x.stride(0), dx.stride(0), partial.stride(0), total, width,
            TANH=tanh, BLOCK_T=block_t, BLOCK_C=block_c, ROWS=BLOCK_ROWS, num_warps=4,
        )  # fmt: skip
        return dx, _add_columns(partial, bias.dtype)


def add_layer_norm_bwd(
    grad: torch.Tensor,
    x: torch.Tensor,
    x_bias: torch.Tensor | None,
    residual: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of LayerNorm over the last dimension of `x + x_bias + residual`.

    Args:
        grad: `[T, C]` of the output, last stride 1.
        x: `[T, C]` float32, float16 or bfloat16, last stride 1, `C <= 16384`.
        x_bias: `[C]` contiguous, or `None`.
        residual: `[T, C]`, last stride 1.
        mean, rstd: `[T]` float32, from the forward kernel.
        weight: `[C]` contiguous.

    Returns:
        `dsum [T, C]`, `dweight [C]`, `dbias [C]`, `dx_bias [C]`, the last one empty without `x_bias`.
    """
    total, width = x.shape
    dsum = x.new_empty(total, width)
    vectors = 2 if x_bias is None else 3
    if width == 0 or total == 0:
        none = x.new_empty(0) if x_bias is None else torch.zeros_like(x_bias)
        return dsum, torch.zeros_like(weight), torch.zeros_like(weight), none
    blocks = triton.cdiv(total, BLOCK_ROWS)
    partial = torch.empty(blocks, vectors * width, dtype=torch.float32, device=x.device)
    block_c = triton.next_power_of_2(width)
    num_warps = min(max(block_c // 512, 1), 32)
    with on_device(x):
        _add_layer_norm_bwd_kernel[(blocks,)](
            grad, x, x_bias, residual, mean, rstd, weight, dsum, partial, grad.stride(0), x.stride(0),
            residual.stride(0), dsum.stride(0), partial.stride(0), total, width,
            HAS_X_BIAS=x_bias is not None, BLOCK_C=block_c, ROWS=BLOCK_ROWS, num_warps=num_warps,
        )  # fmt: skip
        dweight, dbias, *rest = _add_columns(partial, weight.dtype).split(width)
    return dsum, dweight.clone(), dbias.clone(), rest[0].clone() if rest else x.new_empty(0)
