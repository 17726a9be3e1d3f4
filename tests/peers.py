# SPDX-License-Identifier: Apache-2.0
"""Plain PyTorch ways to the same results, written apart from the package: padded, masked, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def offsets_of(lengths: list[int] | tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
    """Offsets `[N + 1]` of the lengths."""
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=dtype)


def pad(x: Tensor, cu: Tensor) -> Tensor:
    """Packed `[T, ...]` to `[B, L, ...]`, zeros behind."""
    lengths = cu.long().diff().tolist()
    if not lengths:
        return x.new_zeros(0, 0, *x.shape[1:])
    return pad_sequence(list(x.split(lengths)), batch_first=True)


def rows_mask(cu: Tensor) -> Tensor:
    """bool `[B, L]`, True where a token stands."""
    lengths = cu.long().diff()
    longest = int(lengths.max()) if lengths.numel() else 0
    return torch.arange(longest) < lengths[:, None]


def forbidden_pairs(cu_q: Tensor, cu_k: Tensor, causal: bool, window: tuple[int, int]) -> Tensor:
    """bool `[B, 1, Lq, Lk]`, True where a query must not see a key: padding, causal and window, bottom right."""
    lq, lk = cu_q.long().diff(), cu_k.long().diff()
    have_q, have_k = rows_mask(cu_q), rows_mask(cu_k)
    i = torch.arange(have_q.shape[1])[None, :, None] + (lk - lq)[:, None, None]
    j = torch.arange(have_k.shape[1])[None, None, :]
    left, right = window
    out = ~have_k[:, None, :].expand(-1, have_q.shape[1], -1)
    if causal:
        out = out | (j > i)
    if right >= 0:
        out = out | (j > i + right)
    if left >= 0:
        out = out | (j < i - left)
    return out[:, None]


def padded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Padded, masked attention through `scaled_dot_product_attention`: out `[Tq, Hq, Dv]` and lse `[Tq, Hq]`.

    Rows without an allowed key give 0 and -inf. Differentiable, any dtype; meant for float64.
    """
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    scale = q.shape[2] ** -0.5 if scale is None else scale
    have = rows_mask(cu_q)
    if q.shape[0] == 0 or k.shape[0] == 0:
        nothing = q.sum() * 0 + k.sum() * 0 + v.sum() * 0
        return q.new_zeros(q.shape[0], heads, v.shape[2]) + nothing, nothing + q.new_full(q.shape[:2], -torch.inf)
    qs, ks, vs = (pad(x, cu).transpose(1, 2) for x, cu in ((q, cu_q), (k, cu_k), (v, cu_k)))
    ks, vs = ks.repeat_interleave(group, 1), vs.repeat_interleave(group, 1)
    forbidden = forbidden_pairs(cu_q, cu_k, causal, window)
    lq, lk = forbidden.shape[2:]
    mask = torch.zeros(forbidden.shape, dtype=q.dtype).masked_fill(forbidden, -torch.inf)
    if bias is not None:
        part = bias[:, :, : lq if bias.shape[2] > 1 else 1, : lk if bias.shape[3] > 1 else 1].to(q.dtype)
        mask = (part + torch.zeros_like(mask)).masked_fill(forbidden, -torch.inf)
    seen = (mask > -torch.inf).any(-1, keepdim=True)
    mask = torch.where(seen, mask, 0.0).expand(qs.shape[0], heads, lq, lk)
    out = torch.nn.functional.scaled_dot_product_attention(qs, ks, vs, attn_mask=mask, scale=scale)
    out = torch.where(seen, out, 0.0)
    lse = torch.logsumexp((qs @ ks.transpose(2, 3)).mul(scale) + mask, -1)
    lse = torch.where(seen[..., 0], lse, -torch.inf)
    return out.transpose(1, 2)[have], lse.transpose(1, 2)[have]
