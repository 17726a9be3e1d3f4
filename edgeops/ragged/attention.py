# SPDX-License-Identifier: Apache-2.0
"""Ragged (variable-length) attention. CoRa (MLSys 2022), section 5: QK^T, softmax and AttnV on ragged batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops._common import describe, message
from edgeops.ragged._cuda.attention import flash_or_none

_fwd = _native.kernel("_ragged_attention_fwd", "ragged_attention")
_bwd = _native.kernel("_ragged_attention_bwd", "ragged_attention")


def _save(ctx: Any, args: Sequence[Any], outputs: tuple[Tensor, Tensor]) -> None:
    bias, seed = args[5], args[11]
    ctx.given = bias is not None, seed is not None
    ctx.save_for_backward(*args[:5], *(x for x in (bias, seed) if x is not None), *outputs)
    ctx.rest = args[6:11]


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, cu_q, cu_k, *given, out, lse = ctx.saved_tensors
    biased, seeded = ctx.given
    bias, seed = given[0] if biased else None, given[-1] if seeded else None
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    dq, dk, dv, dbias = _bwd(grad_out, grad_lse, q, k, v, out, lse, cu_q, cu_k, bias, *ctx.rest, seed)
    return dq, dk, dv, None, None, dbias if biased else None, None, None, None, None, None, None


_attention = _native.differentiable("ragged_attention", _fwd, _save, _backward, inputs=(0, 1, 2, 5))


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float | None,
    causal: bool,
    window: Sequence[int],
    bias: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    needs_lse: bool,
) -> tuple[Tensor, Tensor]:
    if len(window) != 2:
        raise ValueError(
            message("ragged_attention", "window must be (left, right)", describe(tuple(window)), "Use -1 for no limit.")
        )
    wanted = _native.autocast_dtype(q)
    if wanted is not None and q.dtype != torch.float64:
        q, k, v = q.to(wanted), k.to(wanted), v.to(wanted)
    if scale is None:
        shape = q.shape
        scale = 1.0 / math.sqrt(shape[-1]) if shape and shape[-1] else 1.0
    if q.is_cuda and dropout_p == 0:
        found = flash_or_none(q, k, v, cu_q, cu_k, max_q, max_k, bias, scale, causal, tuple(window), needs_lse)
        if found is not None:
            return found
    result: tuple[Tensor, Tensor] = _attention(
        q, k, v, cu_q, cu_k, bias, scale, causal, window[0], window[1], dropout_p, seed
    )
    return result


def _seed_tensor(seed: int | Tensor | None, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """What decides the mask, on the device of q: a tensor, so that compiled and captured graphs draw it in each run."""
    who = "ragged_attention"
    if seed is None:
        source = device if generator is None else generator.device
        drawn = torch.randint(2**63 - 1, (), generator=generator, device=source, dtype=torch.int64)
        return drawn.to(device, non_blocking=True)
    if generator is not None:
        raise ValueError(message(who, "takes a seed or a generator", "both", "Leave one out."))
    if isinstance(seed, Tensor):
        return seed.to(device, non_blocking=True)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(message(who, "seed must fit int64", describe(seed), "Take it modulo 2**63."))
    return torch.full((), seed, dtype=torch.int64, device=device)


def ragged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] = (-1, -1),
    bias: Tensor | None = None,
    dropout_p: float = 0,  # not 0.0, which the compiler would turn into an input first
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    return_lse: bool = False,
) -> Any:
    """Attention of every sequence of a packed batch over its own keys, without padding.

    Args:
        q: `[Tq, Hq, D]`, float32, float64, float16 or bfloat16; any strides (a slice of a fused QKV projection is read
            in place as long as the last dimension is dense).
        k: `[Tk, Hk, D]`, same dtype; `Hq` must be a multiple of `Hk` (grouped-query attention).
        v: `[Tk, Hk, Dv]`, same dtype.
        cu_q: int32 or int64 `[N + 1]` offsets of the sequences in q: 0 first, never decreasing, `Tq` last.
        cu_k: the same for k and v; lengths may differ from those of q and may be 0.
        max_q: longest query sequence, as in `varlen_attn`. A hint for GPU kernels; the CPU reads the offsets.
        max_k: longest key sequence, likewise.
        scale: factor of the scores, `1 / sqrt(D)` by default.
        causal: query i sees keys `j <= i + Lk - Lq` (aligned to the bottom right corner).
        window: `(left, right)` keys round that position; -1 means no limit.
        bias: added to the scaled scores, `[N or 1, Hq or 1, Mq or 1, Mk or 1]` with `Mq`, `Mk` at least the longest
            lengths; -inf forbids a pair.
        dropout_p: probability in [0, 1) with which an attention weight becomes 0; the others grow by `1 / (1 - p)`. No
            mask is stored: it follows from one number, the seed, and the sequence's place in the batch, head and pair.
        seed: that number: an int in the range of int64 or a 0-dim int64 tensor; the same seed gives the same mask on
            every device, compiled or not. Drawn in each call if absent, inside the graph where one is compiled.
        generator: where it is drawn from; the default one of q's device if absent, so `torch.manual_seed`, gradient
            checkpointing and CUDA graphs work as for `torch.nn.Dropout`. Not for compiled graphs, which take a seed.
        return_lse: also return the log-sum-exp of the scores.

    Returns:
        `[Tq, Hq, Dv]`, and with `return_lse` also lse `[Tq, Hq]` (float32; float64 for float64), before dropout.
        Queries without an allowed key give 0 and lse -inf. Differentiable in q, k, v and bias. On the CPU the results
        of a sequence, gradients too, are bitwise the same in any batch, in any order, with any number of threads.

    Raises:
        TypeError, ValueError: dtype, shape, offsets or seed break a rule above.

    >>> q = torch.randn(5, 2, 8)
    >>> cu = torch.tensor([0, 2, 5])
    >>> ragged_attention(q, q, q, cu, cu, 3, 3).shape
    torch.Size([5, 2, 8])
    """
    p, number = (0.0, None) if dropout_p == 0 else (dropout_p, _seed_tensor(seed, generator, q.device))
    out, lse = _call(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal, window, bias, p, number, return_lse)
    return (out, lse) if return_lse else out


def ragged_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] = (-1, -1),
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """`torch.ops.edgeops.ragged_attention`: `ragged_attention` with a fixed number of outputs; dropout needs a seed."""
    return _call(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal, window, bias, dropout_p, seed, False)[0]


def ragged_attention_lse_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: Sequence[int] = (-1, -1),
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`torch.ops.edgeops.ragged_attention_lse`: output and log-sum-exp."""
    return _call(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal, window, bias, dropout_p, seed, True)
