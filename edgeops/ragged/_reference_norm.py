# SPDX-License-Identifier: Apache-2.0
"""The readable twins of `ragged_instance_norm`."""

from __future__ import annotations

import torch
from torch import Tensor


def ragged_instance_norm_fwd_reference(
    x: Tensor, offsets: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of each segment of x `[T, C]` with mean 0 and variance 1: (out, mean `[N, C]`, rstd `[N, C]`)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    starts = offsets.tolist()
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    mean = torch.zeros(len(starts) - 1, x.shape[1], dtype=dtype, device=x.device)
    rstd = torch.full_like(mean, eps).rsqrt()
    for b in range(len(starts) - 1):
        rows = slice(starts[b], starts[b + 1])
        segment = x[rows].to(dtype)
        if len(segment):
            mean[b] = segment.mean(0)
            rstd[b] = torch.rsqrt(segment.var(0, unbiased=False) + eps)
        out[rows] = (segment - mean[b]) * rstd[b]
    if weight is not None:
        out *= weight.to(dtype)
    if bias is not None:
        out += bias.to(dtype)
    return out.to(x.dtype), mean, rstd


def ragged_instance_norm_bwd_reference(
    grad_out: Tensor, x: Tensor, offsets: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `ragged_instance_norm_fwd_reference` in x, weight and bias."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    starts = offsets.tolist()
    dx = torch.empty(x.shape, dtype=dtype, device=x.device)
    dweight, dbias = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
    scale = torch.ones_like(dbias) if weight is None else weight.to(dtype)
    for b in range(len(starts) - 1):
        rows = slice(starts[b], starts[b + 1])
        count = rows.stop - rows.start
        if count == 0:
            continue
        g, normal = grad_out[rows].to(dtype), (x[rows].to(dtype) - mean[b]) * rstd[b]
        along, total = (g * normal).sum(0), g.sum(0)
        dx[rows] = scale * rstd[b] * (g - (total + normal * along) / count)
        dweight += along
        dbias += total
    return dx.to(x.dtype), dweight.to(x.dtype), dbias.to(x.dtype)
