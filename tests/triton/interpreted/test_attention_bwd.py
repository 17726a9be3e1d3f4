# SPDX-License-Identifier: Apache-2.0
"""The backward kernels of attention, and dropout in both directions, against the float64 twins, in the interpreter."""

import pytest
import torch

from edgeops.ragged._reference import (
    dropout_keep_reference,
    ragged_attention_bwd_reference,
    ragged_attention_fwd_reference,
)
from edgeops.triton_kernels.ragged.attention import attention_tile_map, ragged_attention_fwd
from edgeops.triton_kernels.ragged.attention_bwd import ragged_attention_bwd
from edgeops.triton_kernels.ragged.attention_config import attention_bwd_config
from tests.peers import offsets_of

BY_KEY, BY_ROW = attention_bwd_config(torch.float32, 16, 16)
TILE = max(BY_KEY.block_m, BY_KEY.block_n, BY_ROW.block_m, BY_ROW.block_n)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
NAMES = ("dq", "dk", "dv", "dbias")
# largest error, as a share of the largest gradient
TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3}


def strided(rows, heads, width, dtype=torch.float32):
    """A slice of a larger NaN-filled buffer: strides are never the default."""
    buffer = torch.full((rows + 3, heads + 1, width + 5), float("nan"), dtype=dtype)
    buffer[:rows, :heads, :width] = torch.randn(rows, heads, width).to(dtype)
    return buffer[:rows, :heads, :width]


def inputs(lengths_q, lengths_k, dtype=torch.float32, heads=1, kv_heads=1, size=16, size_v=None):
    q = strided(sum(lengths_q), heads, size, dtype)
    return q, strided(sum(lengths_k), kv_heads, size, dtype), strided(sum(lengths_k), kv_heads, size_v or size, dtype)


def wide(x):
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def check(q, k, v, lengths_q, lengths_k, *, bias=None, causal=False, window=(-1, -1), dropout=(0.0, 0), with_lse=True):
    p, seed = dropout
    arguments = (offsets_of(lengths_q), offsets_of(lengths_k), bias, 0.3, causal, *window, p, torch.tensor(seed))
    out, lse = ragged_attention_fwd(q, k, v, *arguments)
    exact = ragged_attention_fwd_reference(*map(wide, (q, k, v, *arguments)))
    if out.numel():
        bound = TOLERANCE[q.dtype] * max(1.0, float(exact[0].abs().max()))
        assert float((out - exact[0]).abs().max()) <= bound, "out"
    grad_out = strided(*out.shape, q.dtype)
    grad_lse = torch.randn(lse.shape) if with_lse else None
    got = ragged_attention_bwd(grad_out, grad_lse, q, k, v, out, lse, *arguments)
    want = ragged_attention_bwd_reference(*map(wide, (grad_out, grad_lse, q, k, v, *exact, *arguments)))
    expected = (q.dtype, q.dtype, q.dtype, torch.float32 if bias is None else bias.dtype)
    for name, a, b, dtype in zip(NAMES, got, want, expected, strict=True):
        assert a.shape == b.shape, name
        assert a.dtype == dtype, name
        assert a.is_contiguous(), name
        if b.numel():
            # where a sum cancels, it may be off by a rounding of its terms, which are of the size of 1
            scale = max(float(b.abs().max()), 1.0)
            assert float((a.double() - b).abs().max()) <= TOLERANCE[q.dtype] * scale, name
    return got


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
    check(*inputs(lengths, lengths, dtype), lengths, lengths, causal=causal)


@pytest.mark.parametrize(("size", "size_v"), [(1, 1), (20, 7), (32, 64), (80, 80), (64, 1), (130, 16), (16, 300)])
def test_head_sizes(size, size_v):
    lengths = [5, 0, 33], [7, 3, 18]
    check(*inputs(*lengths, size=size, size_v=size_v), *lengths, causal=True)


CROSS = [3, 0, 40, 6], [9, 4, 70, 0]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("window", [(-1, -1), (0, 0), (5, 3), (0, -1), (-1, 2), (33, 0), (2**31 - 1, 2**31 - 1)])
def test_cross_lengths_and_windows(window, causal):
    check(*inputs(*CROSS), *CROSS, causal=causal, window=window)
    check(*inputs(*CROSS[::-1]), *CROSS[::-1], causal=causal, window=window)


