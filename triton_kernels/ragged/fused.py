# SPDX-License-Identifier: Apache-2.0
"""Row operators of an encoder layer, each in one pass over memory (ragged spec, sections 5 and 12.2).

bias_gelu:       y = gelu(x + bias)
add_layer_norm:  y = (z - mean z) / sqrt(var z + eps) * weight + bias,   z = x + x_bias + residual
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import on_device, traffic

__all__ = ["MAX_NORM_WIDTH", "add_layer_norm_fwd", "bias_gelu_fwd"]

# one row is held in registers: 16384 float32 over 32 warps are 16 a thread
MAX_NORM_WIDTH = 16384


@triton.jit(launch_metadata=traffic("bias_gelu_fwd", "x", "out"), do_not_specialize=["total"])
def _bias_gelu_fwd_kernel(
    x,
    bias,
    out,
    stride_xt,
    stride_ot,
    total,
    width,
    TANH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y = gelu(x + bias), exact or in the tanh form, computed in float32."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows[:, None] < total) & (cols[None, :] < width)
    # [BLOCK_T, BLOCK_C]
    z = tl.load(x + rows[:, None] * stride_xt + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    z += tl.load(bias + cols, mask=cols < width, other=0.0).to(tl.float32)[None, :]
    if TANH:
        # 0.5 (1 + tanh u) is the logistic function of 2 u, which keeps its digits where tanh u is near -1; the exponent
        # is never positive, so nothing overflows
        u2 = 1.5957691216057308 * (z + 0.044715 * z * z * z)
        e = tl.exp(-tl.abs(u2))
        y = z * tl.where(u2 >= 0, 1.0, e) / (1.0 + e)
    else:
        y = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    tl.store(out + rows[:, None] * stride_ot + cols[None, :], y.to(out.dtype.element_ty), mask=mask)


@triton.jit(launch_metadata=traffic("add_layer_norm_fwd", "x", "residual", "out"))
def _add_layer_norm_fwd_kernel(
    x,
    x_bias,
    residual,
    weight,
    bias,
    out,
    mean,
    rstd,
    stride_xt,
    stride_rt,
    stride_ot,
    width,
    eps,
    HAS_X_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One row per program: the sum is formed once, mean and variance in two passes over registers, in float32."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_C)
    mask = cols < width
    z = tl.load(x + row * stride_xt + cols, mask=mask, other=0.0).to(tl.float32)
    z += tl.load(residual + row * stride_rt + cols, mask=mask, other=0.0).to(tl.float32)
    if HAS_X_BIAS:
        z += tl.load(x_bias + cols, mask=mask, other=0.0).to(tl.float32)
    average = tl.sum(z, 0) / width
    centred = tl.where(mask, z - average, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + tl.full([], eps, tl.float32))
    w = tl.load(weight + cols, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(bias + cols, mask=mask, other=0.0).to(tl.float32)
    y = centred * inverse * w + b
    tl.store(out + row * stride_ot + cols, y.to(out.dtype.element_ty), mask=mask)
    tl.store(mean + row, average)
    tl.store(rstd + row, inverse)


def bias_gelu_fwd(x: torch.Tensor, bias: torch.Tensor, tanh: bool) -> torch.Tensor:
    """GELU of `x + bias`.

    Args:
        x: `[T, C]` float32, float16 or bfloat16, last stride 1.
        bias: `[C]` contiguous, any of these dtypes.
        tanh: the tanh form instead of the exact one.

    Returns:
        `[T, C]` in the dtype of `x`.
    """
    total, width = x.shape
    out = x.new_empty(total, width)
    if out.numel() == 0:
        return out
    block_c = min(triton.next_power_of_2(width), 512)
    block_t = max(min(2048 // block_c, 32), 1)
    with on_device(x):
        _bias_gelu_fwd_kernel[(triton.cdiv(total, block_t), triton.cdiv(width, block_c))](
            x, bias, out, x.stride(0), out.stride(0), total, width,
            TANH=tanh, BLOCK_T=block_t, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
    return out


def add_layer_norm_fwd(
    x: torch.Tensor,
    x_bias: torch.Tensor | None,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """LayerNorm over the last dimension of `x + x_bias + residual`.

    Args:
        x: `[T, C]` float32, float16 or bfloat16, last stride 1, `C <= 16384`.
        x_bias: `[C]` contiguous, or `None`.
        residual: `[T, C]`, last stride 1.
        weight, bias: `[C]` contiguous.
        eps: added to the variance.

    Returns:
        `out [T, C]` in the dtype of `x`, `mean [T]` and `rstd [T]` in float32.
    """
    total, width = x.shape
    out = x.new_empty(total, width)
    mean = torch.empty(total, dtype=torch.float32, device=x.device)
    rstd = torch.empty(total, dtype=torch.float32, device=x.device)
    if out.numel() == 0:
        return out, mean.zero_(), rstd.fill_(eps**-0.5 if eps > 0 else float("inf"))
    block_c = triton.next_power_of_2(width)
    num_warps = min(max(block_c // 512, 1), 32)
    with on_device(x):
        _add_layer_norm_fwd_kernel[(total,)](
            x, x_bias, residual, weight, bias, out, mean, rstd, x.stride(0), residual.stride(0), out.stride(0),
            width, float(eps), HAS_X_BIAS=x_bias is not None, BLOCK_C=block_c, num_warps=num_warps,
        )  # fmt: skip
    return out, mean, rstd
