# SPDX-License-Identifier: Apache-2.0
"""The readable twins of every ragged op: plain PyTorch, any dtype, any device. They are the specification.

CoRa (MLSys 2022), section 5: the operators of a transformer encoder on ragged batches. Registered as the fallback
kernels of `torch.ops.edgeops`, and imported by tests and benchmarks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgeops._common import message


def attention_scores_reference(
    q: Tensor, k: Tensor, bias: Tensor | None, scale: float, causal: bool, window: tuple[int, int]
) -> Tensor:
    """Scaled, biased, masked scores `[Hq, lq, lk]` of one sequence: `scale * q.k + bias`, forbidden pairs -inf.

    q: `[lq, Hq, D]`, k: `[lk, Hk, D]`, bias: `[Hq, lq, lk]` or `None`. Causal and window masks are aligned to the
    bottom right corner: query i stands at key position `i + lk - lq`.
    """
    lq, num_heads, _ = q.shape
    lk, num_kv_heads, _ = k.shape
    k = k.repeat_interleave(num_heads // num_kv_heads, dim=1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    if bias is not None:
        scores = scores + bias
    left, right = window
    if causal:
        right = 0 if right < 0 else min(right, 0)
    position = torch.arange(lq, device=q.device)[:, None] + (lk - lq)
    key = torch.arange(lk, device=q.device)[None, :]
    forbidden = torch.zeros(lq, lk, dtype=torch.bool, device=q.device)
    if right >= 0:
        forbidden |= key > position + right
    if left >= 0:
        forbidden |= key < position - left
    return scores.masked_fill(forbidden, -torch.inf)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension; a row without an allowed key (all -inf) gives 0."""
    dead = (scores == -torch.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(dead, 0.0), dim=-1).masked_fill(dead, 0.0)


def _bias_of(bias: Tensor | None, b: int, lq: int, lk: int) -> Tensor | None:
    """The `[H|1, lq|1, lk|1]` part of a `[B|1, Hq|1, Mq|1, Mk|1]` bias that belongs to sequence b."""
    if bias is None:
        return None
    part = bias[b if bias.shape[0] > 1 else 0]
    return part[:, : lq if part.shape[1] > 1 else 1, : lk if part.shape[2] > 1 else 1]


_WORD = 0xFFFFFFFF


def _times(x: Tensor, factor: int) -> Tensor:
    """`x * factor` in uint32 wrap-around; no product leaves int64, where an overflow would be undefined."""
    return (x * (factor & 0xFFFF) + ((x * (factor >> 16) & 0xFFFF) << 16)) & _WORD


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words whose every output bit depends on every input bit."""
    x = x ^ (x >> 16)
    x = _times(x, 0x7FEB352D)
    x = x ^ (x >> 15)
    x = _times(x, 0x846CA68B)
    return x ^ (x >> 16)


def dropout_keep_reference(
    seed: int | Tensor,
    p: float,
    b: int,
    heads: int,
    lq: int,
    lk: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which weights of sequence b survive dropout with probability p: bool `[heads, lq, lk]`.

    Counter based: a pair's fate is a hash of (seed, sequence b, query head h, query i, key j) in uint32 arithmetic, so
    forward and backward agree without a stored mask, on every device, for any tiling, whatever the lengths of the other
    sequences. seed is any int64, a number or a 0-dim tensor; its two words both count. Kept where the hash is at least
    `floor(p * 2**32)`; with p = 1 nothing is.
    """
    number = torch.as_tensor(seed, dtype=torch.int64, device=device)
    low, high = number & _WORD, (number >> 32) & _WORD
    head, row, key = (torch.arange(n, dtype=torch.int64, device=device) for n in (heads, lq, lk))
    state = _mix((low + (0x9E3779B9 * b & _WORD)) & _WORD)
    state = _mix(state ^ high ^ _times(head, 0x85EBCA6B))
    state = _mix((state[:, None] + _times(row, 0xC2B2AE35)) & _WORD)
    return _mix(state[:, :, None] ^ _times(key, 0x27D4EB2F)) >= math.floor(p * 2**32)


def _keep_of(seed: int | Tensor | None, p: float, b: int, heads: int, lq: int, lk: int, device: torch.device) -> Tensor:
    if seed is None:
        raise ValueError(message("ragged_attention", "dropout needs a seed", "None", "Pass a 0-dim int64 tensor."))
    return dropout_keep_reference(seed, p, b, heads, lq, lk, device)


def dropout_factor(p: float) -> float:
    """What kept weights are multiplied by, so that their expectation stays: `1 / (1 - p)`, and 0 for p = 1."""
    return 1.0 / (1.0 - p) if p < 1.0 else 0.0


