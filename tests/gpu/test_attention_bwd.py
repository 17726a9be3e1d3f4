# SPDX-License-Identifier: Apache-2.0
"""Gradients and dropout of ragged attention on a GPU, through the public function and the kernel ops."""

import pytest
import torch

from edgeops.ragged import _reference as twin
from edgeops.ragged import ragged_attention
from edgeops.ragged._cuda.attention import (
    ragged_attention_bwd_cuda,
    ragged_attention_fwd_cuda,
    why_not_triton_attention_bwd,
)
from tests.peers import offsets_of

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
NAMES = ("dq", "dk", "dv", "dbias")
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


def wide(x):
    if not isinstance(x, torch.Tensor):
        return x
    return x.double().cpu() if x.is_floating_point() else x.cpu()


def check(q, k, v, lengths_q, lengths_k, *, bias=None, causal=False, window=(-1, -1), dropout=(0.0, 0)):
    cu_q, cu_k = offsets_of(lengths_q, torch.int32).cuda(), offsets_of(lengths_k, torch.int32).cuda()
    seed = torch.tensor(dropout[1], device="cuda")
    arguments = (cu_q, cu_k, bias, 0.2, causal, *window, dropout[0], seed)
    out, lse = ragged_attention_fwd_cuda(q, k, v, *arguments)
    exact = twin.ragged_attention_fwd_reference(*map(wide, (q, k, v, *arguments)))
    grad_out, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    got = ragged_attention_bwd_cuda(grad_out, grad_lse, q, k, v, out, lse, *arguments)
    given = (grad_out, grad_lse, q, k, v)
    want = twin.ragged_attention_bwd_reference(*map(wide, given), *exact, *map(wide, arguments))
    tolerance = max(8 * torch.finfo(q.dtype).eps, 1e-5)
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert a.shape == b.shape, name
        if b.numel():
            # sums over many rows or sequences may cancel: their terms are of the size of 1
            error = float((a.double().cpu() - b).abs().max()) / max(float(b.abs().max()), 1.0)
            assert error <= tolerance, f"{name}: relative error {error:.3g}"
    return got


@DTYPES
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_lengths(lengths, causal, dtype):
    check(*inputs(lengths, lengths, dtype), lengths, lengths, causal=causal)


@DTYPES
@pytest.mark.parametrize("size", [(1, 1), (20, 20), (32, 32), (80, 80), (128, 128), (256, 256), (512, 512), (64, 96)])
def test_head_sizes(size, dtype):
    lengths = [5, 0, 100], [130, 3, 18]
    check(*inputs(*lengths, dtype, 2, 2, *size), *lengths, causal=True)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_triton_takes_the_usual_head_sizes(size):
    q, k, v = inputs([5], [5], torch.float32, size=size)
    assert list(why_not_triton_attention_bwd(q, None, q, k, v)) == []


@DTYPES
@pytest.mark.parametrize("window", [(-1, -1), (0, 0), (40, 3), (0, -1), (-1, 70), (200, 0)])
def test_windows_cross_lengths_and_grouped_heads(window, dtype):
    lengths = [3, 0, 300, 9, 6], [9, 4, 170, 2, 0]
    check(*inputs(*lengths, dtype, 6, 2), *lengths, causal=True, window=window)
    check(*inputs(*lengths, dtype, 6, 2), *lengths, window=window)


@DTYPES
@pytest.mark.parametrize("shape", [(b, h, m, n) for b in (1, 3) for h in (1, 4) for m in (1, 200) for n in (1, 150)])
def test_bias(shape, dtype):
    lengths = [200, 0, 8], [12, 5, 150]
    check(*inputs(*lengths, dtype), *lengths, bias=torch.randn(shape, device="cuda").to(dtype), causal=True)


@DTYPES
@pytest.mark.parametrize(("p", "seed"), [(0.1, 0), (0.5, -1), (0.9, 2**40 + 3), (1.0, 7)])
def test_dropout(p, seed, dtype):
    lengths = [3, 0, 300, 9], [9, 4, 170, 2]
    check(*inputs(*lengths, dtype), *lengths, causal=True, dropout=(p, seed))