def test_window_with_an_unmasked_part():
    lengths = [5 * TILE + 3]
    check(*inputs(lengths, lengths), lengths, lengths, window=(2 * TILE, TILE))


@DTYPES
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_queries(kv_heads, dtype):
    lengths = [4, 10], [6, 3]
    check(*inputs(*lengths, dtype, heads=4, kv_heads=kv_heads), *lengths, causal=True, dropout=(0.3, 5))


def test_no_gradient_of_the_lse():
    lengths = [4, 10], [6, 3]
    check(*inputs(*lengths), *lengths, with_lse=False)


BIASED = [40, 0, 8], [12, 5, 35]
BROADCASTS = [(b, h, m, n) for b in (1, 3) for h in (1, 2) for m in (1, 40) for n in (1, 35)]


@pytest.mark.parametrize("shape", BROADCASTS, ids=str)
def test_bias_broadcasts(shape):
    check(*inputs(*BIASED, heads=2), *BIASED, bias=torch.randn(shape), causal=True)


@DTYPES
@pytest.mark.parametrize("shape", [(3, 2, 40, 35), (1, 2, 1, 35)], ids=str)
def test_bias_of_the_dtype_with_everything(shape, dtype):
    tensors = inputs(*BIASED, dtype, heads=2)
    check(*tensors, *BIASED, bias=torch.randn(shape).to(dtype), window=(9, 3), dropout=(0.2, -3))


def test_strided_bias():
    lengths = [9], [12]
    bias = torch.randn(12, 9, 2, 1).permute(3, 2, 1, 0)
    check(*inputs(*lengths, heads=2), *lengths, bias=bias)


@DTYPES
def test_rows_without_keys_have_no_gradient(dtype):
    lengths = [9, 5], [12, 0]
    bias = torch.zeros(1, 1, 9, 12)
    bias[..., 3, :] = -torch.inf
    bias[..., 5:] = -torch.inf
    q, k, v = inputs(*lengths, dtype)
    dq, dk, dv, dbias = check(q, k, v, *lengths, bias=bias.to(dtype))
    assert (dq[3] == 0).all()
    assert (dq[9:] == 0).all()
    assert (dk[5:] == 0).all()
    assert (dv[5:] == 0).all()
    assert (dbias[..., 3, :] == 0).all()


@pytest.mark.parametrize(
    ("p", "seed", "dtype"),
    [(0.1, 0, torch.float32), (0.5, -1, torch.float16), (0.9, 2**32 + 7, torch.float32), (1.0, 3, torch.float32)],
)
def test_dropout(p, seed, dtype):
    lengths = [3, 0, TILE + 5, 6], [9, 4, 2 * TILE + 1, 1]
    check(*inputs(*lengths, dtype), *lengths, causal=True, dropout=(p, seed))


def test_dropout_mask_bit_for_bit():
    # with equal scores and one-hot values the output shows every weight
    lengths, size = [37, 20], 37
    v = torch.cat([torch.eye(size)[:n] for n in lengths])[:, None, :].expand(-1, 3, -1)
    q = torch.zeros(57, 3, 16)
    cu = offsets_of(lengths)
    out, _ = ragged_attention_fwd(q, q, v.contiguous(), cu, cu, None, 1.0, False, -1, -1, 0.3, torch.tensor(2**40 + 3))
    for b, n in enumerate(lengths):
        shown = out[int(cu[b]) : int(cu[b + 1]), :, :n].transpose(0, 1) > 0
        assert torch.equal(shown, dropout_keep_reference(2**40 + 3, 0.3, b, 3, n, n))


def test_expanded_gradients():
    q, k, v = inputs([5], [7])
    rest = (offsets_of([5]), offsets_of([7]), None, 0.3, False, -1, -1)
    out, lse = ragged_attention_fwd(q, k, v, *rest)
    row = torch.randn(16)
    grads = row.expand(5, 1, 16), torch.ones(()).expand(5, 1)
    got = ragged_attention_bwd(*grads, q, k, v, out, lse, *rest)
    want = ragged_attention_bwd(*(g.contiguous() for g in grads), q, k, v, out, lse, *rest)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def gradients(q, k, v, lengths, grad, causal=True, **maps):
    cu = offsets_of(lengths)
    rest = (cu, cu, None, 0.3, causal, -1, -1)
    out, lse = ragged_attention_fwd(q, k, v, *rest)
    return ragged_attention_bwd(grad, None, q, k, v, out, lse, *rest, **maps)[:3]


