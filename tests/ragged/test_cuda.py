# SPDX-License-Identifier: Apache-2.0
"""Which GPU path takes a call, and why the others do not; no GPU needed. Numbers are in tests/triton and tests/gpu."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen

from edgeops.ragged import _cuda as dispatch
from edgeops.ragged._cuda import attention as attention
from edgeops.ragged._cuda import paths as paths
from edgeops.ragged._cuda import rows


@pytest.fixture
def gpu(monkeypatch):
    """Fake CUDA tensors on a machine without CUDA, and a card of compute capability 9.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with FakeTensorMode():
        yield


def heads(rows, count, size, dtype=torch.bfloat16, device="cuda"):
    return torch.empty(rows, count, size, dtype=dtype, device=device)


def flash_reasons(q, k=None, v=None, *, max_q=9, max_k=9, bias=None, needs_lse=False):
    k = q if k is None else k
    return list(attention.why_not_flash(q, k, k if v is None else v, max_q, max_k, bias, needs_lse))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_size", [8, 64, 80, 256])
def test_flash_takes_half_precision_without_bias(gpu, dtype, head_size):
    assert flash_reasons(heads(20, 4, head_size, dtype), heads(30, 2, head_size, dtype)) == []
    fused = torch.empty(20, 3, 4, head_size, dtype=dtype, device="cuda")
    assert flash_reasons(*fused.unbind(1)) == []


def test_flash_says_why_not_all_at_once(gpu):
    q = heads(20, 4, 20, torch.float32)
    found = flash_reasons(q, v=heads(20, 4, 16, torch.float32), bias=torch.zeros(1))
    assert [r.split(",")[0] for r in found] == [
        "needs float16 or bfloat16",
        "takes no bias",
        "needs one head size",
        "needs a head size that is a multiple of 8 up to 256",
        "needs rows of q on 16-byte boundaries with last stride 1",
        "needs rows of k on 16-byte boundaries with last stride 1",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda: {"q": heads(20, 4, 264)}, "multiple of 8 up to 256, got 264"),
        (lambda: {"q": heads(0, 4, 64)}, "empty batch"),
        (lambda: {"q": heads(20, 4, 64), "max_k": 0}, "empty batch"),
        (lambda: {"q": heads(20, 4, 64), "k": heads(20, 2, 64), "max_q": 1}, "max_q is 1"),
        (
            lambda: {"q": torch.empty_strided((20, 4, 64), (272, 68, 1), dtype=torch.half, device="cuda")},
            "16-byte boundaries",
        ),
        (lambda: {"q": heads(20, 64, 64).transpose(1, 2)}, "16-byte boundaries"),
        (lambda: {"q": heads(20, 4, 64).requires_grad_(), "needs_lse": True}, "no gradient for the log-sum-exp"),
        (lambda: {"q": heads(20, 4, 64, device="cpu")}, "needs CUDA tensors, got cpu"),
    ],
)
def test_flash_declines(gpu, change, reason):
    assert any(reason in found for found in flash_reasons(**change()))


