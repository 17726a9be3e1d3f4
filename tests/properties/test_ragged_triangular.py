# SPDX-License-Identifier: Apache-2.0
"""Properties of the triangular ops over random matrices."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeops.ragged import tradd, trmm, trmul
from tests.strategies import floats, seeds

sizes = st.one_of(st.integers(0, 40), st.sampled_from([143, 145, 251, 252, 253, 260]))
widths = st.one_of(st.integers(0, 20), st.sampled_from([31, 32, 33, 65]))


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def triangle(x: Tensor, upper: bool) -> Tensor:
    return torch.triu(x) if upper else torch.tril(x)


@given(sizes, widths, st.booleans(), floats(), seeds())
def test_trmm(size: int, width: int, upper: bool, dtype: torch.dtype, generator: torch.Generator) -> None:
    """The dense product of the triangle; garbage outside has no effect; columns alone give the same bits."""
    l, b = normal(generator, size, size, dtype=dtype), normal(generator, size, width, dtype=dtype)  # noqa: E741
    out = trmm(l, b, upper=upper, alpha=0.5)
    want = 0.5 * triangle(l.double(), upper) @ b.double()
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    room = eps * (triangle(l.double(), upper).abs() @ b.double().abs())
    assert ((out.double() - want).abs() <= 4 * room + torch.finfo(dtype).eps * want.abs()).all()
    outside = triangle(torch.ones(size, size), upper) == 0
    assert torch.equal(trmm(l.masked_fill(outside, torch.nan), b, upper=upper, alpha=0.5), out)
    for j in range(min(width, 3)):
        assert torch.equal(trmm(l, b[:, j : j + 1], upper=upper, alpha=0.5), out[:, j : j + 1])


@given(sizes, widths, st.booleans(), seeds())
def test_trmm_gradients(size: int, width: int, upper: bool, generator: torch.Generator) -> None:
    """Those of the dense formula, for gradients of any strides."""
    l, b = (normal(generator, size, n).requires_grad_() for n in (size, width))  # noqa: E741
    for grad in (normal(generator, size, width), normal(generator, 1, 1).expand(size, width)):
        got = torch.autograd.grad(trmm(l, b, upper=upper, alpha=2.0), (l, b), grad)
        want = torch.autograd.grad(2.0 * triangle(l, upper) @ b, (l, b), grad)
        for mine, theirs in zip(got, want):
            torch.testing.assert_close(mine, theirs)


@given(sizes, st.booleans(), floats(), seeds())
def test_elementwise(size: int, upper: bool, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Bits of the dense op inside the triangle, zeros outside, whatever stands there; the same for transposed input."""
    x, y = (normal(generator, size, size, dtype=dtype) for _ in range(2))
    outside = triangle(torch.ones(size, size), upper) == 0
    for ours, dense in ((tradd, x + y), (trmul, x * y)):
        want = triangle(dense, upper)
        assert torch.equal(ours(x, y, upper=upper), want)
        assert torch.equal(ours(x.masked_fill(outside, torch.nan), y, upper=upper), want)
        assert torch.equal(ours(x.T, y.T, upper=not upper), want.T)
