# SPDX-License-Identifier: Apache-2.0
"""No kernel reads or writes beside its tensors: all of them lie against forbidden pages.

`triton-viz` 3.0, the tool for this, does not follow loops whose bounds are loaded, which all kernels here have.
"""

import ctypes
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgeops.offload import _cuda as offload
from edgeops.ragged._cuda import gemm
from edgeops.triton_kernels.ragged.attention import ragged_attention_fwd
from edgeops.triton_kernels.ragged.attention_bwd import ragged_attention_bwd
from edgeops.triton_kernels.ragged.fused import add_layer_norm_fwd, bias_gelu_fwd
from edgeops.triton_kernels.ragged.fused_bwd import add_layer_norm_bwd, bias_gelu_bwd
from edgeops.triton_kernels.ragged.pack import ragged_pack, ragged_unpack
from edgeops.triton_kernels.ragged.pool import ragged_pool_bwd, ragged_pool_fwd
from tests.peers import offsets_of
from tests.triton import guard

EMPTY, NEW_EMPTY = torch.empty, torch.Tensor.new_empty


@pytest.fixture(params=[True, False], ids=["page behind", "page before"])
def fenced(request, monkeypatch):
    """A function that copies a tensor between forbidden pages; tensors that launchers make lie there too."""

    def place(x):
        size = x.numel() * x.element_size()
        if size == 0:
            return x.contiguous()
        memory = (ctypes.c_char * size).from_address(guard.guarded_address(size, at_end=request.param))
        out = torch.frombuffer(memory, dtype=x.dtype).view(x.shape)
        return out.copy_(x)

    def empty(*shape, dtype=None, device=None):
        return place(EMPTY(*shape, dtype=dtype, device=device))

    monkeypatch.setattr(torch, "empty", empty)

    def new_empty(self, *shape, **options):
        # the interpreter makes handles of its own, with a device
        return NEW_EMPTY(self, *shape, **options) if options else empty(*shape, dtype=self.dtype)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    return place


def test_the_fence_kills():
    run = subprocess.run([sys.executable, Path(guard.__file__)], capture_output=True, text=True)
    assert run.stdout == "inside\n"
    assert run.returncode == -signal.SIGSEGV


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("options", [(False, -1, -1), (True, -1, -1), (False, 9, 3)], ids=["full", "causal", "window"])
@pytest.mark.parametrize("wrong", [False, True], ids=["right offsets", "wrong offsets"])
def test_attention(fenced, options, with_bias, wrong):
    q, k, v = (fenced(torch.randn(shape)) for shape in ((70, 1, 20), (49, 1, 20), (49, 1, 7)))
    cu_q, cu_k = fenced(offsets_of([3, 0, 67])), fenced(offsets_of([9, 4, 36]))
    if wrong:
        cu_q, cu_k = fenced(torch.tensor([0, 90, 5, 2**33])), fenced(torch.tensor([-9, 4, 60, 1]))
    bias = fenced(torch.randn(3, 1, 67, 36)) if with_bias else None
    out, lse = ragged_attention_fwd(q, k, v, cu_q, cu_k, bias, 0.3, *options)
    assert out.shape == (70, 1, 7)
    assert lse.shape == (70, 1)
    grads = fenced(torch.randn(out.shape)), fenced(torch.randn(lse.shape))
    found = ragged_attention_bwd(*grads, q, k, v, out, lse, cu_q, cu_k, bias, 0.3, *options)
    assert [x.shape for x in found[:3]] == [x.shape for x in (q, k, v)]


@pytest.mark.parametrize("shape", [(1, 1, 1, 36), (3, 1, 67, 1), (1, 1, 1, 1), (1, 1, 67, 36)], ids=str)
@pytest.mark.parametrize("wrong", [False, True], ids=["right offsets", "wrong offsets"])
def test_bias_gradient(fenced, shape, wrong):
    q, k, v = (fenced(torch.randn(size)) for size in ((70, 1, 20), (49, 1, 20), (49, 1, 7)))
    cu_q, cu_k = fenced(offsets_of([3, 0, 67])), fenced(offsets_of([9, 4, 36]))
    if wrong:
        cu_q, cu_k = fenced(torch.tensor([0, 90, 5, 2**33])), fenced(torch.tensor([-9, 4, 60, 1]))
    arguments = (cu_q, cu_k, fenced(torch.randn(shape)), 0.3, True, 9, -1, 0.5, fenced(torch.tensor(1)))
    out, lse = ragged_attention_fwd(q, k, v, *arguments)
    assert ragged_attention_bwd(out, None, q, k, v, out, lse, *arguments)[3].shape == shape


