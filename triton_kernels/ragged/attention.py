# SPDX-License-Identifier: Apache-2.0
"""Forward attention over packed sequences (ragged spec, sections 3.3, 3.5 and 12.1).

    O_i = sum_j softmax_j(scale q_i.k_j + bias_ij) v_j     over the keys j that row i may see

One program owns one tile of `BLOCK_M` query rows of one head and walks the keys of that sequence with a running maximum
and sum. The grid is sized from shapes alone, so nothing is read back from the GPU (`segments.py`). A tile map fixes the
order of issue too. Dropout removes weights after the softmax: the sum and the log-sum-exp are those of all scores.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from .attention_config import TileConfig, architecture, attention_config, chosen, tune
from .dropout import dropout_arguments, dropout_factors, dropout_rows, dropout_words
from .launch import bias_arguments, on_device, tuning_wanted
from .segments import LN2, LOG2E, WIDEST_WINDOW, locate, segment

__all__ = ["attention_tile_map", "ragged_attention_fwd"]


def _attention_metadata(grid: Any, kernel: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Flops and bytes of one launch. Called only while a profiler listens: then reading offsets back is fine."""
    q, k, v, out = args["q"], args["k"], args["v"], args["out"]
    lengths_q, lengths_k = args["cu_q"].diff().double(), args["cu_k"].diff().double()
    pairs = float((lengths_q * lengths_k).sum())
    if args["HAS_RIGHT"] and args["window_right"] == 0 and not args["HAS_LEFT"]:
        pairs -= float((lengths_q * (lengths_q - 1) / 2).sum())
    moved = sum(t.numel() * t.element_size() for t in (q, k, v, out))
    return {
        "name": f"ragged_attention_fwd_{str(q.dtype).removeprefix('torch.')}_d{args['D']}",
        "flops": 2.0 * q.shape[1] * (args["D"] + args["DV"]) * pairs,
        "bytes": moved,
    }


# fmt: off
@triton.jit
def _attend(
    acc, row_max, row_sum, q_tile, k, v, bias, first, stop, rows, lowest, highest, len_k, bias_rows, bias_cols,
    stride_kt, stride_vt, stride_bm, stride_bn, scale_log2, row_state, threshold, factor,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_BIAS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):
    # fmt: on
    """Fold the keys `[first, stop)` into the running softmax. Only with `MASKED` may a key be out of reach of a row."""
    dims = tl.arange(0, BLOCK_D)
    dims_v = tl.arange(0, BLOCK_DV)
    keys = tl.arange(0, BLOCK_N)
    k_offsets = keys[None, :].to(tl.int64) * stride_kt + dims[:, None]
    v_offsets = keys[:, None].to(tl.int64) * stride_vt + dims_v[None, :]
    if HAS_BIAS:
        bias_row = bias + rows[:, None].to(tl.int64) * stride_bm
    for n in range(first, stop, BLOCK_N):
        cols = n + keys
        k_ptrs = k + tl.cast(n, tl.int64) * stride_kt + k_offsets
        v_ptrs = v + tl.cast(n, tl.int64) * stride_vt + v_offsets
        # [BLOCK_D, BLOCK_N]
        if MASKED:
            k_tile = tl.load(k_ptrs, mask=(cols[None, :] < len_k) & (dims[:, None] < D), other=0.0)
        elif BLOCK_D != D:
            k_tile = tl.load(k_ptrs, mask=dims[:, None] < D, other=0.0)
        else:
            k_tile = tl.load(k_ptrs)
        # [BLOCK_M, BLOCK_N], in units of log 2
        scores = tl.dot(q_tile, k_tile, input_precision=PRECISION) * scale_log2
        if HAS_BIAS:
            b_ptrs = bias_row + cols[None, :].to(tl.int64) * stride_bn
            seen = (rows[:, None] < bias_rows) & (cols[None, :] < bias_cols)
            scores += tl.load(b_ptrs, mask=seen, other=0.0).to(tl.float32) * LOG2E
        if MASKED:
            allowed = (cols[None, :] >= lowest[:, None]) & (cols[None, :] < highest[:, None])
            scores = tl.where(allowed, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        if MASKED or HAS_BIAS:
            # a row that has seen no key keeps -inf; subtracting it from itself would give NaN
            shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        else:
            shift = new_max
        rescale = tl.exp2(row_max - shift)
        weights = tl.exp2(scores - shift[:, None])
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        row_max = new_max
        # [BLOCK_N, BLOCK_DV]
        if MASKED:
            v_tile = tl.load(v_ptrs, mask=(cols[:, None] < len_k) & (dims_v[None, :] < DV), other=0.0)
        elif BLOCK_DV != DV:
            v_tile = tl.load(v_ptrs, mask=dims_v[None, :] < DV, other=0.0)
        else:
            v_tile = tl.load(v_ptrs)
        if DROPOUT:
            weights *= dropout_factors(row_state[:, None], cols[None, :], threshold, factor)
        acc = acc * rescale[:, None]
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc, input_precision=PRECISION)
    return acc, row_max, row_sum


