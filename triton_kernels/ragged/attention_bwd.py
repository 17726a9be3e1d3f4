# SPDX-License-Identifier: Apache-2.0
"""Backward attention over packed sequences (ragged spec, section 12.1).

    P = exp(S - lse), dP = dO v^T, dS = P o (Z o dP - delta), delta = rowsum(dO o O) - dlse
    dv = (P o Z)^T dO, dk = scale dS^T q, dq = scale dS k        Z: 0 or 1 / (1 - p) under dropout, else 1

Scores are recomputed from the log-sum-exp. Two kernels each own what they write: one program sums dk and dv of one tile
of keys over the query rows and query heads that read it, one sums dq of one tile of rows over its keys. So there are no
atomics, and a sequence gets the same bits in any batch. The grids are sized from shapes alone (`segments.py`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .attention_bias_bwd import bias_gradient
from .attention_config import architecture, attention_bwd_config
from .dropout import dropout_arguments, dropout_factors, dropout_rows, dropout_words
from .launch import bias_arguments, on_device, traffic
from .segments import LOG2E, WIDEST_WINDOW, locate, segment

__all__ = ["ragged_attention_bwd"]


# fmt: off
@triton.jit(launch_metadata=traffic("ragged_attention_bwd_rows", "out", "grad_out"), do_not_specialize=["total"])
def _ragged_attention_bwd_rows_kernel(
    out, grad_out, lse, grad_lse, log_sum, delta,
    stride_ot, stride_oh, stride_gt, stride_gh, stride_lt, stride_lh, stride_jt, stride_jh, total,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, HAS_GRAD_LSE: tl.constexpr, BLOCK_R: tl.constexpr,
):
    # fmt: on
    """What each row needs, heads first: delta, and lse in units of log 2 with +inf for a row without keys."""
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    dims = tl.arange(0, BLOCK_DV)
    inside = rows < total
    mask = inside[:, None] & (dims[None, :] < DV)
    o = tl.load(out + rows[:, None] * stride_ot + head * stride_oh + dims[None, :], mask=mask, other=0.0)
    g = tl.load(grad_out + rows[:, None] * stride_gt + head * stride_gh + dims[None, :], mask=mask, other=0.0)
    total_weight = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        total_weight -= tl.load(grad_lse + rows * stride_jt + head * stride_jh, mask=inside, other=0.0).to(tl.float32)
    row_lse = tl.load(lse + rows * stride_lt + head * stride_lh, mask=inside, other=0.0)
    # exp(anything - inf) is 0, where -inf - -inf would be NaN
    dead = row_lse == float("-inf")
    tl.store(log_sum + head * total + rows, tl.where(dead, float("inf"), row_lse * LOG2E), mask=inside)
    tl.store(delta + head * total + rows, tl.where(dead, 0.0, total_weight), mask=inside)


# fmt: off
@triton.jit
def _fold_rows(
    dk_acc, dv_acc, k_tile, v_tile, q, grad_out, bias, log_sum, delta, first, stop, cols, len_q, len_k, bias_rows,
    bias_cols, window_left, window_right, stride_qt, stride_gt, stride_bm, stride_bn, scale_log2,
    sequence, head, seed_low, seed_high, threshold, factor,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr,
):
    # fmt: on
    """Add what the query rows `[first, stop)` of one head give to dk and dv. Scores stand transposed, keys first."""
    dims = tl.arange(0, BLOCK_D)
    dims_v = tl.arange(0, BLOCK_DV)
    diagonal = len_k - len_q
    for m in range(first, stop, BLOCK_M):
        rows = m + tl.arange(0, BLOCK_M)
        wide = rows.to(tl.int64)
        q_ptrs = q + wide[:, None] * stride_qt + dims[None, :]
        g_ptrs = grad_out + wide[:, None] * stride_gt + dims_v[None, :]
        # [BLOCK_M, BLOCK_D], [BLOCK_M, BLOCK_DV], [BLOCK_M]
        if MASKED:
            inside = rows < len_q
            q_tile = tl.load(q_ptrs, mask=inside[:, None] & (dims[None, :] < D), other=0.0)
            g_tile = tl.load(g_ptrs, mask=inside[:, None] & (dims_v[None, :] < DV), other=0.0)
            row_log_sum = tl.load(log_sum + wide, mask=inside, other=float("inf"))
            row_delta = tl.load(delta + wide, mask=inside, other=0.0)
        else:
            q_tile = tl.load(q_ptrs, mask=dims[None, :] < D, other=0.0) if BLOCK_D != D else tl.load(q_ptrs)
            g_tile = tl.load(g_ptrs, mask=dims_v[None, :] < DV, other=0.0) if BLOCK_DV != DV else tl.load(g_ptrs)
            row_log_sum = tl.load(log_sum + wide)
            row_delta = tl.load(delta + wide)
        # [BLOCK_N, BLOCK_M], in units of log 2
        scores = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * scale_log2
        if HAS_BIAS:
            b_ptrs = bias + wide[None, :] * stride_bm + cols[:, None].to(tl.int64) * stride_bn
            seen = (rows[None, :] < bias_rows) & (cols[:, None] < bias_cols)
            scores += tl.load(b_ptrs, mask=seen, other=0.0).to(tl.float32) * LOG2E
        weights = tl.exp2(scores - row_log_sum[None, :])
        if MASKED:
            allowed = (rows[None, :] < len_q) & (cols[:, None] < len_k)
            if HAS_LEFT:
                allowed = allowed & (cols[:, None] >= rows[None, :] + diagonal - window_left)
            if HAS_RIGHT:
                allowed = allowed & (cols[:, None] <= rows[None, :] + diagonal + window_right)
            weights = tl.where(allowed, weights, 0.0)
        dweights = tl.dot(v_tile, tl.trans(g_tile), input_precision=PRECISION)
        used = weights
        if DROPOUT:
            row_state = dropout_rows(seed_low, seed_high, sequence, head, rows)
            kept = dropout_factors(row_state[None, :], cols[:, None], threshold, factor)
            used = weights * kept
            dweights *= kept
        dv_acc = tl.dot(used.to(g_tile.dtype), g_tile, dv_acc, input_precision=PRECISION)
        dscores = weights * (dweights - row_delta[None, :])
        if MASKED:
            dscores = tl.where(allowed, dscores, 0.0)
        dk_acc = tl.dot(dscores.to(q_tile.dtype), q_tile, dk_acc, input_precision=PRECISION)
    return dk_acc, dv_acc


# fmt: off
@triton.jit(
    launch_metadata=traffic("ragged_attention_bwd_keys", "q", "k", "v", "grad_out", "dk", "dv"),
    do_not_specialize=["num_sequences", "total_q", "total_k", "group", "bias_rows", "bias_cols", "window_left",
                       "window_right", "threshold"],
)
def _ragged_attention_bwd_keys_kernel(
    q, k, v, bias, grad_out, log_sum, delta, dk, dv, cu_q, cu_k, tile_map,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_gt, stride_gh,
    stride_bb, stride_bh, stride_bm, stride_bn,
    num_sequences, total_q, total_k, group, bias_rows, bias_cols, scale, window_left, window_right,
    seed, threshold, factor,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_MAP: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    # fmt: on
    """dk and dv of one tile of keys of one key head, over all query heads that share it."""
    # with a causal edge the first keys of a sequence are seen by most rows, and they come first already
    sequence, first_key, k_start, len_k = locate(
        cu_k, tile_map, tl.program_id(0), num_sequences, total_k, BLOCK_N, HAS_MAP
    )
    if (first_key < 0) | (first_key >= len_k):
        return
    kv_head = tl.program_id(1).to(tl.int64)
    q_start, len_q = segment(cu_q, sequence, num_sequences, total_q)

    cols = first_key + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    dims_v = tl.arange(0, BLOCK_DV)
    mask = (cols[:, None] < len_k) & (dims[None, :] < D)
    mask_v = (cols[:, None] < len_k) & (dims_v[None, :] < DV)
    keys = k_start + cols[:, None]
    # [BLOCK_N, BLOCK_D], [BLOCK_N, BLOCK_DV]
    k_tile = tl.load(k + keys * stride_kt + kv_head * stride_kh + dims[None, :], mask=mask, other=0.0)
    v_tile = tl.load(v + keys * stride_vt + kv_head * stride_vh + dims_v[None, :], mask=mask_v, other=0.0)
    if HAS_BIAS:
        bias += sequence.to(tl.int64) * stride_bb
        bias_rows = tl.minimum(bias_rows, len_q)
        bias_cols = tl.minimum(bias_cols, len_k)

    # rows [begin, end) see some key of the tile, rows [full_begin, full_end) all of them
    diagonal = len_k - len_q
    begin = 0
    full_begin = 0
    end = len_q
    full_end = len_q
    if HAS_RIGHT:
        begin = tl.minimum(tl.maximum(first_key - diagonal - window_right, 0), len_q)
        full_begin = tl.minimum(tl.maximum(first_key + BLOCK_N - 1 - diagonal - window_right, 0), len_q)
    if HAS_LEFT:
        last_key = tl.minimum(first_key + BLOCK_N, len_k) - 1
        end = tl.minimum(tl.maximum(last_key - diagonal + window_left + 1, 0), len_q)
        full_end = tl.minimum(tl.maximum(first_key - diagonal + window_left + 1, 0), len_q)
    begin = (begin // BLOCK_M) * BLOCK_M
    full_begin = ((full_begin + BLOCK_M - 1) // BLOCK_M) * BLOCK_M
    full_end = tl.maximum((full_end // BLOCK_M) * BLOCK_M, full_begin)

    dk_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    scale_log2 = tl.full([], scale * LOG2E, tl.float32)
    seed_low = 0
    seed_high = 0
    if DROPOUT:
        seed_low, seed_high = dropout_words(seed)
    for member in range(group):
        head = kv_head * group + member
        q_head = q + q_start * stride_qt + head * stride_qh
        g_head = grad_out + q_start * stride_gt + head * stride_gh
        bias_head = bias
        if HAS_BIAS:
            bias_head = bias + head * stride_bh
        log_sum_head = log_sum + head * total_q + q_start
        delta_head = delta + head * total_q + q_start
        if HAS_RIGHT:
            dk_acc, dv_acc = _fold_rows(
                dk_acc, dv_acc, k_tile, v_tile, q_head, g_head, bias_head, log_sum_head, delta_head,
                begin, tl.minimum(full_begin, end), cols, len_q, len_k, bias_rows, bias_cols, window_left, window_right,
                stride_qt, stride_gt, stride_bm, stride_bn, scale_log2, sequence, head, seed_low, seed_high, threshold,
                factor, D, DV, BLOCK_D, BLOCK_DV, BLOCK_M, HAS_BIAS, HAS_LEFT, HAS_RIGHT, DROPOUT, PRECISION, True,
            )  # fmt: skip
        dk_acc, dv_acc = _fold_rows(
            dk_acc, dv_acc, k_tile, v_tile, q_head, g_head, bias_head, log_sum_head, delta_head,
            full_begin, full_end, cols, len_q, len_k, bias_rows, bias_cols, window_left, window_right,
            stride_qt, stride_gt, stride_bm, stride_bn, scale_log2, sequence, head, seed_low, seed_high, threshold,
            factor, D, DV, BLOCK_D, BLOCK_DV, BLOCK_M, HAS_BIAS, HAS_LEFT, HAS_RIGHT, DROPOUT, PRECISION, False,
        )  # fmt: skip
        dk_acc, dv_acc = _fold_rows(
            dk_acc, dv_acc, k_tile, v_tile, q_head, g_head, bias_head, log_sum_head, delta_head,
            full_end, end, cols, len_q, len_k, bias_rows, bias_cols, window_left, window_right,
            stride_qt, stride_gt, stride_bm, stride_bn, scale_log2, sequence, head, seed_low, seed_high, threshold,
            factor, D, DV, BLOCK_D, BLOCK_DV, BLOCK_M, HAS_BIAS, HAS_LEFT, HAS_RIGHT, DROPOUT, PRECISION, True,
        )  # fmt: skip

    # dk and dv are contiguous [total_k, key heads, D or DV]
    slot = keys * tl.num_programs(1) + kv_head
    dk_acc *= tl.full([], scale, tl.float32)
    tl.store(dk + slot * D + dims[None, :], dk_acc.to(dk.dtype.element_ty), mask=mask)
    tl.store(dv + slot * DV + dims_v[None, :], dv_acc.to(dv.dtype.element_ty), mask=mask_v)


# fmt: off
@triton.jit
def _fold_keys(
    acc, q_tile, g_tile, row_log_sum, row_delta, k, v, bias, first, stop, rows, lowest, highest, len_k, bias_rows,
    bias_cols, stride_kt, stride_vt, stride_bm, stride_bn, scale_log2, row_state, threshold, factor,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_BIAS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):
    # fmt: on
    """Add `dS k` of the keys `[first, stop)` to dq."""
    dims = tl.arange(0, BLOCK_D)
    dims_v = tl.arange(0, BLOCK_DV)
    for n in range(first, stop, BLOCK_N):
        cols = n + tl.arange(0, BLOCK_N)
        wide = cols.to(tl.int64)
        k_ptrs = k + wide[:, None] * stride_kt + dims[None, :]
        v_ptrs = v + wide[:, None] * stride_vt + dims_v[None, :]
        # [BLOCK_N, BLOCK_D], [BLOCK_N, BLOCK_DV]
        if MASKED:
            k_tile = tl.load(k_ptrs, mask=(cols[:, None] < len_k) & (dims[None, :] < D), other=0.0)
            v_tile = tl.load(v_ptrs, mask=(cols[:, None] < len_k) & (dims_v[None, :] < DV), other=0.0)
        else:
            k_tile = tl.load(k_ptrs, mask=dims[None, :] < D, other=0.0) if BLOCK_D != D else tl.load(k_ptrs)
            v_tile = tl.load(v_ptrs, mask=dims_v[None, :] < DV, other=0.0) if BLOCK_DV != DV else tl.load(v_ptrs)
        # [BLOCK_M, BLOCK_N], in units of log 2
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale_log2
        if HAS_BIAS:
            b_ptrs = bias + rows[:, None].to(tl.int64) * stride_bm + wide[None, :] * stride_bn
            seen = (rows[:, None] < bias_rows) & (cols[None, :] < bias_cols)
            scores += tl.load(b_ptrs, mask=seen, other=0.0).to(tl.float32) * LOG2E
        weights = tl.exp2(scores - row_log_sum[:, None])
        dweights = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        if DROPOUT:
            dweights *= dropout_factors(row_state[:, None], cols[None, :], threshold, factor)
        dscores = weights * (dweights - row_delta[:, None])
        if MASKED:
            allowed = (cols[None, :] >= lowest[:, None]) & (cols[None, :] < highest[:, None])
            dscores = tl.where(allowed, dscores, 0.0)
        acc = tl.dot(dscores.to(k_tile.dtype), k_tile, acc, input_precision=PRECISION)
    return acc


# fmt: off
@triton.jit(
    launch_metadata=traffic("ragged_attention_bwd_queries", "q", "k", "v", "grad_out", "dq"),
    do_not_specialize=["num_sequences", "total_q", "total_k", "group", "bias_rows", "bias_cols", "window_left",
                       "window_right", "threshold"],
)
def _ragged_attention_bwd_queries_kernel(
    q, k, v, bias, grad_out, log_sum, delta, dq, cu_q, cu_k, tile_map,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_gt, stride_gh,
    stride_bb, stride_bh, stride_bm, stride_bn,
    num_sequences, total_q, total_k, group, bias_rows, bias_cols, scale, window_left, window_right,
    seed, threshold, factor,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_MAP: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    # fmt: on
    """dq of one tile of query rows of one head."""
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    if HAS_RIGHT and not HAS_MAP:
        # with a causal edge the last rows of a sequence have most keys: issue them first
        tile = tl.num_programs(0) - 1 - tile
    sequence, first_row, q_start, len_q = locate(cu_q, tile_map, tile, num_sequences, total_q, BLOCK_M, HAS_MAP)
    if (first_row < 0) | (first_row >= len_q):
        return
    k_start, len_k = segment(cu_k, sequence, num_sequences, total_k)

    rows = first_row + tl.arange(0, BLOCK_M)
    last_row = tl.minimum(first_row + BLOCK_M, len_q) - 1
    dims = tl.arange(0, BLOCK_D)
    dims_v = tl.arange(0, BLOCK_DV)
    inside = rows < len_q
    mask = inside[:, None] & (dims[None, :] < D)
    mask_v = inside[:, None] & (dims_v[None, :] < DV)
    queries = q_start + rows[:, None]
    # [BLOCK_M, BLOCK_D], [BLOCK_M, BLOCK_DV], [BLOCK_M]
    q_tile = tl.load(q + queries * stride_qt + head * stride_qh + dims[None, :], mask=mask, other=0.0)
    g_tile = tl.load(grad_out + queries * stride_gt + head * stride_gh + dims_v[None, :], mask=mask_v, other=0.0)
    row_log_sum = tl.load(log_sum + head * total_q + q_start + rows, mask=inside, other=float("inf"))
    row_delta = tl.load(delta + head * total_q + q_start + rows, mask=inside, other=0.0)
    kv_head = head // group
    k += k_start * stride_kt + kv_head * stride_kh
    v += k_start * stride_vt + kv_head * stride_vh
    if HAS_BIAS:
        bias += sequence.to(tl.int64) * stride_bb + head * stride_bh
        bias_rows = tl.minimum(bias_rows, len_q)
        bias_cols = tl.minimum(bias_cols, len_k)

    # row i sees the keys [lowest, highest), as in the forward kernel
    diagonal = len_k - len_q
    lowest = tl.zeros([BLOCK_M], tl.int32)
    highest = tl.zeros([BLOCK_M], tl.int32) + len_k
    begin = 0
    full_begin = 0
    end = len_k
    full_end = len_k
    if HAS_LEFT:
        lowest = tl.maximum(rows + diagonal - window_left, 0)
        begin = tl.maximum(first_row + diagonal - window_left, 0)
        full_begin = tl.maximum(last_row + diagonal - window_left, 0)
    if HAS_RIGHT:
        highest = tl.minimum(rows + diagonal + window_right + 1, len_k)
        end = tl.maximum(tl.minimum(last_row + diagonal + window_right + 1, len_k), 0)
        full_end = tl.maximum(tl.minimum(first_row + diagonal + window_right + 1, len_k), 0)
    begin = (begin // BLOCK_N) * BLOCK_N
    full_begin = ((full_begin + BLOCK_N - 1) // BLOCK_N) * BLOCK_N
    full_end = tl.maximum((full_end // BLOCK_N) * BLOCK_N, full_begin)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    scale_log2 = tl.full([], scale * LOG2E, tl.float32)
    row_state = rows
    if DROPOUT:
        seed_low, seed_high = dropout_words(seed)
        row_state = dropout_rows(seed_low, seed_high, sequence, head, rows)
    if HAS_LEFT:
        acc = _fold_keys(
            acc, q_tile, g_tile, row_log_sum, row_delta, k, v, bias, begin, tl.minimum(full_begin, end), rows, lowest,
            highest, len_k, bias_rows, bias_cols, stride_kt, stride_vt, stride_bm, stride_bn, scale_log2,
            row_state, threshold, factor, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, HAS_BIAS, DROPOUT, PRECISION, True,
        )  # fmt: skip
    acc = _fold_keys(
        acc, q_tile, g_tile, row_log_sum, row_delta, k, v, bias, full_begin, full_end, rows, lowest,
        highest, len_k, bias_rows, bias_cols, stride_kt, stride_vt, stride_bm, stride_bn, scale_log2,
        row_state, threshold, factor, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, HAS_BIAS, DROPOUT, PRECISION, False,
    )  # fmt: skip
    acc = _fold_keys(
        acc, q_tile, g_tile, row_log_sum, row_delta, k, v, bias, full_end, end, rows, lowest,
        highest, len_k, bias_rows, bias_cols, stride_kt, stride_vt, stride_bm, stride_bn, scale_log2,
        row_state, threshold, factor, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, HAS_BIAS, DROPOUT, PRECISION, True,
    )  # fmt: skip
    # dq is contiguous [total_q, heads, D]
    acc *= tl.full([], scale, tl.float32)
    slot = queries * tl.num_programs(1) + head
    tl.store(dq + slot * D + dims[None, :], acc.to(dq.dtype.element_ty), mask=mask)


def ragged_attention_bwd(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    dropout_p: float = 0.0,
    seed: torch.Tensor | None = None,
    *,
    precision: str = "ieee",
    tile_map_q: torch.Tensor | None = None,
    tile_map_k: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `ragged_attention_fwd`, without a device-to-host copy and without atomics.

    The caller has checked the arguments; `grad_out`, `q`, `k`, `v` and `out` need last stride 1.

    Args:
        grad_out: `[Tq, Hq, Dv]`, dtype of q, any strides but the last.
        grad_lse: `[Tq, Hq]`, any strides, or `None`.
        q, k, v, cu_q, cu_k, bias, scale, causal, window_left, window_right, dropout_p, seed: as given to the forward.
        out, lse: what the forward returned.
        precision: as in the forward.
        tile_map_q, tile_map_k: `attention_tile_map` for the row tiles and the key tiles of `attention_bwd_config`.

    Returns:
        dq, dk, dv in the shapes and dtype of q, k, v; dbias like bias, summed over its broadcast dimensions, or an
        empty float32 tensor without a bias. Rows and keys of no pair get 0.
    """
    total_q, num_heads, head_size = q.shape
    total_k, kv_heads, head_size_v = v.shape
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    dbias = torch.zeros(0, dtype=torch.float32, device=q.device)
    if total_q == 0 or total_k == 0 or num_heads == 0:
        dbias = dbias if bias is None else torch.zeros(bias.shape, dtype=bias.dtype, device=bias.device)
        return dq.zero_(), dk.zero_(), dv.zero_(), dbias
    if causal:
        window_right = 0 if window_right < 0 else min(window_right, 0)
    window_left = -1 if window_left >= WIDEST_WINDOW else window_left
    window_right = -1 if window_right >= WIDEST_WINDOW else window_right
    num_sequences = cu_q.shape[0] - 1
    arch = architecture(q.device)
    by_key, by_row = attention_bwd_config(q.dtype, head_size, head_size_v, has_bias=bias is not None, arch=arch)
    log_sum = torch.empty(num_heads, total_q, dtype=torch.float32, device=q.device)
    delta = torch.empty(num_heads, total_q, dtype=torch.float32, device=q.device)
    bias_strides, bias_rows, bias_cols = bias_arguments(bias)
    strides = (
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        grad_out.stride(0), grad_out.stride(1), *bias_strides,
    )  # fmt: skip
    sizes = (
        num_sequences, total_q, total_k, num_heads // max(kv_heads, 1), bias_rows, bias_cols, float(scale),
        window_left, window_right, *dropout_arguments(dropout_p, seed),
    )  # fmt: skip
    constants = {
        "D": head_size,
        "DV": head_size_v,
        "HAS_LEFT": window_left >= 0,
        "HAS_RIGHT": window_right >= 0,
        "DROPOUT": dropout_p > 0,
        "PRECISION": precision,
    }
    with on_device(q):
        grad_strides = (0, 0) if grad_lse is None else grad_lse.stride()
        block_r = max(min(4096 // by_row.block_dv, 64), 1)
        _ragged_attention_bwd_rows_kernel[(triton.cdiv(total_q, block_r), num_heads)](
            out, grad_out, lse, grad_lse, log_sum, delta, out.stride(0), out.stride(1), grad_out.stride(0),
            grad_out.stride(1), *lse.stride(), *grad_strides, total_q, DV=head_size_v, BLOCK_DV=by_row.block_dv,
            HAS_GRAD_LSE=grad_lse is not None, BLOCK_R=block_r, num_warps=4,
        )  # fmt: skip
        num_tiles = total_k // by_key.block_n + num_sequences + 1 if tile_map_k is None else tile_map_k.shape[0]
        _ragged_attention_bwd_keys_kernel[(num_tiles, kv_heads)](
            q, k, v, bias, grad_out, log_sum, delta, dk, dv, cu_q, cu_k, tile_map_k, *strides, *sizes,
            HAS_BIAS=bias is not None, HAS_MAP=tile_map_k is not None, **constants, **by_key.launch_bwd(),
        )  # fmt: skip
        num_tiles = total_q // by_row.block_m + num_sequences + 1 if tile_map_q is None else tile_map_q.shape[0]
        _ragged_attention_bwd_queries_kernel[(num_tiles, num_heads)](
            q, k, v, bias, grad_out, log_sum, delta, dq, cu_q, cu_k, tile_map_q, *strides, *sizes,
            HAS_BIAS=bias is not None, HAS_MAP=tile_map_q is not None, **constants, **by_row.launch_bwd(),
        )  # fmt: skip
        if bias is not None:
            dbias = bias_gradient(
                (q, k, v, bias, grad_out, log_sum, delta), (cu_q, cu_k), strides, sizes, constants, by_row
            )
    return dq, dk, dv, dbias
