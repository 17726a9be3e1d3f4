# SPDX-License-Identifier: Apache-2.0
"""Adam in the subspace and its direction added to the weight. LSP-Offload (AAAI 2025), algorithm 1.

`P delta` is made first, turned: `[d_q, m]`. A program then owns 32 rows of W: what it gathers are lines of 128 bytes
that stay in its first cache, and W is read and written once. Rounding by chance has the bits of
`edgeops.offload._reference.round_by_chance`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from edgeops.triton_kernels.offload.subspace import subspace_expand
from edgeops.triton_kernels.ragged.dropout import mix
from edgeops.triton_kernels.ragged.launch import on_device, traffic

__all__ = ["subspace_adam", "subspace_apply"]

BLOCK_I = 32  # rows of W: 32 numbers of 4 bytes are a cache line
BLOCK_J = 64
CHUNK = 1024  # columns of W that one program walks through
BLOCK_ADAM = 1024


@triton.jit
def round_by_chance(x, rows, cols, seed_low, seed_high):
    """float32 `[I, J]` in bfloat16, up or down by 32 bits that follow from seed, row and column."""
    word = tl.zeros_like(rows).to(tl.uint32)
    state = mix(word + rows.to(tl.uint32) * 0x9E3779B9 + seed_low.to(tl.uint32))
    state = mix(state ^ seed_high.to(tl.uint32))
    noise = mix(state[:, None] ^ (cols.to(tl.uint32) * 0x27D4EB2F)[None, :]) & 0xFFFF
    bits = x.to(tl.uint32, bitcast=True)
    chosen = ((bits + noise) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return tl.where((bits & 0x7F800000) != 0x7F800000, chosen, x.to(tl.bfloat16))


@triton.jit(launch_metadata=traffic("subspace_apply", "weight", "weight"), do_not_specialize=["seed_low", "seed_high"])
def _subspace_apply_kernel(
    weight, side, index, value, stride_w, stride_s, m, width, r, d, alpha, keep, seed_low, seed_high,
    CHANCE: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """W[i, j] = keep * W[i, j] + alpha * sum over k of value[j, k] * side[index[j, k], i]; rows of side are padded."""
    chunks = tl.cdiv(width, CHUNK)
    rows = tl.program_id(0) // chunks * BLOCK_I + tl.arange(0, BLOCK_I)
    begin = tl.program_id(0) % chunks * CHUNK
    for first in range(begin, tl.minimum(begin + CHUNK, width), BLOCK_J):
        cols = first + tl.arange(0, BLOCK_J)
        acc = tl.zeros([BLOCK_J, BLOCK_I], tl.float32)
        for k in range(r):
            entry = cols.to(tl.int64) * r + k
            place = tl.load(index + entry, mask=cols < width, other=-1).to(tl.int32)
            good = (place >= 0) & (place < d)
            scale = tl.load(value + entry, mask=good, other=0.0)
            line = side + place[:, None].to(tl.int64) * stride_s + rows[None, :]
            acc += scale[:, None] * tl.load(line, mask=good[:, None], other=0.0)  # [BLOCK_J, BLOCK_I]
        mask = (rows < m)[:, None] & (cols < width)[None, :]
        where = weight + rows[:, None].to(tl.int64) * stride_w + cols[None, :]
        before = tl.load(where, mask=mask, other=0.0).to(tl.float32)
        after = keep * before + alpha * tl.trans(acc)  # [BLOCK_I, BLOCK_J]
        if CHANCE:
            tl.store(where, round_by_chance(after, rows, cols, seed_low, seed_high), mask=mask)
        else:
            tl.store(where, after.to(weight.dtype.element_ty), mask=mask)


@triton.jit(launch_metadata=traffic("subspace_adam", "grad", "grad", "exp_avg", "exp_avg", "exp_avg_sq", "exp_avg_sq"))
def _subspace_adam_kernel(
    grad, exp_avg, exp_avg_sq, width, beta1, rest1, beta2, rest2, eps, scale1, scale2, BLOCK: tl.constexpr
):
    """Moments in place; grad becomes `m * scale1 / (sqrt(v * scale2) + eps)`, with the CPU's rounding of both."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < width
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    m = beta1 * tl.load(exp_avg + at, mask=mask, other=0.0) + rest1 * g
    v = beta2 * tl.load(exp_avg_sq + at, mask=mask, other=0.0) + rest2 * (g * g)
    tl.store(exp_avg + at, m, mask=mask)
    tl.store(exp_avg_sq + at, v, mask=mask)
    direction = tl.div_rn(m * scale1, tl.sqrt_rn(v * scale2) + eps)
    tl.store(grad + at, direction.to(grad.dtype.element_ty), mask=mask)


def words_of(seed: int) -> tuple[int, int]:
    """An int64 seed as two words, signed so that every launch has the same argument types.

    >>> words_of(-1), words_of(1 << 32)
    ((-1, -1), (0, 1))
    """
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    return low - 2**32 if low >= 2**31 else low, high - 2**32 if high >= 2**31 else high


def subspace_apply(
    weight: torch.Tensor,
    delta: torch.Tensor,
    p_index: torch.Tensor,
    p_value: torch.Tensor,
    q_index: torch.Tensor,
    q_value: torch.Tensor,
    alpha: float,
    keep: float,
    stochastic: bool,
    seed: int,
) -> None:
    """`weight <- keep * weight + alpha * P delta Q^T`, in float32, then rounded.

    Args:
        weight: `[m, n]` float32, float16 or bfloat16 with dense rows.
        delta: float32 `[d_p, d_q]`.
        p_index, q_index: dense int16 or int32 `[m, r]` and `[n, r]`.
        p_value, q_value: dense float32, of the same shapes.
        alpha, keep: factors.
        stochastic: round by chance; the weight is bfloat16 then.
        seed: of the rounding, int64.
    """
    m, width = weight.shape
    if weight.numel() == 0:
        return
    d = delta.shape[1]
    padded = triton.cdiv(m, BLOCK_I) * BLOCK_I
    side = torch.empty(d, padded, dtype=torch.float32, device=weight.device)
    side[:, m:] = 0  # read, never written
    subspace_expand(delta, p_index, p_value, side.T[:m])
    low, high = words_of(seed)
    with on_device(weight):
        _subspace_apply_kernel[(padded // BLOCK_I * triton.cdiv(width, CHUNK),)](
            weight, side, q_index, q_value, weight.stride(0), side.stride(0), m, width, q_index.shape[1], d,
            float(alpha), float(keep), low, high,
            CHANCE=stochastic, BLOCK_I=BLOCK_I, BLOCK_J=BLOCK_J, CHUNK=CHUNK, num_warps=4,
        )  # fmt: skip


def subspace_adam(
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    step: int,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Adam's moments in place; `grad` becomes the direction.

    Args:
        grad: dense, float32, float16 or bfloat16.
        exp_avg, exp_avg_sq: dense float32 with as many elements.
        step: from 1.
        beta1, beta2, eps: as of `torch.optim.Adam`.
    """
    width = grad.numel()
    if width == 0:
        return
    with on_device(grad):
        _subspace_adam_kernel[(triton.cdiv(width, BLOCK_ADAM),)](
            grad, exp_avg, exp_avg_sq, width, float(beta1), 1.0 - beta1, float(beta2), 1.0 - beta2, float(eps),
            1 / (1 - beta1**step), 1 / (1 - beta2**step), BLOCK=BLOCK_ADAM, num_warps=4,
        )  # fmt: skip
