# SPDX-License-Identifier: Apache-2.0
"""Gradient of the additive bias of attention: dS, summed over the dimensions that were broadcast.

A program owns one tile of the gradient and walks everything that reads that tile in a fixed order, so there are no
atomics. Where rows or keys are broadcast, sequences and heads are left apart (the partial sums are small) and added by
torch; where both are there, one program walks the sequences and heads that share its tile (a matrix for each sequence
and head would be large).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .attention_config import TileConfig
from .dropout import dropout_factors, dropout_rows, dropout_words
from .launch import traffic
from .segments import LOG2E, segment

__all__ = ["bias_gradient"]


# fmt: off
@triton.jit(
    launch_metadata=traffic("ragged_attention_bwd_bias", "q", "k", "v", "grad_out", "dbias"),
    do_not_specialize=["num_sequences", "total_q", "total_k", "group", "bias_rows", "bias_cols", "window_left",
                       "window_right", "threshold", "num_heads", "sequences_each",
                       "heads_each", "height", "width"],
)
def _ragged_attention_bwd_bias_kernel(
    q, k, v, bias, grad_out, log_sum, delta, dbias, cu_q, cu_k,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_gt, stride_gh,
    stride_bb, stride_bh, stride_bm, stride_bn,
    num_sequences, total_q, total_k, group, bias_rows, bias_cols, scale, window_left, window_right,
    seed, threshold, factor, num_heads, sequences_each, heads_each, height, width,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, ALL_ROWS: tl.constexpr, ALL_COLS: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    # fmt: on
    """One tile of dbias `[sequences or 1, heads or 1, height, width]`; `ALL_*`: that dimension is summed, size 1."""
    across = tl.cdiv(width, BLOCK_N)
    tiles = across * tl.cdiv(height, BLOCK_M)
    part = tl.program_id(0) // tiles
    tile_m = tl.program_id(0) % tiles // across
    tile_n = tl.program_id(0) % across
    head_parts = num_heads // heads_each
    first_sequence = (part // head_parts) * sequences_each
    first_head = (part % head_parts) * heads_each
    dims = tl.arange(0, BLOCK_D)
    dims_v = tl.arange(0, BLOCK_DV)
    scale_log2 = tl.full([], scale * LOG2E, tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if DROPOUT:
        seed_low, seed_high = dropout_words(seed)
    for sequence in range(first_sequence, first_sequence + sequences_each):
        q_start, len_q = segment(cu_q, sequence, num_sequences, total_q)
        k_start, len_k = segment(cu_k, sequence, num_sequences, total_k)
        diagonal = len_k - len_q
        first_row = 0 if ALL_ROWS else tile_m * BLOCK_M
        end_row = len_q if ALL_ROWS else tl.minimum(first_row + BLOCK_M, len_q)
        first_col = 0 if ALL_COLS else tile_n * BLOCK_N
        end_col = len_k if ALL_COLS else tl.minimum(first_col + BLOCK_N, len_k)
        for head_number in range(first_head, first_head + heads_each):
            head = tl.cast(head_number, tl.int64)
            kv_head = head // group
            for m in range(first_row, end_row, BLOCK_M):
                rows = m + tl.arange(0, BLOCK_M)
                inside = rows < len_q
                queries = q_start + rows[:, None]
                mask = inside[:, None] & (dims[None, :] < D)
                mask_v = inside[:, None] & (dims_v[None, :] < DV)
                q_tile = tl.load(q + queries * stride_qt + head * stride_qh + dims[None, :], mask=mask, other=0.0)
                g_tile = tl.load(
                    grad_out + queries * stride_gt + head * stride_gh + dims_v[None, :], mask=mask_v, other=0.0
                )
                at = head * total_q + q_start + rows
                row_log_sum = tl.load(log_sum + at, mask=inside, other=float("inf"))
                row_delta = tl.load(delta + at, mask=inside, other=0.0)
                begin = first_col
                end = end_col
                if HAS_LEFT and ALL_COLS:
                    begin = (tl.minimum(tl.maximum(m + diagonal - window_left, 0), len_k) // BLOCK_N) * BLOCK_N
                if HAS_RIGHT:
                    end = tl.minimum(end, tl.minimum(m + BLOCK_M, len_q) + diagonal + window_right)
                for n in range(begin, end, BLOCK_N):
                    cols = n + tl.arange(0, BLOCK_N)
                    keys = k_start + cols[:, None]
                    there = cols[:, None] < len_k
                    k_ptrs = k + keys * stride_kt + kv_head * stride_kh + dims[None, :]
                    v_ptrs = v + keys * stride_vt + kv_head * stride_vh + dims_v[None, :]
                    k_tile = tl.load(k_ptrs, mask=there & (dims[None, :] < D), other=0.0)
                    v_tile = tl.load(v_ptrs, mask=there & (dims_v[None, :] < DV), other=0.0)
                    # [BLOCK_M, BLOCK_N], in units of log 2
                    scores = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale_log2
                    b_ptrs = bias + tl.cast(sequence, tl.int64) * stride_bb + head * stride_bh
                    b_ptrs += rows[:, None].to(tl.int64) * stride_bm + cols[None, :].to(tl.int64) * stride_bn
                    seen = (rows[:, None] < tl.minimum(bias_rows, len_q)) & (
                        cols[None, :] < tl.minimum(bias_cols, len_k)
                    )
                    scores += tl.load(b_ptrs, mask=seen, other=0.0).to(tl.float32) * LOG2E
                    weights = tl.exp2(scores - row_log_sum[:, None])
                    dweights = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
                    if DROPOUT:
                        row_state = dropout_rows(seed_low, seed_high, tl.cast(sequence, tl.int64), head, rows)
                        dweights *= dropout_factors(row_state[:, None], cols[None, :], threshold, factor)
                    dscores = weights * (dweights - row_delta[:, None])
                    allowed = inside[:, None] & (cols[None, :] < len_k)
                    if HAS_LEFT:
                        allowed = allowed & (cols[None, :] >= rows[:, None] + diagonal - window_left)
                    if HAS_RIGHT:
                        allowed = allowed & (cols[None, :] <= rows[:, None] + diagonal + window_right)
                    acc += tl.where(allowed, dscores, 0.0)

    # dbias is contiguous
    target = dbias + part.to(tl.int64) * height * width
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    kind = dbias.dtype.element_ty
    if ALL_ROWS and ALL_COLS:
        tl.store(target, tl.sum(tl.sum(acc, 1), 0).to(kind))
    elif ALL_ROWS:
        tl.store(target + cols, tl.sum(acc, 0).to(kind), mask=cols < width)
    elif ALL_COLS:
        tl.store(target + rows, tl.sum(acc, 1).to(kind), mask=rows < height)
    else:
        mask = (rows[:, None] < height) & (cols[None, :] < width)
        tl.store(target + rows[:, None].to(tl.int64) * width + cols[None, :], acc.to(kind), mask=mask)


def bias_gradient(
    tensors: tuple[torch.Tensor, ...],
    offsets: tuple[torch.Tensor, torch.Tensor],
    strides: tuple[int, ...],
    sizes: tuple[Any, ...],
    constants: dict[str, Any],
    config: TileConfig,
) -> torch.Tensor:
    """Gradient in the shape and dtype of the bias.

    Args:
        tensors: q, k, v, bias, grad_out, log_sum, delta, the first arguments of the backward kernels.
        offsets: cu_q, cu_k.
        strides, sizes, constants: what the backward kernels share.
        config: tiles.
    """
    q, bias = tensors[0], tensors[3]
    num_sequences, num_heads = offsets[0].shape[0] - 1, q.shape[1]
    batch, heads, height, width = bias.shape
    if bias.numel() == 0 or num_sequences == 0:
        return torch.zeros(bias.shape, dtype=bias.dtype, device=bias.device)
    apart = height == 1 or width == 1
    parts_b = num_sequences if apart else batch
    parts_h = num_heads if apart else heads
    partial = (parts_b, parts_h) != (batch, heads)
    dtype = torch.float32 if partial else bias.dtype
    result = torch.empty(parts_b, parts_h, height, width, dtype=dtype, device=bias.device)
    tiles = triton.cdiv(height, config.block_m) * triton.cdiv(width, config.block_n)
    _ragged_attention_bwd_bias_kernel[(tiles * parts_b * parts_h,)](
        *tensors, result, *offsets, *strides, *sizes, num_heads, num_sequences // parts_b, num_heads // parts_h,
        height, width, ALL_ROWS=height == 1, ALL_COLS=width == 1, **constants, **config.launch_bwd(),
    )  # fmt: skip
    if not partial:
        return result
    summed = [d for d, n in enumerate((batch, heads)) if result.shape[d] != n]
    return result.sum(summed, keepdim=True).to(bias.dtype)
