# SPDX-License-Identifier: Apache-2.0
"""The attention kernel against the float64 twin, in the interpreter (float32 and float16; bfloat16 is wrong there)."""

import pytest
import torch

from edgeops.ragged._reference import attention_scores_reference, ragged_attention_fwd_reference
from edgeops.triton_kernels.ragged.attention import attention_tile_map, ragged_attention_fwd
from edgeops.triton_kernels.ragged.attention_config import attention_config
from tests.budget import assert_within_budget
from tests.peers import offsets_of

# row tile of float32 with head sizes up to 64; the edges below are chosen round it
TILE = attention_config(torch.float32, 32, 32).block_m
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])


def inputs(lengths_q, lengths_k, dtype, heads=2, kv_heads=2, head_size=16, head_size_v=None):
    """q, k, v as slices of larger NaN-filled buffers: strides are never the default."""

    def cut(rows, count, width):
        buffer = torch.full((rows + 3, count + 1, width + 5), float("nan"), dtype=dtype)
        buffer[:rows, :count, :width] = torch.randn(rows, count, width).to(dtype)
        return buffer[:rows, :count, :width]

    rows_q, rows_k = sum(lengths_q), sum(lengths_k)
    return (
        cut(rows_q, heads, head_size),
        cut(rows_k, kv_heads, head_size),
        cut(rows_k, kv_heads, head_size_v or head_size),
    )


def same_dtype(q, k, v, cu_q, cu_k, bias, scale, causal, left, right):
    """Attention as plain torch writes it, every intermediate in the dtype of q: what the error is measured against."""
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype)
    for b in range(len(cu_q) - 1):
        rows, keys = slice(*cu_q[b : b + 2].tolist()), slice(*cu_k[b : b + 2].tolist())
        lq, lk = rows.stop - rows.start, keys.stop - keys.start
        if lq == 0 or lk == 0:
            continue
        part = None
        if bias is not None:
            part = bias[b if bias.shape[0] > 1 else 0][:, :lq, :lk].to(q.dtype)
        scores = attention_scores_reference(q[rows], k[keys], part, scale, causal, (left, right))
        weights = torch.softmax(scores, -1).nan_to_num(0.0)
        values = v[keys].repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        out[rows] = torch.einsum("hij,jhd->ihd", weights, values)
    return out


def check(q, k, v, cu_q, cu_k, *, bias=None, scale=0.3, causal=False, window=(-1, -1)):
    arguments = (cu_q, cu_k, bias, scale, causal, *window)
    out, lse = ragged_attention_fwd(q, k, v, *arguments)
    wide = (cu_q, cu_k, None if bias is None else bias.double(), scale, causal, *window)
    exact, exact_lse = ragged_attention_fwd_reference(q.double(), k.double(), v.double(), *wide)
    assert out.shape == exact.shape
    assert out.dtype == q.dtype
    assert lse.dtype == torch.float32
    if out.numel():
        assert_within_budget("out", out, same_dtype(q, k, v, *arguments), exact)
    assert torch.equal(lse == -torch.inf, exact_lse == -torch.inf)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)
    assert (out[exact_lse == -torch.inf] == 0).all()
    return out, lse


LENGTHS = {
    "edges": [0, 1, TILE - 1, TILE, TILE + 1, 0],
    "one long among empty": [0, 0, 3 * TILE + 5, 0],
    "one row": [1],
    "primes": [2, 3, 5, 7, 11],
    "all empty": [0, 0, 0],
    "no sequence": [],
}


@DTYPES
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_lengths(lengths, causal, dtype):
    q, k, v = inputs(lengths, lengths, dtype, heads=1, kv_heads=1)
    check(q, k, v, offsets_of(lengths), offsets_of(lengths), causal=causal)


@pytest.mark.parametrize(
    ("head_size", "head_size_v"), [(1, 1), (20, 7), (32, 64), (80, 80), (64, 1), (130, 16), (16, 300)]
)
def test_head_sizes(head_size, head_size_v):
    q, k, v = inputs([5, 0, 33], [7, 3, 18], torch.float32, 1, 1, head_size, head_size_v)
    check(q, k, v, offsets_of([5, 0, 33]), offsets_of([7, 3, 18]), causal=True)


CROSS = [3, 0, 40, 6], [9, 4, 70, 0]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("window", [(-1, -1), (0, 0), (5, 3), (0, -1), (-1, 2), (33, 0), (2**31 - 1, 2**31 - 1)])
def test_cross_lengths_and_windows(window, causal):
    q, k, v = inputs(*CROSS, torch.float32, heads=1, kv_heads=1)
    check(q, k, v, offsets_of(CROSS[0]), offsets_of(CROSS[1]), causal=causal, window=window)


@DTYPES
def test_window_with_an_unmasked_part(dtype):
    lengths = [4 * TILE]
    q, k, v = inputs(lengths, lengths, dtype, 1, 1)
    check(q, k, v, offsets_of(lengths), offsets_of(lengths), window=(2 * TILE, TILE))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_queries(kv_heads):
    q, k, v = inputs([4, 10], [6, 3], torch.float32, heads=4, kv_heads=kv_heads)
    check(q, k, v, offsets_of([4, 10]), offsets_of([6, 3]))


BROADCASTS = [(1, 1, 1, 1), (3, 1, 1, 1), (1, 2, 1, 1), (1, 1, 40, 1), (1, 1, 1, 35), (3, 2, 40, 35), (1, 2, 40, 35)]


