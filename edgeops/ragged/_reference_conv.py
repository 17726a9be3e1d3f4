# SPDX-License-Identifier: Apache-2.0
"""The readable twins of `ragged_conv1d`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _between_zeros(segment: Tensor, left: int, right: int) -> Tensor:
    """`segment [l, C]` with rows of zeros at its ends; rows are cut where a number is negative."""
    at = torch.arange(len(segment) + left + right, device=segment.device) - left
    inside = (at >= 0) & (at < len(segment))
    out = segment.new_zeros(len(at), segment.shape[1])
    out[inside] = segment[at[inside]]
    return out


def ragged_conv1d_fwd_reference(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pad_left: int,
    pad_right: int,
    dilation: int,
    groups: int,
) -> Tensor:
    """`torch.nn.functional.conv1d` of each sequence of x `[T, C_in]` alone, between its own zeros (rows cut where < 0).

    Sequence of l rows -> l + pad_left + pad_right - dilation * (K - 1) rows.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    starts = offsets.tolist()
    grown = pad_left + pad_right - dilation * (weight.shape[2] - 1)
    parts = [x.new_zeros(0, weight.shape[0], dtype=dtype)]
    for b in range(len(starts) - 1):
        if starts[b + 1] - starts[b] + grown > 0:
            columns = _between_zeros(x[starts[b] : starts[b + 1]].to(dtype), pad_left, pad_right).T
            wide_bias = None if bias is None else bias.to(dtype)
            parts.append(F.conv1d(columns[None], weight.to(dtype), wide_bias, 1, 0, dilation, groups)[0].T)
    return torch.cat(parts).to(x.dtype).contiguous()


def ragged_conv1d_bwd_weight_reference(
    grad_out: Tensor, x: Tensor, offsets: Tensor, taps: int, pad_left: int, pad_right: int, dilation: int, groups: int
) -> Tensor:
    """Gradient of `ragged_conv1d_fwd_reference` in weight `[C_out, C_in / groups, K]`: one product for each tap."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    starts = offsets.tolist()
    grown = pad_left + pad_right - dilation * (taps - 1)
    width, out_width = x.shape[1] // groups, grad_out.shape[1] // groups
    grad = torch.zeros(groups, out_width, width, taps, dtype=dtype, device=x.device)
    for b in range(len(starts) - 1):
        rows = starts[b + 1] - starts[b] + grown
        if rows <= 0:
            continue
        first = starts[b] + b * grown
        g = grad_out[first : first + rows].to(dtype).unflatten(1, (groups, out_width))
        padded = _between_zeros(x[starts[b] : starts[b + 1]].to(dtype), pad_left, pad_right)
        for k in range(taps):
            source = padded[k * dilation : k * dilation + rows].unflatten(1, (groups, width))
            grad[..., k] += torch.einsum("tgo,tgc->goc", g, source)
    return grad.flatten(0, 1).to(x.dtype)