def test_dropout_mask_is_that_of_the_cpu():
    lengths, size = [37, 200], 200
    v = torch.cat([torch.eye(size)[:n] for n in lengths])[:, None, :].expand(-1, 3, -1).contiguous().cuda()
    q = torch.zeros(237, 3, 16, device="cuda")
    cu, seed = offsets_of(lengths, torch.int32).cuda(), torch.tensor(2**40 + 3, device="cuda")
    out, _ = ragged_attention_fwd_cuda(q, q, v, cu, cu, None, 1.0, False, -1, -1, 0.3, seed)
    for b, n in enumerate(lengths):
        shown = out[int(cu[b]) : int(cu[b + 1]), :, :n].transpose(0, 1) > 0
        assert torch.equal(shown.cpu(), twin.dropout_keep_reference(2**40 + 3, 0.3, b, 3, n, n))


@DTYPES
def test_results_repeat_bit_for_bit(dtype):
    lengths = [50, 0, 300, 17] * 8
    tensors = inputs(lengths, lengths, dtype, 4, 2)
    cu = offsets_of(lengths, torch.int32).cuda()
    bias = torch.randn(1, 4, 300, 300, device="cuda")
    rest = (cu, cu, bias, 0.2, True, -1, -1, 0.1, torch.tensor(5, device="cuda"))
    out, lse = ragged_attention_fwd_cuda(*tensors, *rest)
    runs = [ragged_attention_bwd_cuda(torch.ones_like(out), None, *tensors, out, lse, *rest) for _ in range(3)]
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a, b)


@DTYPES
def test_gradient_does_not_depend_on_the_batch(dtype):
    lengths = [13, 300, 0, 70]
    q, k, v = inputs(lengths, lengths, dtype, 4, 2)

    def gradients(rows, lengths):
        part = [x[rows] for x in (q, k, v)]
        cu = offsets_of(lengths, torch.int32).cuda()
        rest = (cu, cu, None, 0.2, True, -1, -1)
        out, lse = ragged_attention_fwd_cuda(*part, *rest)
        return ragged_attention_bwd_cuda(torch.ones_like(out), None, *part, out, lse, *rest)[:3]

    rows = slice(13, 313)
    for a, b in zip(gradients(slice(None), lengths), gradients(rows, [300]), strict=True):
        assert torch.equal(a[rows], b)


@DTYPES
def test_nothing_waits_for_the_gpu(dtype, no_sync):
    lengths = [50, 0, 300]
    tensors = [x.requires_grad_() for x in inputs(lengths, lengths, dtype)]
    cu = offsets_of(lengths, torch.int32).cuda()
    bias = torch.randn(1, 4, 300, 300, device="cuda").requires_grad_()

    def step():
        out = ragged_attention(*tensors, cu, cu, 300, 300, bias=bias, causal=True)
        return torch.autograd.grad(out, [*tensors, bias], torch.ones_like(out))

    step()  # compiles
    with no_sync:
        step()


@DTYPES
def test_graph_capture(dtype):
    lengths = [50, 0, 300]
    tensors = inputs(lengths, lengths, dtype)
    cu = offsets_of(lengths, torch.int32).cuda()
    rest = (cu, cu, None, 0.2, True, -1, -1)
    out, lse = ragged_attention_fwd_cuda(*tensors, *rest)
    grad = torch.randn_like(out)
    expected = ragged_attention_bwd_cuda(grad, None, *tensors, out, lse, *rest)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ragged_attention_bwd_cuda(grad, None, *tensors, out, lse, *rest)
    graph.replay()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@DTYPES
