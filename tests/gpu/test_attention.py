# SPDX-License-Identifier: Apache-2.0
"""Attention on a GPU through the public functions, against the float64 twin on the CPU."""

import pytest
import torch
from torch.nn.attention import varlen

from edgeops.ragged import ragged_attention, varlen_attn
from edgeops.ragged._cuda.attention import why_not_flash
from edgeops.ragged._reference import ragged_attention_fwd_reference
from tests.budget import assert_within_budget
from tests.peers import offsets_of

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
LENGTHS = {
    "edges": [0, 1, 63, 0, 64, 65, 127, 128, 129],
    "one long among empty": [0, 0, 3000, 0],
    "short": [3, 1, 4, 1, 5, 9, 2, 6] * 40,
    "all empty": [0, 0],
    "none": [],
}


def inputs(lengths_q, lengths_k, dtype, heads=4, kv_heads=4, size=64, size_v=None):
    rows_q, rows_k = sum(lengths_q), sum(lengths_k)
    shapes = (rows_q, heads, size), (rows_k, kv_heads, size), (rows_k, kv_heads, size_v or size)
    return [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]


def peer(q, k, v, cu_q, cu_k, bias, scale, causal, left, right):
    """Every intermediate in the dtype of q, as plain torch would compute it one sequence at a time."""
    from edgeops.ragged._reference import attention_scores_reference as scores_of

    out = q.new_zeros(q.shape[0], q.shape[1], v.shape[2])
    for b in range(len(cu_q) - 1):
        rows, keys = slice(*cu_q[b : b + 2].tolist()), slice(*cu_k[b : b + 2].tolist())
        lq, lk = rows.stop - rows.start, keys.stop - keys.start
        if lq == 0 or lk == 0:
            continue
        part = None if bias is None else bias[b if bias.shape[0] > 1 else 0][:, :lq, :lk].to(q.dtype)
        weights = torch.softmax(scores_of(q[rows], k[keys], part, scale, causal, (left, right)), -1).nan_to_num(0.0)
        out[rows] = torch.einsum("hij,jhd->ihd", weights, v[keys].repeat_interleave(q.shape[1] // v.shape[1], 1))
    return out


def check(q, k, v, lengths_q, lengths_k, *, bias=None, scale=0.2, causal=False, window=(-1, -1)):
    cu_q, cu_k = offsets_of(lengths_q, torch.int32).cuda(), offsets_of(lengths_k, torch.int32).cuda()
    longest = max(lengths_q, default=0), max(lengths_k, default=0)
    out, lse = ragged_attention(
        q, k, v, cu_q, cu_k, *longest, scale=scale, causal=causal, window=window, bias=bias, return_lse=True
    )
    plain = ragged_attention(q, k, v, cu_q, cu_k, *longest, scale=scale, causal=causal, window=window, bias=bias)
    arguments = [q, k, v, cu_q, cu_k, bias, scale, causal, *window]
    wide = [a.double().cpu() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    wide = [a.cpu() if isinstance(a, torch.Tensor) else a for a in wide]
    exact, exact_lse = ragged_attention_fwd_reference(*wide)
    measure = peer(*arguments).cpu()
    for result in (out, plain):
        assert_within_budget("out", result.cpu(), measure, exact)
    torch.testing.assert_close(lse.cpu().double(), exact_lse, rtol=1e-4, atol=1e-4)
    return out


@DTYPES
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_lengths(lengths, causal, dtype):
    check(*inputs(lengths, lengths, dtype), lengths, lengths, causal=causal)


@DTYPES
@pytest.mark.parametrize("size", [(1, 1), (20, 20), (32, 32), (80, 80), (128, 128), (256, 256), (512, 512), (64, 96)])
def test_head_sizes(size, dtype):
    lengths_q, lengths_k = [5, 0, 100], [130, 3, 18]
    check(*inputs(lengths_q, lengths_k, dtype, 2, 2, *size), lengths_q, lengths_k, causal=True)


@DTYPES
@pytest.mark.parametrize("window", [(-1, -1), (0, 0), (40, 3), (0, -1), (-1, 70), (200, 0)])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_windows_cross_lengths_and_grouped_heads(window, causal, dtype):
    lengths_q, lengths_k = [3, 0, 300, 9, 6], [9, 4, 170, 2, 0]
    check(*inputs(lengths_q, lengths_k, dtype, 6, 2), lengths_q, lengths_k, causal=causal, window=window)


@DTYPES
@pytest.mark.parametrize("shape", [(3, 4, 200, 150), (1, 4, 1, 150), (3, 1, 200, 1), (1, 1, 1, 1)])
def test_bias(shape, dtype):
    lengths_q, lengths_k = [200, 0, 8], [12, 5, 150]
    bias = torch.randn(shape, device="cuda")
    check(*inputs(lengths_q, lengths_k, dtype), lengths_q, lengths_k, bias=bias, causal=True)
    check(*inputs(lengths_q, lengths_k, dtype), lengths_q, lengths_k, bias=bias.to(dtype))


@DTYPES
def test_fused_projection_is_read_in_place(dtype):
    lengths = [50, 300]
    qkv = torch.randn(350, 3, 4, 64, device="cuda").to(dtype)
    check(*qkv.unbind(1), lengths, lengths)


def test_flash_takes_half_precision_and_agrees_with_torch():
    lengths = [50, 7, 300]
    q, k, v = inputs(lengths, lengths, torch.bfloat16)
    if list(why_not_flash(q, k, v, 300, 300, None, False)):
        pytest.skip("this GPU has no FlashAttention")
    cu = offsets_of(lengths, torch.int32).cuda()
    expected = varlen.varlen_attn(q, k, v, cu, cu, 300, 300, window_size=(-1, 0))
    assert torch.equal(varlen_attn(q, k, v, cu, cu, 300, 300, window_size=(-1, 0)), expected)


@DTYPES
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
def test_gradients(dtype, with_bias):
    lengths_q, lengths_k = [20, 0, 33], [12, 5, 40]
    tensors = inputs(lengths_q, lengths_k, dtype, 4, 2)
    bias = torch.randn(1, 4, 33, 40, device="cuda").to(dtype) if with_bias else None
    cu_q, cu_k = offsets_of(lengths_q, torch.int32).cuda(), offsets_of(lengths_k, torch.int32).cuda()
    grad = torch.randn(53, 4, 64, device="cuda").to(dtype)

    def gradients(convert, cu_q, cu_k):
        leaves = [convert(x).requires_grad_() for x in (*tensors, *([bias] if with_bias else []))]
        out = ragged_attention(*leaves[:3], cu_q, cu_k, 33, 40, bias=leaves[3] if with_bias else None, causal=True)
        return torch.autograd.grad(out, leaves, convert(grad))

    exact = gradients(lambda x: x.detach().double().cpu(), cu_q.cpu(), cu_k.cpu())
    got = gradients(lambda x: x.detach().clone(), cu_q, cu_k)
    for name, a, b in zip(("q", "k", "v", "bias"), got, exact):
        error = float((a.double().cpu() - b).abs().max() / b.abs().max())
        assert error <= max(8 * torch.finfo(dtype).eps, 1e-5), f"gradient in {name}: relative error {error:.3g}"


@DTYPES
def test_nothing_waits_for_the_gpu(dtype, no_sync):
    lengths = [50, 0, 300]
    q, k, v = inputs(lengths, lengths, dtype)
    cu = offsets_of(lengths, torch.int32).cuda()
    bias = torch.randn(1, 4, 300, 300, device="cuda")
    for extra in ({}, {"bias": bias, "causal": True}):
        ragged_attention(q, k, v, cu, cu, 300, 300, **extra)  # compiles, and times configurations
        with no_sync:
            ragged_attention(q, k, v, cu, cu, 300, 300, **extra)


def test_tuned_configuration_gives_the_same(monkeypatch):
    from edgeops.triton_kernels.ragged.attention_config import chosen

    lengths = [13, 300, 0, 70]
    q, k, v = inputs(lengths, lengths, torch.float32, size=48)
    cu = offsets_of(lengths, torch.int32).cuda()
    fixed = ragged_attention(q, k, v, cu, cu, 300, 300)
    monkeypatch.setenv("EDGEOPS_TRITON_AUTOTUNE", "1")
    before = len(chosen)
    tuned = [ragged_attention(q, k, v, cu, cu, 300, 300) for _ in range(2)]
    assert len(chosen) == before + 1
    for out in tuned:
        torch.testing.assert_close(out, fixed, rtol=1e-4, atol=1e-5)


@DTYPES
def test_graph_capture(dtype):
    lengths = [50, 0, 300]
    q, k, v = inputs(lengths, lengths, dtype)
    cu = offsets_of(lengths, torch.int32).cuda()
    for _ in range(2):
        expected = ragged_attention(q, k, v, cu, cu, 300, 300, causal=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ragged_attention(q, k, v, cu, cu, 300, 300, causal=True)
    graph.replay()
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)


def test_result_does_not_depend_on_the_batch(monkeypatch):
    monkeypatch.delenv("EDGEOPS_TRITON_AUTOTUNE", raising=False)
    lengths = [13, 300, 0, 70]
    q, k, v = inputs(lengths, lengths, torch.float32)
    cu, one = offsets_of(lengths, torch.int32).cuda(), offsets_of([300], torch.int32).cuda()
    out = ragged_attention(q, k, v, cu, cu, 300, 300)
    alone = ragged_attention(*(x[13:313] for x in (q, k, v)), one, one, 300, 300)
    assert torch.equal(out[13:313], alone)


def test_wrong_offsets_never_reach_outside():
    q, k, v = inputs([10], [10], torch.float32)
    good = offsets_of([6, 4]).cuda()
    for wrong in ([0, 500, 900], [0, 7, 2], [-5, 3, 10], [0, 2**40, 2**41]):
        bad = torch.tensor(wrong, device="cuda")
        for cu_q, cu_k in ((bad, good), (good, bad)):
            ragged_attention(q, k, v, cu_q, cu_k, 10, 10, bias=torch.zeros(1, 1, 10, 10, device="cuda"))
    torch.cuda.synchronize()


@pytest.mark.usefixtures("clean_memory")
@DTYPES
def test_compiles_without_graph_break(dtype):
    lengths = [50, 0, 300]
    q, k, v = inputs(lengths, lengths, dtype)
    cu = offsets_of(lengths, torch.int32).cuda()
    call = torch.compile(lambda q, k, v: ragged_attention(q, k, v, cu, cu, 300, 300) * 2, fullgraph=True)
    expected = ragged_attention(q, k, v, cu, cu, 300, 300) * 2
    torch.testing.assert_close(call(q, k, v), expected, rtol=1e-2, atol=1e-2)
