# SPDX-License-Identifier: Apache-2.0
"""`varlen_attn`: PyTorch's argument list, on the CPU, in every dtype (C16)."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeops.ragged import varlen_attn
from tests.budget import assert_within_budget
from tests.messages import refused
from tests.peers import offsets_of, padded_attention

torch_varlen = pytest.importorskip("torch.nn.attention.varlen", reason="this torch has no varlen_attn")
LENGTHS = [3, 0, 17, 1]
CU = offsets_of(LENGTHS, torch.int32)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def qkv(heads: int = 2, kv_heads: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return (
        normal(21, heads, 8, dtype=dtype),
        normal(21, kv_heads, 8, dtype=dtype, seed=1),
        normal(21, kv_heads, 8, seed=2, dtype=dtype),
    )


def test_takes_every_argument_of_torchs() -> None:
    """Same names, order, kinds and defaults; ours may know more keyword arguments, never fewer."""
    theirs = inspect.signature(torch_varlen.varlen_attn).parameters
    ours = inspect.signature(varlen_attn).parameters
    assert [n for n in ours if n in theirs] == list(theirs)
    for name, parameter in theirs.items():
        assert (ours[name].kind, ours[name].default) == (parameter.kind, parameter.default), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("window", "causal"), [((-1, -1), False), ((-1, 0), True), ((4, 0), True)])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_forward_and_backward(kv_heads: int, window: tuple[int, int], causal: bool, dtype: torch.dtype) -> None:
    inputs = [x.requires_grad_() for x in qkv(4, kv_heads, dtype)]
    out = varlen_attn(*inputs, CU, CU, 17, 17, window_size=window, enable_gqa=kv_heads != 4, scale=0.4)
    grads = torch.autograd.grad(out.sum(), inputs)

    def padded(dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        result, _ = padded_attention(*leaves, CU, CU, window=window, causal=causal, scale=0.4)
        return [result, *torch.autograd.grad(result.sum(), leaves)]

    for name, got, peer, exact in zip(("out", "dq", "dk", "dv"), [out, *grads], padded(dtype), padded(torch.float64)):
        assert_within_budget(name, got.detach(), peer.detach(), exact.detach(), 3.0)


def test_lse_on_request() -> None:
    q, k, v = qkv()
    assert isinstance(varlen_attn(q, k, v, CU, CU, 17, 17), Tensor)
    assert isinstance(varlen_attn(q, k, v, CU, CU, 17, 17, return_aux=torch_varlen.AuxRequest(lse=False)), Tensor)
    out, lse = varlen_attn(q, k, v, CU, CU, 17, 17, return_aux=torch_varlen.AuxRequest(lse=True))
    exact, exact_lse = padded_attention(q.double(), k.double(), v.double(), CU, CU)
    torch.testing.assert_close(out.double(), exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-6, rtol=0)


def test_seqused_k_hides_the_rest_of_each_sequence() -> None:
    q, k, v = (x.double() for x in qkv())
    used = torch.tensor([2, 0, 5, 0], dtype=torch.int32)
    position = torch.cat([torch.arange(n) for n in LENGTHS])
    hidden = position >= used[torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))]
    poisoned = [torch.where(hidden[:, None, None], torch.nan, x).requires_grad_() for x in (k, v)]
    out = varlen_attn(q, *poisoned, CU, CU, 17, 17, seqused_k=used)
    keep = ~hidden
    exact, _ = padded_attention(q, k[keep], v[keep], CU, offsets_of(used.tolist()))
    torch.testing.assert_close(out, exact)
    assert not out[-1].any(), "a sequence without a used key gives 0"
    for grad in torch.autograd.grad(out.sum(), poisoned):
        assert not grad[hidden].any()
        assert grad.isfinite().all()


def test_num_splits_changes_nothing() -> None:
    q, k, v = qkv()
    assert torch.equal(varlen_attn(q, k, v, CU, CU, 17, 17, num_splits=1), varlen_attn(q, k, v, CU, CU, 17, 17))


@pytest.mark.parametrize(
    ("changes", "kind", "rule", "got"),
    [
        ({"block_table": torch.zeros(4, 1, dtype=torch.int32)}, NotImplementedError, "paged", "a block_table"),
        ({"cu_seq_k": None}, NotImplementedError, "paged", "block_table"),
        ({"key": qkv(2, 1)[1], "value": qkv(2, 1)[2]}, ValueError, "the same number of heads", "2 and 1"),
        ({"seqused_k": torch.tensor([2, 0, 18, 0])}, ValueError, "seqused_k must have shape", "18"),
        ({"seqused_k": torch.tensor([2, 0, -1, 0])}, ValueError, "seqused_k must have shape", "-1"),
        ({"seqused_k": torch.tensor([2, 0])}, ValueError, "seqused_k must have shape", r"\[2, 0\]"),
    ],
    ids=["pages", "no keys", "heads", "too many", "negative", "too few"],
)
def test_refuses(changes: dict[str, Any], kind: type[Exception], rule: str, got: str) -> None:
    q, k, v = qkv()
    arguments = {"query": q, "key": k, "value": v, "cu_seq_q": CU, "cu_seq_k": CU, "max_q": 17, "max_k": 17}
    with refused(kind, "varlen_attn", rule, got):
        varlen_attn(**(arguments | changes))