def test_flash_needs_ampere(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert "needs compute capability 8.0, this GPU has (7, 5)" in flash_reasons(heads(20, 4, 64))


@pytest.mark.parametrize("old", [False, True], ids=["enable_gqa", "torch 2.11"])
def test_flash_arguments_and_results_are_translated(monkeypatch, old):
    seen = {}

    def now(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux, scale, window_size, enable_gqa=False):
        seen.update(cu_q=cu_q, cu_k=cu_k, window=window_size, scale=scale, gqa=enable_gqa, aux=return_aux)
        lse = torch.arange(8.0).view(4, 2)
        lse[1, 0] = torch.inf
        return q.clone(), lse

    def before(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux, scale, window_size):
        return now(q, k, v, cu_q, cu_k, max_q, max_k, return_aux=return_aux, scale=scale, window_size=window_size)

    monkeypatch.setattr(varlen, "varlen_attn", before if old else now)
    q, k = torch.zeros(2, 4, 8), torch.zeros(3, 2, 8)
    cu = torch.tensor([0, 2])
    out, lse = attention.flash_attention(q, k, k, cu, cu, 2, 3, 0.5, True, (7, -1))
    assert seen["window"] == (7, 0)
    assert seen["cu_q"].dtype == seen["cu_k"].dtype == torch.int32
    assert seen["gqa"] is not old
    assert seen["scale"] == 0.5
    assert seen["aux"].lse
    assert out.shape == q.shape
    assert lse.shape == (2, 4)
    assert lse[0, 1] == -torch.inf


def test_the_arguments_that_flash_passes_exist_in_this_torch():
    parameters = inspect.signature(varlen.varlen_attn).parameters
    assert {"return_aux", "scale", "window_size"} <= set(parameters)
    assert list(parameters)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


@pytest.mark.parametrize(("setting", "expected"), [("highest", "ieee"), ("high", "tf32x3")])
def test_float32_products_follow_the_switch_of_torch(monkeypatch, setting, expected):
    kernels = pytest.importorskip("edgeops.triton_kernels.ragged.attention")
    seen = {}
    monkeypatch.setattr(kernels, "ragged_attention_fwd", lambda *_, precision: seen.update(precision=precision))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    q = torch.zeros(5, 4, 8)
    attention.ATTENTION[0].run(q, q, q, CU, CU, None, 1.0, False, -1, -1)
    torch.set_float32_matmul_precision(before)
    assert seen == {"precision": expected}


def test_triton_takes_what_flash_lacks(gpu):
    for q in (heads(20, 4, 20, torch.float32), heads(20, 4, 512), heads(0, 4, 64)):
        assert paths.pick("x", attention.ATTENTION, q, q, q).name == "triton"


@pytest.mark.parametrize("q", [lambda: heads(20, 4, 64, torch.float64), lambda: heads(20, 4, 513)])
def test_the_reference_takes_what_triton_lacks(gpu, q):
    assert paths.pick("x", attention.ATTENTION, q(), q(), q()).name == "reference"


def test_without_triton_the_reference_runs(gpu, monkeypatch):
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    q = heads(20, 4, 64)
    (reason,) = attention.why_not_triton_attention(q, q, q)
    assert reason == "triton is not installed (pip install 'edgeops[triton]')"
    for table in (attention.ATTENTION, rows.POOL, rows.GELU, rows.NORM):
        assert paths.pick("x", table, q, q, q).name == "reference"


def test_nothing_fits_and_every_reason_is_listed(gpu):
    q = heads(20, 4, 600, torch.int32)
    with pytest.raises(NotImplementedError, match="ragged_attention: has no GPU path") as error:
        paths.pick("ragged_attention", attention.ATTENTION, q, q, q)
    text = str(error.value)
    for part in (
        "int32 tensor of shape (20, 4, 600) on cuda",
        "triton: needs float32",
        "up to 512",
        "reference: needs a",
    ):
        assert part in text


CU = torch.tensor([0, 2, 5], dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        ({"q": torch.zeros(5, 8)}, ValueError, r"q, k, v must have shapes"),
        ({"k": torch.zeros(5, 2, 9)}, ValueError, r"q, k, v must have shapes"),
        ({"v": torch.zeros(4, 2, 8)}, ValueError, r"q, k, v must have shapes"),
        ({"k": torch.zeros(5, 2, 8, dtype=torch.float16)}, TypeError, r"one dtype"),
        ({"k": torch.zeros(5, 3, 8), "v": torch.zeros(5, 3, 8)}, ValueError, r"multiple of those of k; got 4 and 3"),
        ({"cu_q": CU.float()}, TypeError, r"cu_q must be int32 or int64; got float32"),
        ({"cu_k": CU[:2]}, ValueError, r"cu_q and cu_k must be \[N \+ 1\]"),
        ({"bias": torch.zeros(5, 5)}, ValueError, r"bias must be floating point \[2 or 1, 4 or 1, M, M\]"),
        ({"bias": torch.zeros(3, 1, 5, 5)}, ValueError, r"got float32 tensor of shape \(3, 1, 5, 5\)"),
        ({"bias": torch.zeros(1, 1, 5, 5, dtype=torch.int32)}, ValueError, r"floating point"),
    ],
)
def test_attention_arguments_are_checked(arguments, kind, match):
    good = {"q": torch.zeros(5, 4, 8), "k": torch.zeros(5, 2, 8), "v": torch.zeros(5, 2, 8), "cu_q": CU, "cu_k": CU}
    merged = good | {"bias": None} | arguments
    with pytest.raises(kind, match=match):
        attention.ragged_attention_fwd_cuda(*merged.values(), 1.0, False, -1, -1)


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda: rows.ragged_pack_cuda(torch.zeros(2, 3), CU.float(), 5), TypeError, "pack: offsets"),
        (lambda: rows.ragged_pack_cuda(torch.zeros(3, 3), CU, 5), ValueError, r"must have shape \[2, L, ...\]"),
        (lambda: rows.ragged_unpack_cuda(torch.zeros(5, 1), CU[None], 3, 0.0), ValueError, "unpack: offsets"),
        (lambda: rows.ragged_pool_fwd_cuda(torch.zeros(5), CU, 0), ValueError, r"x must be \[T, C\]"),
        (lambda: rows.ragged_pool_fwd_cuda(torch.zeros(5, 1), CU[None], 0), ValueError, "offsets must be"),
        (lambda: rows.bias_gelu_fwd_cuda(torch.zeros(5, 2), torch.zeros(3), True), ValueError, "bias must have"),
        (
            lambda: rows.add_layer_norm_fwd_cuda(
                torch.zeros(5, 2), None, torch.zeros(5, 3), torch.zeros(2), torch.zeros(2), 1e-5
            ),
            ValueError,
            "residual must be like x",
        ),
    ],
)
def test_row_arguments_are_checked(call, kind, match):
    with pytest.raises(kind, match=match):
        call()