def ragged_attention_fwd_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of each sequence over its own keys: out `[Tq, Hq, Dv]`, lse `[Tq, Hq]`.

    Rows without an allowed key give out = 0 and lse = -inf. Computed in float32 for half precision inputs. Dropout
    removes weights where `dropout_keep_reference` says so and scales the others; lse is that of all scores.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[2], dtype=dtype, device=q.device)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=dtype, device=q.device)
    starts_q, starts_k = cu_q.tolist(), cu_k.tolist()
    for b in range(len(starts_q) - 1):
        rows, keys = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
        lq, lk = rows.stop - rows.start, keys.stop - keys.start
        if lq == 0 or lk == 0:
            continue
        part = _bias_of(bias, b, lq, lk)
        part = None if part is None else part.to(dtype)
        scores = attention_scores_reference(
            q[rows].to(dtype), k[keys].to(dtype), part, scale, causal, (window_left, window_right)
        )
        weights = _softmax(scores)
        if dropout_p > 0:
            keep = _keep_of(seed, dropout_p, b, q.shape[1], lq, lk, q.device)
            weights = weights * keep * dropout_factor(dropout_p)
        out[rows] = torch.einsum("hij,jhd->ihd", weights, v[keys].to(dtype).repeat_interleave(group, dim=1))
        lse[rows] = torch.logsumexp(scores, dim=-1).T
    return out.to(q.dtype), lse


def ragged_attention_bwd_reference(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `ragged_attention_fwd_reference`: (dq, dk, dv, dbias); dbias is empty without a bias.

    Scores are recomputed: P = softmax(S), dP = dO v^T, dS = P * (dP - delta), delta = dO.O - grad_lse. With dropout
    Z (0 or `dropout_factor`) stands before v: dv = (P * Z)^T dO, dS = P * (dP * Z - delta).
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (q, k, v))
    dbias = torch.zeros(() if bias is None else bias.shape, dtype=dtype, device=q.device)
    if bias is None:
        dbias = dbias.new_zeros(0)
    starts_q, starts_k = cu_q.tolist(), cu_k.tolist()
    for b in range(len(starts_q) - 1):
        rows, keys = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
        lq, lk = rows.stop - rows.start, keys.stop - keys.start
        if lq == 0 or lk == 0:
            continue
        part = _bias_of(bias, b, lq, lk)
        qs, ks, vs, go = q[rows].to(dtype), k[keys].to(dtype), v[keys].to(dtype), grad_out[rows].to(dtype)
        scores = attention_scores_reference(
            qs, ks, None if part is None else part.to(dtype), scale, causal, (window_left, window_right)
        )
        weights = _softmax(scores)
        delta = (go * out[rows].to(dtype)).sum(-1).T  # [Hq, lq]
        if grad_lse is not None:
            delta = delta - grad_lse[rows].T.to(dtype)
        dweights = torch.einsum("ihd,jhd->hij", go, vs.repeat_interleave(group, dim=1))
        if dropout_p > 0:
            keep = _keep_of(seed, dropout_p, b, q.shape[1], lq, lk, q.device)
            kept = keep.to(dtype) * dropout_factor(dropout_p)
            dweights, used = dweights * kept, weights * kept
        else:
            used = weights
        dscores = weights * (dweights - delta[..., None])
        dq[rows] = scale * torch.einsum("hij,jhd->ihd", dscores, ks.repeat_interleave(group, dim=1))
        dks = scale * torch.einsum("hij,ihd->jhd", dscores, qs)
        dvs = torch.einsum("hij,ihd->jhd", used, go)
        dk[keys] = dks.unflatten(1, (k.shape[1], group)).sum(2)
        dv[keys] = dvs.unflatten(1, (k.shape[1], group)).sum(2)
        if bias is not None and part is not None:
            target = _bias_of(dbias, b, lq, lk)
            reduce = [d for d in range(3) if part.shape[d] == 1]
            target += dscores.sum(dim=reduce, keepdim=True) if reduce else dscores  # type: ignore[operator]
    if bias is not None:
        dbias = dbias.to(bias.dtype)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dbias


def ragged_pack_reference(padded: Tensor, offsets: Tensor, total: int) -> Tensor:
    """The first `offsets[b+1] - offsets[b]` rows of each `padded[b]`, as `[total, ...]`."""
    starts = offsets.tolist()
    out = padded.new_empty(total, *padded.shape[2:])
    for b in range(len(starts) - 1):
        out[starts[b] : starts[b + 1]] = padded[b, : starts[b + 1] - starts[b]]
    return out