@pytest.mark.parametrize("width", [1, 7, 130])
@pytest.mark.parametrize("offsets", [offsets_of([3, 0, 5]), torch.tensor([-2, 40, 3, 9])], ids=["right", "wrong"])
def test_rows(fenced, width, offsets):
    offsets = fenced(offsets)
    x, padded = fenced(torch.randn(8, width)), fenced(torch.randn(3, 5, width))
    out = fenced(torch.zeros(8, width))
    ragged_pack(padded, offsets, out)
    ragged_unpack(x, offsets, 1.0, padded)
    for mode in range(3):
        out = ragged_pool_fwd(x, offsets, mode)
        ragged_pool_bwd(out, x, out, offsets, mode)


@pytest.mark.parametrize("width", [1, 7, 130])
def test_fused(fenced, width):
    x, vector = fenced(torch.randn(8, width)), fenced(torch.randn(width))
    for tanh in (False, True):
        bias_gelu_fwd(x, vector, tanh)
        bias_gelu_bwd(x, x, vector, tanh)
    _, mean, rstd = add_layer_norm_fwd(x, vector, x, vector, vector, 1e-5)
    for x_bias in (None, vector):
        add_layer_norm_bwd(x, x, x_bias, x, mean, rstd, vector)


@pytest.mark.parametrize("trans", [False, True], ids=["plain", "transposed"])
def test_products(fenced, trans):
    """The matrices of a list lie in memory of their own, each between its forbidden pages."""
    sizes = [(8, 16, 8), (40, 72, 64)] if trans else [(3, 5, 7), (33, 40, 1), (0, 3, 2), (2, 2, 0)]
    a = [fenced(torch.randn(k, m) if trans else torch.randn(m, k)) for m, n, k in sizes]
    b = [fenced(torch.randn(n, k) if trans else torch.randn(k, n)) for m, n, k in sizes]
    for c, x, y in zip(gemm.vgemm_cuda(a, b, trans, trans), a, b):
        torch.testing.assert_close(c, x.T @ y.T if trans else x @ y, rtol=1e-4, atol=1e-4)
    flat = [fenced(torch.cat([x.flatten() for x in side])) for side in (a, b)]
    gemm.vgemm_packed_cuda(*flat, torch.tensor(sizes), trans, trans, sum(m * n for m, n, k in sizes))


@pytest.mark.parametrize("ends", [[3, 3, 41], [-7, 60, 2], [2**31 - 1] * 3], ids=["right", "mixed", "beyond"])
def test_groups(fenced, ends):
    offs = fenced(torch.tensor(ends, dtype=torch.int32))
    rows, columns, w = fenced(torch.randn(41, 6)), fenced(torch.randn(6, 41)), fenced(torch.randn(3, 6, 5))
    gemm.grouped_mm_cuda(rows, w, offs)
    gemm.grouped_mm_cuda(fenced(torch.randn(3, 5, 6)), columns, offs)
    gemm.grouped_mm_cuda(columns, rows, offs)
    gemm.grouped_mm_cuda(fenced(torch.randn(3, 5, 6)), w, None)


@pytest.mark.parametrize("wrong", [False, True], ids=["right integers", "wrong integers"])
@pytest.mark.parametrize(("m", "d", "r", "width"), [(1, 1, 1, 1), (5, 3, 2, 7), (33, 9, 4, 70)])
def test_projectors(fenced, m, d, r, width, wrong):
    high = 2**15 if wrong else d
    index = fenced(torch.randint(-high if wrong else 0, high, (m, r), dtype=torch.int16))
    value, x, y = fenced(torch.randn(m, r)), fenced(torch.randn(m, width)), fenced(torch.randn(d, width))
    starts = fenced(torch.arange(d + 1, dtype=torch.int32) * (99 if wrong else m * r // d))
    order = fenced(torch.randperm(m * r).int() * (-7 if wrong else 1))
    for each in (x, fenced(x.T).T):
        offload.subspace_project_cuda(each, index, value, starts, order)
        offload.subspace_value_grad_cuda(each, y, index)
    offload.subspace_expand_cuda(y, index, value)
    weight, delta = fenced(torch.randn(m, m).bfloat16()), fenced(torch.randn(d, d))
    offload.subspace_apply_cuda(weight, delta, index, value, index, value, 1.0, 1.0, True, 3)
    offload.subspace_adam_cuda(delta, fenced(torch.zeros(d, d)), fenced(torch.zeros(d, d)), 1, 0.9, 0.999, 1e-8)