# fmt: off
@triton.jit(
    launch_metadata=_attention_metadata,
    # values that change from batch to batch must not make new kernels
    do_not_specialize=["num_sequences", "total_q", "total_k", "group", "bias_rows", "bias_cols", "window_left",
                       "window_right", "length_bucket", "threshold"],
)
def _ragged_attention_fwd_kernel(
    q, k, v, bias, out, lse, cu_q, cu_k, tile_map,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_bb, stride_bh, stride_bm, stride_bn,
    stride_ot, stride_oh, stride_lt,
    num_sequences, total_q, total_k, group, bias_rows, bias_cols, scale, window_left, window_right, length_bucket,
    seed, threshold, factor,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_MAP: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    # fmt: on
    """O = softmax(scale q k^T + bias) v and its log-sum-exp, one tile of query rows of one head per program."""
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    if HAS_RIGHT and not HAS_MAP:
        # with a causal edge the last rows of a sequence have most keys: issue them first
        tile = tl.num_programs(0) - 1 - tile
    # rows after the last sequence are written as rows without keys
    sequence, first_row, q_start, len_q = locate(cu_q, tile_map, tile, num_sequences, total_q, BLOCK_M, HAS_MAP)
    if (first_row < 0) | (first_row >= len_q):
        return
    k_start, len_k = segment(cu_k, sequence, num_sequences, total_k)

    rows = first_row + tl.arange(0, BLOCK_M)
    last_row = tl.minimum(first_row + BLOCK_M, len_q) - 1
    dims = tl.arange(0, BLOCK_D)
    dims_v = tl.arange(0, BLOCK_DV)
    kv_head = head // group
    # [BLOCK_M, BLOCK_D]
    q_ptrs = q + (q_start + rows[:, None]) * stride_qt + head * stride_qh + dims[None, :]
    q_tile = tl.load(q_ptrs, mask=(rows[:, None] < len_q) & (dims[None, :] < D), other=0.0)
    k += k_start * stride_kt + kv_head * stride_kh
    v += k_start * stride_vt + kv_head * stride_vh
    if HAS_BIAS:
        bias += sequence.to(tl.int64) * stride_bb + head * stride_bh
        bias_rows = tl.minimum(bias_rows, len_q)
        bias_cols = tl.minimum(bias_cols, len_k)

    # row i sees the keys [lowest, highest); the diagonal ends in the last row and the last key
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

    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    # pinned: a compiler that passes Python floats as float64 would drag the scores along
    scale_log2 = tl.full([], scale * LOG2E, tl.float32)
    row_state = rows
    if DROPOUT:
        seed_low, seed_high = dropout_words(seed)
        row_state = dropout_rows(seed_low, seed_high, sequence, head, rows)
    if HAS_LEFT:
        acc, row_max, row_sum = _attend(
            acc, row_max, row_sum, q_tile, k, v, bias, begin, tl.minimum(full_begin, end), rows, lowest, highest, len_k,
            bias_rows, bias_cols, stride_kt, stride_vt, stride_bm, stride_bn, scale_log2,
            row_state, threshold, factor, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, HAS_BIAS, DROPOUT, PRECISION, True,
        )  # fmt: skip
    acc, row_max, row_sum = _attend(
        acc, row_max, row_sum, q_tile, k, v, bias, full_begin, full_end, rows, lowest, highest, len_k,
        bias_rows, bias_cols, stride_kt, stride_vt, stride_bm, stride_bn, scale_log2,
        row_state, threshold, factor, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, HAS_BIAS, DROPOUT, PRECISION, False,
    )  # fmt: skip
    acc, row_max, row_sum = _attend(
        acc, row_max, row_sum, q_tile, k, v, bias, full_end, end, rows, lowest, highest, len_k,
        bias_rows, bias_cols, stride_kt, stride_vt, stride_bm, stride_bn, scale_log2,
        row_state, threshold, factor, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, HAS_BIAS, DROPOUT, PRECISION, True,
    )  # fmt: skip

    empty = row_sum == 0.0
    safe_sum = tl.where(empty, 1.0, row_sum)
    result = acc / safe_sum[:, None]
    log_sum = tl.where(empty, float("-inf"), (row_max + tl.log2(safe_sum)) * LN2)
    o_ptrs = out + (q_start + rows[:, None]) * stride_ot + head * stride_oh + dims_v[None, :]
    tl.store(o_ptrs, result.to(out.dtype.element_ty), mask=(rows[:, None] < len_q) & (dims_v[None, :] < DV))
    tl.store(lse + (q_start + rows) * stride_lt + head, log_sum, mask=rows < len_q)


def ragged_attention_fwd(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
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
    tile_map: torch.Tensor | None = None,
    precision: str = "ieee",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention inside each packed sequence, in one launch and without a device-to-host copy.

    The caller has checked the arguments; strided `q`, `k`, `v` are read in place as long as their last stride is 1.

    Args:
        q: `[Tq, Hq, D]`, float32, float16 or bfloat16, `D <= 512`.
        k: `[Tk, Hk, D]`, same dtype; `Hq` is a multiple of `Hk`.
        v: `[Tk, Hk, Dv]`, same dtype, `Dv <= 512`.
        cu_q, cu_k: `[N + 1]` int32 or int64 offsets on the device of `q`.
        bias: `[N or 1, Hq or 1, Mq or 1, Mk or 1]` added to the scaled scores, or `None`.
        scale: factor of `q.k`.
        causal: row i sees keys up to `i + Lk - Lq`.
        window_left, window_right: how many keys before and after that diagonal a row sees; -1 = all.
        dropout_p: probability in [0, 1] that a weight is dropped; the others are scaled by `1 / (1 - dropout_p)`.
        seed: 0-dim int64 tensor on the device of `q`, chooses the weights that are dropped; read with dropout only.
        tile_map: result of `attention_tile_map` for these offsets and this head size, or `None`.
        precision: how float32 products are formed: "ieee" (fused multiply-add) or "tf32x3" (three tensor-core products,
            about as exact for values of like size). Ignored for float16 and bfloat16.

    Returns:
        `out [Tq, Hq, Dv]` in the dtype of `q`, and `lse [Tq, Hq]` float32. A row without keys gives 0 and -inf.
    """
    total_q, num_heads, head_size = q.shape
    head_size_v = v.shape[2]
    out = q.new_empty(total_q, num_heads, head_size_v)
    lse = torch.empty(total_q, num_heads, dtype=torch.float32, device=q.device)
    if out.numel() == 0 and lse.numel() == 0:
        return out, lse
    if causal:
        window_right = 0 if window_right < 0 else min(window_right, 0)
    window_left = -1 if window_left >= WIDEST_WINDOW else window_left
    window_right = -1 if window_right >= WIDEST_WINDOW else window_right
    num_sequences = cu_q.shape[0] - 1
    arch = architecture(q.device)
    config = attention_config(q.dtype, head_size, head_size_v, has_bias=bias is not None, arch=arch)
    num_tiles = tile_map.shape[0] if tile_map is not None else total_q // config.block_m + num_sequences + 1
    bias_strides, bias_rows, bias_cols = bias_arguments(bias)
    length_bucket = _length_bucket(total_q, num_sequences)
    arguments = (
        q, k, v, bias, out, lse, cu_q, cu_k, tile_map,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), *bias_strides,
        out.stride(0), out.stride(1), lse.stride(0),
        num_sequences, total_q, k.shape[0], num_heads // max(k.shape[1], 1), bias_rows, bias_cols,
        float(scale), window_left, window_right, length_bucket, *dropout_arguments(dropout_p, seed),
    )  # fmt: skip
    constants = {
        "D": head_size,
        "DV": head_size_v,
        "BLOCK_D": config.block_d,
        "BLOCK_DV": config.block_dv,
        "HAS_BIAS": bias is not None,
        "HAS_LEFT": window_left >= 0,
        "HAS_RIGHT": window_right >= 0,
        "HAS_MAP": tile_map is not None,
        "DROPOUT": dropout_p > 0,
        "PRECISION": precision,
        "BLOCK_M": config.block_m,
    }
    grid = (num_tiles, num_heads)
    # the kind of call holds no exact length, so the choice is made a few times only
    kind = (q.device, q.dtype, *constants.values(), length_bucket)
    with on_device(q):
        if kind not in chosen and tuning_wanted(q):
            chosen[kind] = tune(_ragged_attention_fwd_kernel, grid, arguments, constants)
        else:
            launch = chosen.get(kind) or config.launch()
            _ragged_attention_fwd_kernel[grid](*arguments, **constants, **launch)
    return out, lse


def _length_bucket(total: int, num_sequences: int) -> int:
    """Coarse class of the mean length, the only thing about a batch that may change the tuned configuration."""
    mean = total / max(num_sequences, 1)
    return 0 if mean <= 64 else 1 if mean <= 512 else 2


def attention_tile_map(
    lengths_q: list[int] | tuple[int, ...],
    lengths_k: list[int] | tuple[int, ...],
    config: TileConfig,
    *,
    causal: bool = False,
    by_key: bool = False,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """The (sequence, tile) pairs of one call, those with most work first (ragged spec, section 3.5).

    Args:
        lengths_q, lengths_k: query and key length of each sequence, on the host.
        config: `attention_config(...)` of the call, whose `block_m` cuts the rows.
        causal: count only the pairs at or before the diagonal.
        by_key: tiles of keys, cut by `block_n`, for the kernel that sums dk and dv.
        device: where the map is wanted.

    Returns:
        `[number of tiles, 2]` int32. Zero-length sequences have no tile.
    """
    tiles = []
    size = config.block_n if by_key else config.block_m
    for sequence, (rows, keys) in enumerate(zip(lengths_q, lengths_k, strict=True)):
        own, other = (keys, rows) if by_key else (rows, keys)
        for block in range(math.ceil(own / size)):
            # keys before the diagonal of the last row, rows after that of the first key
            seen = other - own + (own - block * size if by_key else min((block + 1) * size, own))
            tiles.append((-min(max(seen, 0), other) if causal else -other, sequence, block))
    tiles.sort()
    return torch.tensor([tile[1:] for tile in tiles], dtype=torch.int32, device=device).reshape(-1, 2)
