# SPDX-License-Identifier: Apache-2.0
"""Gradients of attention against autograd of padded SDPA in float64, and against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeops.ragged import ragged_attention
from tests.budget import assert_within_budget
from tests.peers import offsets_of, padded_attention

LENGTHS = [0, 1, 15, 16, 0, 17, 37, 2]
LENGTHS_OF_BIAS = [5, 0, 19, 2]


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(attend: Any, inputs: list[Tensor], grads: tuple[Tensor, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Gradients of `attend(*inputs) -> out, lse` for the incoming `grads`, in every input, computed in `dtype`."""
    leaves = [x.to(dtype).detach().requires_grad_() for x in inputs]
    out, lse = attend(*leaves)
    rows = lse > -torch.inf  # an infinite lse has no gradient to give
    grad_lse = torch.where(rows, grads[1].to(lse.dtype), 0.0)
    return list(torch.autograd.grad([out, lse], leaves, [grads[0].to(dtype), grad_lse]))


def check(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, bias: Tensor | None = None, **options: Any
) -> None:
    """Every gradient within the budget set by autograd through padded SDPA in the same dtype."""
    dtype = q.dtype
    longest = [int(c.diff().max()) if len(c) > 1 else 0 for c in (cu_q, cu_k)]

    def ours(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Any:
        return ragged_attention(
            q, k, v, cu_q, cu_k, *longest, bias=bias[0] if bias else None, return_lse=True, **options
        )

    def padded(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Any:
        return padded_attention(q, k, v, cu_q, cu_k, bias=bias[0] if bias else None, **options)

    inputs = [q, k, v, *([] if bias is None else [bias])]
    grads = (normal(q.shape[0], q.shape[1], v.shape[2], dtype=dtype, seed=9), normal(*q.shape[:2], seed=10))
    exact = gradients(padded, inputs, grads, torch.float64)
    peers = gradients(padded, inputs, grads, dtype)
    results = gradients(ours, inputs, grads, dtype)
    # the weights are rebuilt as exp(score - lse), which costs a rounding of lse that stored weights do not have
    factor = 4.0 if dtype == torch.float64 else 3.0
    for name, got, peer, true in zip(("dq", "dk", "dv", "dbias"), results, peers, exact):
        noise = 0.0
        if name == "dbias":
            noise = torch.finfo(dtype).eps * _terms_of(padded, inputs, grads)
        assert_within_budget(name, got, peer, true, factor, noise)


def _terms_of(attend: Any, inputs: list[Tensor], grads: tuple[Tensor, Tensor]) -> float:
    """Largest sum of sizes of the terms that one element of the bias gradient adds up."""
    *qkv, bias = inputs
    longest = [max(LENGTHS_OF_BIAS)] * 2
    full = bias.expand(len(LENGTHS_OF_BIAS), qkv[0].shape[1], *(max(n, m) for n, m in zip(longest, bias.shape[2:])))
    grad = gradients(attend, [*qkv, full], grads, torch.float64)[3].abs()
    return float(grad.sum([d for d in range(4) if bias.shape[d] == 1], keepdim=True).max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (3, 1)])
def test_against_padded(heads: int, kv_heads: int, causal: bool, dtype: torch.dtype) -> None:
    total = sum(LENGTHS)
    q = normal(total, heads, 16, dtype=dtype)
    k, v = normal(total, kv_heads, 16, dtype=dtype, seed=1), normal(total, kv_heads, 20, dtype=dtype, seed=2)
    check(q, k, v, offsets_of(LENGTHS), offsets_of(LENGTHS), causal=causal)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0], [1], [600]], ids=str)
def test_edge_lengths(lengths: list[int]) -> None:
    q, k, v = (normal(sum(lengths), 2, 8, dtype=torch.float32, seed=i) for i in range(3))
    check(q, k, v, offsets_of(lengths), offsets_of(lengths))