def test_nan_stays_in_its_sequence():
    lengths = [TILE + 1, 7, 40]
    q, k, v = (x.contiguous() for x in inputs(lengths, lengths))
    grad = torch.randn(sum(lengths), 1, 16)
    clean = gradients(q, k, v, lengths, grad)
    bad = slice(TILE + 1, TILE + 8)
    for x in (q, k, v, grad):
        x[bad] = float("nan")
    for a, b in zip(gradients(q, k, v, lengths, grad), clean, strict=True):
        assert torch.equal(a[: TILE + 1], b[: TILE + 1])
        assert torch.equal(a[TILE + 8 :], b[TILE + 8 :])
        assert a[bad].isnan().all()


def test_result_does_not_depend_on_the_rest_of_the_batch():
    lengths = [13, TILE + 2, 0, 50]
    q, k, v = (x.contiguous() for x in inputs(lengths, lengths, heads=2, kv_heads=1))
    grad = torch.randn(sum(lengths), 2, 16)
    rows = slice(13, 13 + TILE + 2)
    alone = gradients(q[rows], k[rows], v[rows], [TILE + 2], grad[rows])
    for a, b in zip(gradients(q, k, v, lengths, grad), alone, strict=True):
        assert torch.equal(a[rows], b)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_tile_maps_give_the_same(causal):
    lengths = [5, 0, 2 * TILE + 1, TILE]
    q, k, v = inputs(lengths, lengths)
    grad = torch.randn(sum(lengths), 1, 16)
    maps = {
        "tile_map_q": attention_tile_map(lengths, lengths, BY_ROW, causal=causal),
        "tile_map_k": attention_tile_map(lengths, lengths, BY_KEY, causal=causal, by_key=True),
    }
    assert maps["tile_map_k"][0].tolist() == [2, 0]
    plain = gradients(q, k, v, lengths, grad, causal)
    for a, b in zip(gradients(q, k, v, lengths, grad, causal, **maps), plain, strict=True):
        assert torch.equal(a, b)


def test_rows_of_no_sequence_have_no_gradient():
    q, k, v = inputs([TILE + 40], [TILE + 20])
    rest = (offsets_of([9, 3]), offsets_of([12, 8]), None, 0.3, False, -1, -1)
    out, lse = ragged_attention_fwd(q, k, v, *rest)
    dq, dk, dv, _ = ragged_attention_bwd(torch.randn(out.shape), None, q, k, v, out, lse, *rest)
    assert (dq[12:] == 0).all()
    assert (dk[20:] == 0).all()
    assert (dv[20:] == 0).all()
    assert all(x.isfinite().all() for x in (dq, dk, dv))


@pytest.mark.parametrize("wrong", [[0, 500, 900], [0, 7, 2], [-5, 3, 10], [8, 2, 0], [0, 2**40, 2**41], [3, 3, 3]])
def test_wrong_offsets_never_reach_outside(wrong):
    q, k, v = inputs([10], [10])
    good, bad = offsets_of([6, 4]), torch.tensor(wrong)
    for cu_q, cu_k, shape in ((bad, good, (2, 1, 10, 10)), (good, bad, (1, 1, 1, 10)), (bad, bad, (1, 1, 10, 1))):
        rest = (cu_q, cu_k, torch.randn(shape), 0.3, True, -1, -1)
        out, lse = ragged_attention_fwd(q, k, v, *rest)
        found = ragged_attention_bwd(out, None, q, k, v, out, lse, *rest)
        assert [x.shape for x in found] == [q.shape, k.shape, v.shape, shape]


def test_no_keys_at_all():
    q, k, v = inputs([4, 2], [0, 0])
    rest = (offsets_of([4, 2]), offsets_of([0, 0]), torch.randn(1, 1, 1, 1), 0.3, False, -1, -1)
    out, lse = ragged_attention_fwd(q, k, v, *rest)
    dq, dk, dv, dbias = ragged_attention_bwd(torch.ones_like(out), None, q, k, v, out, lse, *rest)
    assert not dq.any()
    assert dk.shape == k.shape
    assert dv.shape == v.shape
    assert not dbias.any()