class Recorder:
    """Takes registrations and keeps their names."""

    def __init__(self):
        self.names = []

    def impl(self, name, function, key):
        assert key == "CUDA"
        self.names.append(name)


def test_registration_leaves_compiled_ops_alone():
    everything, rest = Recorder(), Recorder()
    assert dispatch.register_cuda(everything, compiled=False) == everything.names == list(dispatch.KERNELS)
    assert dispatch.register_cuda(rest, compiled=True) == rest.names
    assert set(everything.names) - set(rest.names) == set(dispatch.COMPILED)


def test_every_forward_op_has_a_gpu_kernel():
    for name in dispatch.KERNELS:
        assert "CUDA: registered at" in torch._C._dispatch_dump(f"edgeops::{name}")


def test_compiled_ops_are_those_of_the_cuda_module():
    source = (Path(__file__).parents[2] / "csrc" / "cuda" / "module_cuda.cpp").read_text()
    assert tuple(re.findall(r'm\.impl\("(\w+)"', source)) == dispatch.COMPILED


@pytest.mark.usefixtures("clean_memory")
def test_the_choice_and_the_call_are_traced_without_a_graph_break(monkeypatch):
    def stand_in(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux, scale, window_size, enable_gqa=False):
        return q * 2, q.sum(-1).T

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)

    def choose(q, k, cu):
        found = attention.flash_or_none(q, k, k, cu, cu, 6, 6, None, 0.5, True, (-1, -1), False)
        return attention.flash_attention(q, k, k, cu, cu, 6, 6, 0.5, True, (-1, -1)) if found is None else found

    arguments = torch.ones(6, 4, 8), torch.ones(6, 2, 8), torch.tensor([0, 6])
    out, lse = torch.compile(choose, fullgraph=True, backend="eager", dynamic=True)(*arguments)
    assert (out == 2).all()
    assert lse.shape == (6, 4)