@pytest.mark.parametrize("shape", BROADCASTS, ids=str)
def test_bias_broadcasts(shape):
    lengths_q, lengths_k = [40, 0, 8], [12, 5, 35]
    q, k, v = inputs(lengths_q, lengths_k, torch.float32)
    check(q, k, v, offsets_of(lengths_q), offsets_of(lengths_k), bias=torch.randn(shape), causal=True)


@DTYPES
def test_bias_of_minus_infinity_hides_keys(dtype):
    q, k, v = inputs([9], [12], dtype)
    bias = torch.zeros(1, 1, 9, 12)
    bias[..., 3, :] = -torch.inf
    bias[..., 5:] = -torch.inf
    out, lse = check(q, k, v, offsets_of([9]), offsets_of([12]), bias=bias.to(dtype))
    assert (lse[3] == -torch.inf).all()
    assert (out[3] == 0).all()


def test_strided_bias():
    q, k, v = inputs([9], [12], torch.float32)
    check(q, k, v, offsets_of([9]), offsets_of([12]), bias=torch.randn(12, 9, 2, 1).permute(3, 2, 1, 0))


@DTYPES
def test_fused_projection_is_read_in_place(dtype):
    lengths = [5, 30]
    qkv = torch.randn(35, 3, 2, 16).to(dtype)
    check(*qkv.unbind(1), offsets_of(lengths), offsets_of(lengths))


def test_expanded_keys():
    q = torch.randn(5, 4, 16)
    k = torch.randn(7, 1, 16).expand(7, 4, 16)
    check(q, k, k, offsets_of([5]), offsets_of([7]))


def test_offsets_of_both_widths_give_the_same():
    q, k, v = inputs([3, 5], [4, 4], torch.float32)
    narrow = ragged_attention_fwd(
        q, k, v, offsets_of([3, 5], torch.int32), offsets_of([4, 4], torch.int32), None, 0.3, False, -1, -1
    )
    wide = offsets_of([3, 5]), offsets_of([4, 4])
    for a, b in zip(narrow, ragged_attention_fwd(q, k, v, *wide, None, 0.3, False, -1, -1), strict=True):
        assert torch.equal(a, b)


def test_nan_stays_in_its_sequence():
    lengths = [TILE + 1, 7, 40]
    q, k, v = (x.contiguous() for x in inputs(lengths, lengths, torch.float32, 1, 1))
    clean, _ = ragged_attention_fwd(q, k, v, offsets_of(lengths), offsets_of(lengths), None, 0.3, False, -1, -1)
    for x in (q, k, v):
        x[TILE + 1 : TILE + 8] = float("nan")
    out, _ = ragged_attention_fwd(q, k, v, offsets_of(lengths), offsets_of(lengths), None, 0.3, False, -1, -1)
    assert torch.equal(out[: TILE + 1], clean[: TILE + 1])
    assert torch.equal(out[TILE + 8 :], clean[TILE + 8 :])
    assert out[TILE + 1 : TILE + 8].isnan().all()


def test_result_does_not_depend_on_the_rest_of_the_batch():
    lengths = [13, TILE + 2, 0, 50]
    q, k, v = (x.contiguous() for x in inputs(lengths, lengths, torch.float32, 1, 1))
    out, lse = ragged_attention_fwd(q, k, v, offsets_of(lengths), offsets_of(lengths), None, 0.3, True, -1, -1)
    rows = slice(13, 13 + TILE + 2)
    alone = offsets_of([TILE + 2])
    out1, lse1 = ragged_attention_fwd(q[rows], k[rows], v[rows], alone, alone, None, 0.3, True, -1, -1)
    assert torch.equal(out[rows], out1)
    assert torch.equal(lse[rows], lse1)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_tile_map_gives_the_same(causal):
    lengths = [5, 0, 2 * TILE + 1, TILE]
    q, k, v = inputs(lengths, lengths, torch.float32, 1, 1)
    arguments = (q, k, v, offsets_of(lengths), offsets_of(lengths), None, 0.3, causal, -1, -1)
    config = attention_config(torch.float32, 16, 16)
    tiles = attention_tile_map(lengths, lengths, config, causal=causal)
    assert sorted(tiles.tolist()) == [[0, 0], [2, 0], [2, 1], [2, 2], [3, 0]]
    assert tiles[0].tolist() == [2, 2] if causal else tiles[0, 0] == 2
    for a, b in zip(ragged_attention_fwd(*arguments), ragged_attention_fwd(*arguments, tile_map=tiles), strict=True):
        assert torch.equal(a, b)


def test_rows_of_no_sequence_are_empty_rows():
    q, k, v = inputs([TILE + 40], [20], torch.float32, 1, 1)
    out, lse = ragged_attention_fwd(q, k, v, offsets_of([9, 3]), offsets_of([12, 8]), None, 0.3, False, -1, -1)
    assert (out[12:] == 0).all()
    assert (lse[12:] == -torch.inf).all()
    assert out[:12].isfinite().all()


@pytest.mark.parametrize("wrong", [[0, 500, 900], [0, 7, 2], [-5, 3, 10], [8, 2, 0], [0, 2**40, 2**41], [3, 3, 3]])
def test_wrong_offsets_never_reach_outside(wrong):
    q, k, v = inputs([10], [10], torch.float32, 1, 1)
    good, bad = offsets_of([6, 4]), torch.tensor(wrong)
    for cu_q, cu_k in ((bad, good), (good, bad), (bad, bad)):
        out, _ = ragged_attention_fwd(q, k, v, cu_q, cu_k, torch.randn(2, 1, 10, 10), 0.3, True, -1, -1)
        assert out.shape == (10, 1, 16)
