# SPDX-License-Identifier: Apache-2.0
"""Which GPU path takes a gradient or a dropout, and what is refused; no GPU needed."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from edgeops.ragged import _reference as twin
from edgeops.ragged._cuda import attention, paths

CU = torch.tensor([0, 2, 5])


@pytest.fixture
def gpu(monkeypatch):
    """Fake CUDA tensors, and a card of compute capability 9.0 with 227 KiB of shared memory for a block."""
    card = SimpleNamespace(shared_memory_per_block_optin=227 * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: card)
    with FakeTensorMode():
        yield card


def backward_path(size, dtype=torch.float32):
    q = torch.empty(20, 4, size, dtype=dtype, device="cuda")
    lse = torch.empty(20, 4, device="cuda")
    return paths.pick("x", attention.ATTENTION_BWD, q, None, q, q, q, q, lse).name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 64, 80, 256, 512])
def test_triton_takes_every_head_size(gpu, size, dtype):
    pytest.importorskip("triton")
    assert backward_path(size, dtype) == "triton"


def test_the_reference_takes_what_triton_lacks(gpu):
    assert backward_path(64, torch.float64) == "reference"
    assert backward_path(513) == "reference"


def test_wide_heads_need_shared_memory(gpu):
    pytest.importorskip("triton")
    gpu.shared_memory_per_block_optin = 99 * 1024
    assert backward_path(256) == "triton"
    assert backward_path(512, torch.float16) == "triton"
    assert backward_path(512) == "reference"
    q = torch.empty(20, 4, 512, device="cuda")
    (reason,) = attention.why_not_triton_attention_bwd(q, None, q, q, q)
    assert reason.endswith("bytes of shared memory at head sizes 512 and 512, this GPU has 101376")


def test_flash_is_not_asked_for_dropout(gpu):
    q = torch.empty(20, 4, 64, dtype=torch.bfloat16, device="cuda")
    assert list(attention.why_not_flash(q, q, q, 9, 9, None, False, 0.0)) == []
    assert list(attention.why_not_flash(q, q, q, 9, 9, None, False, 0.1)) == ["draws another dropout mask"]


@pytest.mark.parametrize(("setting", "expected"), [("highest", "ieee"), ("high", "tf32x3")])
def test_float32_products_follow_the_switch_of_torch(monkeypatch, setting, expected):
    kernels = pytest.importorskip("edgeops.triton_kernels.ragged.attention_bwd")
    seen = {}
    monkeypatch.setattr(kernels, "ragged_attention_bwd", lambda *_, precision: seen.update(precision=precision))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        q = torch.zeros(5, 4, 8)
        attention.ATTENTION_BWD[0].run(q, None, q, q, q, q, q[:, :, 0], CU, CU, None, 1.0, False, -1, -1)
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {"precision": expected}


def _arguments():
    q, k = torch.randn(5, 4, 8), torch.randn(5, 2, 8)
    forward = (q, k, k, CU, CU, torch.randn(1, 4, 3, 3), 0.5, True, -1, -1)
    out, lse = twin.ragged_attention_fwd_reference(*forward)
    return {
        "grad_out": torch.randn(5, 4, 8), "grad_lse": torch.randn(5, 4), "q": q, "k": k, "v": k, "out": out, "lse": lse,
    }, forward[3:]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"grad_out": torch.zeros(5, 4, 7)}, r"grad_out must be \[5, 4, 8\] on cpu; got float32 tensor of shape"),
        ({"out": torch.zeros(4, 4, 8)}, r"out must be \[5, 4, 8\]"),
        ({"lse": torch.zeros(4, 5)}, r"lse must be \[5, 4\]"),
        ({"grad_lse": torch.zeros(5)}, r"grad_lse must be \[5, 4\]"),
        ({"q": torch.zeros(5, 8)}, r"q, k, v must have shapes"),
    ],
)
def test_arguments_are_checked(change, match):
    tensors, rest = _arguments()
    with pytest.raises(ValueError, match=match):
        attention.ragged_attention_bwd_cuda(*(tensors | change).values(), *rest)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_dropout_is_a_probability(p):
    tensors, rest = _arguments()
    with pytest.raises(ValueError, match=r"dropout_p must be a probability in \[0, 1\]; got float"):
        attention.ragged_attention_fwd_cuda(tensors["q"], tensors["k"], tensors["v"], *rest, p, torch.tensor(0))
    with pytest.raises(ValueError, match="dropout_p must be"):
        attention.ragged_attention_bwd_cuda(*tensors.values(), *rest, p, torch.tensor(0))


@pytest.mark.parametrize(
    "seed", [None, torch.zeros(2, dtype=torch.int64), torch.tensor(1.0), torch.tensor(1, device="meta")]
)
def test_dropout_needs_a_seed_on_the_device(seed):
    tensors, rest = _arguments()
    with pytest.raises(ValueError, match=r"ragged_attention: seed must be a 0-dim int64 tensor on cpu; got"):
        attention.ragged_attention_fwd_cuda(tensors["q"], tensors["k"], tensors["v"], *rest, 0.5, seed)
    with pytest.raises(ValueError, match="seed must be"):
        attention.ragged_attention_bwd_cuda(*tensors.values(), *rest, 0.5, seed)


@pytest.mark.parametrize("more", [(), (0.4, torch.tensor(7))], ids=["old arity", "new arity"])
def test_the_reference_path_computes(monkeypatch, more):
    monkeypatch.setattr(attention, "ATTENTION", attention.ATTENTION[1:])
    monkeypatch.setattr(attention, "ATTENTION_BWD", attention.ATTENTION_BWD[1:])
    tensors, rest = _arguments()
    got = attention.ragged_attention_bwd_cuda(*tensors.values(), *rest, *more)
    want = twin.ragged_attention_bwd_reference(*tensors.values(), *rest, *more)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    out, _ = attention.ragged_attention_fwd_cuda(tensors["q"], tensors["k"], tensors["v"], *rest, *more)
    assert torch.equal(out, tensors["out"]) == (not more)