def ragged_unpack_reference(values: Tensor, offsets: Tensor, length: int, padding_value: float) -> Tensor:
    """`[B, length, ...]` full of `padding_value`, each sequence of values `[T, ...]` at the front of its row."""
    starts = offsets.tolist()
    out = values.new_full((len(starts) - 1, length, *values.shape[1:]), padding_value)
    for b in range(len(starts) - 1):
        out[b, : starts[b + 1] - starts[b]] = values[starts[b] : starts[b + 1]]
    return out


POOL_MODES = ("sum", "mean", "max", "min", "logsumexp")


def ragged_pool_fwd_reference(x: Tensor, offsets: Tensor, mode: int) -> Tensor:
    """Reduce each segment of x `[T, C]` to one row: mode 0 sum, 1 mean, 2 max, 3 min, 4 logsumexp.

    Empty segments give 0, -inf for logsumexp.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    starts = offsets.tolist()
    out = torch.zeros(len(starts) - 1, x.shape[1], dtype=dtype, device=x.device)
    for b in range(len(starts) - 1):
        segment = x[starts[b] : starts[b + 1]].to(dtype)
        if mode == 4:
            out[b] = torch.logsumexp(segment, 0)
        elif len(segment) and mode >= 2:
            out[b] = segment.amax(0) if mode == 2 else segment.amin(0)
        elif len(segment):
            out[b] = segment.sum(0) / (len(segment) if mode == 1 else 1)
    return out.to(x.dtype)


def ragged_pool_bwd_reference(grad_out: Tensor, x: Tensor, out: Tensor, offsets: Tensor, mode: int) -> Tensor:
    """Gradient of `ragged_pool_fwd_reference` in x.

    Ties of the maximum or minimum share the gradient evenly, as `amax` does; so do those of an infinite logsumexp.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    starts = offsets.tolist()
    grad = torch.zeros(x.shape, dtype=dtype, device=x.device)
    for b in range(len(starts) - 1):
        rows = slice(starts[b], starts[b + 1])
        count = rows.stop - rows.start
        if count == 0:
            continue
        if mode >= 2:
            hit = (x[rows] == out[b]).to(dtype)
            weights = hit / hit.sum(0)
            if mode == 4:
                weights = torch.where(out[b].isinf(), weights, torch.softmax(x[rows].to(dtype), 0))
            grad[rows] = weights * grad_out[b].to(dtype)
        else:
            grad[rows] = grad_out[b].to(dtype) / (count if mode == 1 else 1)
    return grad.to(x.dtype)


def bias_gelu_fwd_reference(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    """GELU of `x + bias`: x `[T, C]`, bias `[C]`. Computed in float32 for half precision inputs."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = torch.nn.functional.gelu(x.to(dtype) + bias.to(dtype), approximate="tanh" if tanh else "none")
    return y.to(x.dtype)


def bias_gelu_bwd_reference(grad_out: Tensor, x: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """Gradients of `bias_gelu_fwd_reference`: (in x, in bias), the latter being the column sums of the former."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    grad = torch.ops.aten.gelu_backward(
        grad_out.to(dtype), x.to(dtype) + bias.to(dtype), approximate="tanh" if tanh else "none"
    )
    return grad.to(x.dtype), grad.sum(0).to(bias.dtype)


def add_layer_norm_fwd_reference(
    x: Tensor, x_bias: Tensor | None, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm over the last dimension of `x + x_bias + residual`: (out `[T, C]`, mean `[T]`, rstd `[T]`)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = x.to(dtype) + residual.to(dtype)
    if x_bias is not None:
        total = total + x_bias.to(dtype)
    mean = total.mean(-1)
    rstd = torch.rsqrt((total - mean[:, None]).square().mean(-1) + eps)
    out = (total - mean[:, None]) * rstd[:, None] * weight.to(dtype) + bias.to(dtype)
    return out.to(x.dtype), mean, rstd


def add_layer_norm_bwd_reference(
    grad_out: Tensor,
    x: Tensor,
    x_bias: Tensor | None,
    residual: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `add_layer_norm_fwd_reference`: (in the sum, in weight, in bias, in x_bias).

    The gradient in the sum is that in x and in residual; its column sums are the one in x_bias, empty without it.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = x.to(dtype) + residual.to(dtype)
    if x_bias is not None:
        total = total + x_bias.to(dtype)
    normal = (total - mean[:, None]) * rstd[:, None]
    go = grad_out.to(dtype)
    scaled = go * weight.to(dtype)
    dsum = rstd[:, None] * (scaled - scaled.mean(-1, keepdim=True) - normal * (scaled * normal).mean(-1, keepdim=True))
    dx_bias = x.new_empty(0) if x_bias is None else dsum.sum(0).to(x_bias.dtype)
    return dsum.to(x.dtype), (go * normal).sum(0).to(weight.dtype), go.sum(0).to(weight.dtype), dx_bias