@pytest.mark.parametrize("window", [(0, 0), (3, -1), (2, 5), (-1, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_cross_lengths_and_windows(causal: bool, window: tuple[int, int]) -> None:
    cu_q, cu_k = offsets_of([0, 4, 9, 1, 30, 2]), offsets_of([3, 0, 1, 40, 7, 60], torch.int32)
    q, k, v = (normal(n, 2, 8, dtype=torch.float32, seed=n) for n in (46, 111, 111))
    check(q, k, v, cu_q, cu_k, causal=causal, window=window, scale=0.3)


@pytest.mark.parametrize("form", [(1, 1, 1, 1), (4, 2, 19, 19), (1, 2, 19, 19), (4, 1, 1, 20), (1, 2, 25, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bias(form: tuple[int, ...], dtype: torch.dtype) -> None:
    cu = offsets_of(LENGTHS_OF_BIAS)
    q, k, v = (normal(26, 2, 8, dtype=dtype, seed=i) for i in range(3))
    bias = normal(*form, dtype=dtype, seed=3)
    check(q, k, v, cu, cu, bias=bias, causal=True)
    if bias.numel() > 1:
        bias = bias.masked_fill(normal(*form, seed=4) > 0.5, -torch.inf)
        check(q, k, v, cu, cu, bias=bias)


def test_places_of_the_bias_that_no_sequence_reaches_have_gradient_zero() -> None:
    q = normal(3, 1, 4)
    cu = offsets_of([1, 2])
    bias = torch.zeros(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    ragged_attention(q, q, q, cu, cu, 2, 2, bias=bias).square().sum().backward()
    assert bias.grad is not None
    assert bias.grad[1, 0, :2, :2].any()
    rest = bias.grad.clone()
    rest[1, :, :2, :2] = 0
    assert not rest.any()


@pytest.mark.parametrize("layout", ["interleaved", "expanded", "transposed"])
def test_strided_inputs_and_expanded_gradients(layout: str) -> None:
    cu = offsets_of([7, 0, 17])
    fused = normal(24, 3, 2, 8)
    if layout == "transposed":
        fused = fused.transpose(0, 3).contiguous().transpose(0, 3)
    elif layout == "expanded":
        fused = normal(1, 3, 1, 8).expand(24, 3, 2, 8)
    fused = fused.detach().requires_grad_()
    out, lse = ragged_attention(*fused.unbind(1), cu, cu, 17, 17, return_lse=True)
    (got,) = torch.autograd.grad(out.sum() + 2 * lse.sum(), fused)  # the gradient of sum() is an expanded scalar
    out, lse = padded_attention(*fused.unbind(1), cu, cu)
    (want,) = torch.autograd.grad(out.sum() + 2 * lse.sum(), fused)
    torch.testing.assert_close(got, want)


def test_only_what_is_asked_for() -> None:
    cu = offsets_of([2, 3])
    for wanted in range(3):
        inputs = [normal(5, 1, 4, seed=i).requires_grad_(i == wanted) for i in range(3)]
        ragged_attention(*inputs, cu, cu, 3, 3).sum().backward()
        assert [x.grad is not None for x in inputs] == [i == wanted for i in range(3)]


@pytest.mark.parametrize("which", ["out", "lse"])
def test_gradient_of_one_output_alone(which: str) -> None:
    cu = offsets_of([2, 3])
    inputs = [normal(5, 1, 4, seed=i).requires_grad_() for i in range(3)]
    index = 0 if which == "out" else 1
    got = torch.autograd.grad(
        ragged_attention(*inputs, cu, cu, 3, 3, return_lse=True)[index].sum(), inputs, allow_unused=True
    )
    want = torch.autograd.grad(padded_attention(*inputs, cu, cu)[index].sum(), inputs, allow_unused=True)
    for a, b in zip(got, want):
        missing = torch.zeros(5, 1, 4, dtype=torch.float64)
        torch.testing.assert_close(missing if a is None else a, missing if b is None else b)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (1, 1)])
def test_gradcheck(causal: bool, window: tuple[int, int]) -> None:
    cu_q, cu_k = offsets_of([2, 0, 3]), offsets_of([3, 1, 2])
    q, k, v = normal(5, 2, 3).requires_grad_(), normal(6, 1, 3, seed=1), normal(6, 1, 2, seed=2)
    bias = normal(3, 1, 3, 3, seed=3)

    def call(*args: Tensor) -> Tensor:
        *qkv, bias = args
        out, lse = ragged_attention(*qkv, cu_q, cu_k, 3, 3, causal=causal, window=window, bias=bias, return_lse=True)
        return torch.cat([out.flatten(), lse[lse > -torch.inf]])

    assert torch.autograd.gradcheck(call, (q, k.requires_grad_(), v.requires_grad_(), bias.requires_grad_()))
