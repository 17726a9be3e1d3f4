# SPDX-License-Identifier: Apache-2.0
"""The readable twins of the offload kernels: they are the specification, and the fallback on every device.

A projector P `[m, d]` has exactly r entries a row: `index` `[m, r]` names their columns, `value` `[m, r]` is in the
compute type (float32, float64 with float64). `order` lists the positions `i * r + k` of entries column by column, those
of column c at `order[starts[c]:starts[c + 1]]`. Half types are computed in float32. LSP-Offload (AAAI 2025),
definition 1 and algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN, _LANE = 0x9E3779B9, 0x27D4EB2F
_WORD = 0xFFFFFFFF


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 of float64, float32 of all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dense_of_rows(index: Tensor, value: Tensor, d: int) -> Tensor:
    """P `[m, d]` with all its entries; entries of one place add up."""
    return value.new_zeros(index.shape[0], d).scatter_add(1, index.long(), value)


def dense_of_columns(value: Tensor, starts: Tensor, order: Tensor) -> Tensor:
    """P `[m, d]` with the entries that `order` lists."""
    m, r = value.shape
    counts = starts.diff().long()
    columns = torch.repeat_interleave(torch.arange(counts.numel(), device=value.device), counts)
    places = order[: columns.numel()].long()
    rows = torch.div(places, r, rounding_mode="floor")
    dense = value.new_zeros(m, counts.numel())
    return dense.index_put((rows, columns), value.reshape(-1)[places], accumulate=True)


def subspace_project_reference(x: Tensor, index: Tensor, value: Tensor, starts: Tensor, order: Tensor) -> Tensor:
    """`P^T x`: `[m, N]` to `[d, N]`."""
    return (dense_of_columns(value, starts, order).T @ x.to(value.dtype)).to(x.dtype)


def subspace_expand_reference(y: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """`P y`: `[d, N]` to `[m, N]`."""
    return (dense_of_rows(index, value, y.shape[0]) @ y.to(value.dtype)).to(y.dtype)


def subspace_value_grad_reference(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """`out[i, k] = sum over n of x[i, n] * y[index[i, k], n]`, in the compute type: what both products give `value`."""
    wide = compute_dtype(x.dtype)
    return (x.to(wide) @ y.to(wide).T).gather(1, index.long())


def _scramble(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def random_bits(seed: int, rows: int, columns: int, device: torch.device, first: int = 0) -> Tensor:
    """32 bits for each element of rows `first` and on of a matrix, as int64: of seed, row and column alone."""
    i = torch.arange(first, first + rows, device=device, dtype=torch.int64)[:, None]
    j = torch.arange(columns, device=device, dtype=torch.int64)[None, :]
    low, high = seed & _WORD, (seed >> 32) & _WORD
    counter = _scramble(_scramble((low + _GOLDEN * i) & _WORD) ^ high)
    return _scramble(counter ^ ((_LANE * j) & _WORD))


def round_by_chance(x: Tensor, seed: int, first: int = 0) -> Tensor:
    """Rows `first` and on of a float32 matrix in bfloat16, each element up or down such that the mean is right.

    What is not finite stays.
    """
    bits = x.contiguous().view(torch.int32).to(torch.int64) & _WORD
    noise = random_bits(seed, x.shape[0], x.shape[1], x.device, first) & 0xFFFF
    kept = ((bits + noise) >> 16) & 0xFFFF
    signed = torch.where(kept >= 0x8000, kept - 0x10000, kept).to(torch.int16)
    return torch.where(x.isfinite(), signed.view(torch.bfloat16), x.to(torch.bfloat16))


def subspace_apply_reference(
    weight: Tensor,
    delta: Tensor,
    p_index: Tensor,
    p_value: Tensor,
    q_index: Tensor,
    q_value: Tensor,
    alpha: float,
    keep: float = 1.0,
    stochastic: bool = False,
    seed: int = 0,
) -> None:
    """`weight <- keep * weight + alpha * P delta Q^T`, in the compute type, then rounded to the weight's."""
    left = dense_of_rows(p_index, p_value, delta.shape[0])
    right = dense_of_rows(q_index, q_value, delta.shape[1])
    updated = keep * weight.to(delta.dtype) + alpha * (left @ delta @ right.T)
    weight.copy_(round_by_chance(updated, seed) if stochastic else updated)


def subspace_adam_reference(
    grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: int, beta1: float, beta2: float, eps: float
) -> None:
    """Adam's moments in place; `grad` becomes the direction `m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)`."""
    g = grad.to(exp_avg.dtype).view(exp_avg.shape)
    exp_avg.mul_(beta1).add_(g, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    root = (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
    grad.copy_((exp_avg / (1 - beta1**step) / root).view(grad.shape))
