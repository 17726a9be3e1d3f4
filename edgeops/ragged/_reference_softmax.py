# SPDX-License-Identifier: Apache-2.0
"""The readable twins of `ragged_softmax`. CoRa (MLSys 2022), section 5."""

from __future__ import annotations

import torch
from torch import Tensor


def ragged_softmax_fwd_reference(x: Tensor, offsets: Tensor, log: bool) -> Tensor:
    """Softmax, or its logarithm, over the rows of each segment of x `[T, C]`, each column for itself."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    starts = offsets.tolist()
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    for b in range(len(starts) - 1):
        rows = slice(starts[b], starts[b + 1])
        segment = x[rows].to(dtype)
        out[rows] = torch.log_softmax(segment, 0) if log else torch.softmax(segment, 0)
    return out.to(x.dtype)


def ragged_softmax_bwd_reference(grad_out: Tensor, out: Tensor, offsets: Tensor, log: bool) -> Tensor:
    """Gradient of `ragged_softmax_fwd_reference` in x, from the gradient in its result and the result, `[T, C]`."""
    dtype = torch.promote_types(out.dtype, torch.float32)
    starts = offsets.tolist()
    grad = torch.empty(out.shape, dtype=dtype, device=out.device)
    for b in range(len(starts) - 1):
        rows = slice(starts[b], starts[b + 1])
        g, y = grad_out[rows].to(dtype), out[rows].to(dtype)
        grad[rows] = g - y.exp() * g.sum(0) if log else y * (g - (g * y).sum(0))
    return grad.to(out.dtype)