def test_captured_dropout_draws_anew_in_each_replay(dtype):
    lengths = [50, 0, 300]
    q, k, v = inputs(lengths, lengths, dtype)
    cu = offsets_of(lengths, torch.int32).cuda()
    given = torch.tensor(3, device="cuda")

    def attend(**options):
        return ragged_attention(q, k, v, cu, cu, 300, 300, dropout_p=0.3, **options)

    want = attend(seed=3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn, fixed = attend(), attend(seed=given)
    runs = []
    for _ in range(2):
        graph.replay()
        runs.append(drawn.clone())
        assert torch.equal(fixed, want)
    assert not torch.equal(*runs)
    given.fill_(4)
    graph.replay()
    assert torch.equal(fixed, attend(seed=4))


@DTYPES
def test_dropout_does_not_wait_for_the_gpu(dtype, no_sync):
    lengths = [50, 0, 300]
    tensors = [x.requires_grad_() for x in inputs(lengths, lengths, dtype)]
    cu = offsets_of(lengths, torch.int32).cuda()

    def step():
        out = ragged_attention(*tensors, cu, cu, 300, 300, dropout_p=0.3)
        return torch.autograd.grad(out, tensors, torch.ones_like(out))

    step()  # compiles
    with no_sync:
        step()


@DTYPES
def test_nan_stays_in_its_sequence(dtype):
    lengths = [70, 7, 40]
    tensors = inputs(lengths, lengths, dtype)
    cu = offsets_of(lengths, torch.int32).cuda()
    rest = (cu, cu, None, 0.2, False, -1, -1)
    for x in tensors:
        x[70:77] = float("nan")
    out, lse = ragged_attention_fwd_cuda(*tensors, *rest)
    for gradient in ragged_attention_bwd_cuda(torch.ones_like(out), None, *tensors, out, lse, *rest)[:3]:
        assert gradient[:70].isfinite().all()
        assert gradient[77:].isfinite().all()
        assert gradient[70:77].isnan().all()


def test_wrong_offsets_never_reach_outside():
    q, k, v = inputs([10], [10], torch.float32)
    good = offsets_of([6, 4]).cuda()
    bias = torch.zeros(1, 1, 1, 10, device="cuda")
    for wrong in ([0, 500, 900], [0, 7, 2], [-5, 3, 10], [0, 2**40, 2**41]):
        bad = torch.tensor(wrong, device="cuda")
        for cu_q, cu_k in ((bad, good), (good, bad)):
            rest = (cu_q, cu_k, bias, 0.2, True, -1, -1)
            out, lse = ragged_attention_fwd_cuda(q, k, v, *rest)
            ragged_attention_bwd_cuda(out, None, q, k, v, out, lse, *rest)
    torch.cuda.synchronize()


@DTYPES
def test_gradients_of_the_public_function(dtype):
    """Through autograd: the op of the forward saves what the kernels of the backward need."""
    lengths_q, lengths_k = [20, 0, 33], [12, 5, 40]
    tensors = inputs(lengths_q, lengths_k, dtype, 4, 2, 40, 24)
    cu_q, cu_k = offsets_of(lengths_q, torch.int32).cuda(), offsets_of(lengths_k, torch.int32).cuda()
    bias = torch.randn(1, 4, 1, 40, device="cuda").to(dtype)
    grad = torch.randn(53, 4, 24, device="cuda").to(dtype)

    def gradients(move):
        leaves = [move(x).detach().clone().requires_grad_() for x in (*tensors, bias)]
        longest = max(lengths_q), max(lengths_k)
        cu = (cu_q, cu_k) if leaves[0].is_cuda else (cu_q.cpu(), cu_k.cpu())
        out, lse = ragged_attention(*leaves[:3], *cu, *longest, bias=leaves[3], causal=True, return_lse=True)
        seen = lse[lse > -torch.inf].sum()
        return torch.autograd.grad((out, seen), leaves, (move(grad), torch.ones_like(seen)))

    exact = gradients(lambda x: x.double().cpu())
    for name, a, b in zip(NAMES, gradients(lambda x: x), exact, strict=True):
        error = float((a.double().cpu() - b).abs().max() / b.abs().max())
        assert error <= max(8 * torch.finfo(dtype).eps, 1e-5), f"{name}: relative error {error:.3g}"
