# SPDX-License-Identifier: Apache-2.0
"""Properties of the backward ops over random batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeops.ragged import add_layer_norm, bias_gelu, ragged_attention, ragged_pool
from tests.peers import offsets_of, padded_attention
from tests.strategies import AttentionInput, attention_inputs, lengths, seeds


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def check_zero_and_linear(call: Callable[[], Tensor], leaves: list[Tensor], generator: torch.Generator) -> None:
    """Backward of zero is zero, and of a sum is the sum."""
    out = call()
    a, b = (torch.randn(out.shape, generator=generator, dtype=out.dtype) for _ in range(2))

    def gradients(grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, leaves, grad, retain_graph=True)

    assert not any(x.any() for x in gradients(torch.zeros_like(out)))
    for x, y, both in zip(gradients(a), gradients(b), gradients(a + 3 * b)):
        torch.testing.assert_close(both, x + 3 * y)


@given(attention_inputs(torch.float64), seeds())
def test_attention(x: AttentionInput, generator: torch.Generator) -> None:
    leaves = [t.requires_grad_() for t in (x.q, x.k, x.v, x.bias) if t is not None]

    def ours() -> Tensor:
        out: Tensor = ragged_attention(x.q, x.k, x.v, x.cu_q, x.cu_k, *x.longest, **x.options)
        return out

    check_zero_and_linear(ours, leaves, generator)
    grad = torch.randn(ours().shape, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad(ours(), leaves, grad)
    padded, _ = padded_attention(x.q, x.k, x.v, x.cu_q, x.cu_k, **x.options)  # type: ignore[arg-type]
    want = torch.autograd.grad(padded, leaves, grad, materialize_grads=True)
    for mine, theirs in zip(got, want):
        torch.testing.assert_close(mine, theirs)


@given(attention_inputs(torch.float64, min_size=2, with_bias=False), st.data())
def test_gradients_stay_in_their_sequence(x: AttentionInput, data: st.DataObject) -> None:
    """NaN coming back to one sequence reaches no other."""
    b = data.draw(st.integers(0, len(x.cu_q) - 2))
    leaves = [t.requires_grad_() for t in (x.q, x.k, x.v)]
    out = ragged_attention(x.q, x.k, x.v, x.cu_q, x.cu_k, *x.longest, **x.options)
    grad = torch.ones_like(out)
    clean = torch.autograd.grad(out, leaves, grad, retain_graph=True)
    grad[int(x.cu_q[b]) : int(x.cu_q[b + 1])] = torch.nan
    for before, after, cu in zip(clean, torch.autograd.grad(out, leaves, grad), (x.cu_q, x.cu_k, x.cu_k)):
        others = torch.ones(len(before), dtype=torch.bool)
        others[int(cu[b]) : int(cu[b + 1])] = False
        assert torch.equal(before[others], after[others])


@given(lengths(), st.integers(0, 9), st.sampled_from(["sum", "mean", "max", "min", "logsumexp"]), seeds())
def test_pool(lens: list[int], width: int, reduction: str, generator: torch.Generator) -> None:
    x, cu = normal(generator, sum(lens), width), offsets_of(lens)
    check_zero_and_linear(lambda: ragged_pool(x, cu, reduction), [x], generator)
    (grad,) = torch.autograd.grad(ragged_pool(x, cu, reduction).sum(), x)
    back = ragged_pool(grad.detach(), cu, "sum")
    every = torch.tensor(lens)[:, None] if reduction == "sum" else (torch.tensor(lens) > 0)[:, None]
    torch.testing.assert_close(back, every.double().expand(len(lens), width))


@given(st.integers(0, 9), st.integers(1, 40), st.sampled_from(["none", "tanh"]), seeds())
def test_bias_gelu(rows: int, width: int, approximate: str, generator: torch.Generator) -> None:
    x, bias = normal(generator, rows, width), normal(generator, width)
    check_zero_and_linear(lambda: bias_gelu(x, bias, approximate), [x, bias], generator)
    dx, dbias = torch.autograd.grad(bias_gelu(x, bias, approximate).sum(), [x, bias])
    torch.testing.assert_close(dbias, dx.sum(0))


@given(st.integers(0, 9), st.integers(2, 40), seeds())
def test_add_layer_norm(rows: int, width: int, generator: torch.Generator) -> None:
    x, residual = normal(generator, rows, width), normal(generator, rows, width)
    weight, bias, x_bias = (normal(generator, width) for _ in range(3))
    leaves = [x, residual, weight, bias, x_bias]
    check_zero_and_linear(lambda: add_layer_norm(x, residual, weight, bias, x_bias=x_bias), leaves, generator)
    grad = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    dx, dresidual, _, dbias, dx_bias = torch.autograd.grad(
        add_layer_norm(x, residual, weight, bias, x_bias=x_bias), leaves, grad
    )
    assert torch.equal(dx, dresidual)
    torch.testing.assert_close(dx_bias, dx.sum(0))
    torch.testing.assert_close(dbias, grad.sum(0))
    torch.testing.assert_close(dx.sum(1), torch.zeros(rows, dtype=torch.float64), atol=1e-9, rtol=0)
