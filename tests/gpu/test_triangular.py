# SPDX-License-Identifier: Apache-2.0
"""Triangular products, sums and element-wise products on a GPU, through the public functions."""

import pytest
import torch

from edgeops.ragged import tradd, trmm, trmul
from tests.budget import assert_within_budget

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
UPPER = pytest.mark.parametrize("upper", [False, True], ids=["lower", "upper"])


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, device="cuda").to(dtype).requires_grad_()


def half_of(x, upper):
    return torch.triu(x) if upper else torch.tril(x)


@FLOATS
@UPPER
@pytest.mark.parametrize(("size", "width"), [(0, 3), (1, 1), (64, 16), (65, 40), (500, 0), (500, 300)])
def test_trmm(dtype, upper, size, width):
    leaves = normal(size, size, dtype=dtype), normal(size, width, dtype=dtype)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    out = trmm(*leaves, upper=upper, alpha=0.5)
    peer, exact = (0.5 * (half_of(a, upper) @ b) for a, b in (leaves, wide))
    noise = 2e-6 * (max(size, width) + 1) ** 0.5
    assert_within_budget("trmm", *(y.detach().cpu() for y in (out, peer, exact)), noise=noise)
    grad = torch.randn(out.shape, device="cuda").to(dtype)
    got, theirs = (torch.autograd.grad(y, leaves, grad) for y in (out, peer))
    for name, a, b, c in zip("lb", got, theirs, torch.autograd.grad(exact, wide, grad.double()), strict=True):
        assert_within_budget(name, a.cpu(), b.cpu(), c.cpu(), noise=noise)


@FLOATS
@UPPER
@pytest.mark.parametrize("size", [0, 1, 130, 1000])
def test_sums_and_element_wise_products(dtype, upper, size):
    x, y = normal(size, size, dtype=dtype), normal(size, size, dtype=dtype)
    for ours, plain in ((tradd, x + y), (trmul, x * y)):
        out, want = ours(x, y, upper=upper), half_of(plain, upper)
        assert torch.equal(out, want)
        grad = torch.randn(out.shape, device="cuda").to(dtype)
        for a, b in zip(*(torch.autograd.grad(z, (x, y), grad) for z in (out, want)), strict=True):
            torch.testing.assert_close(a, b)


def test_any_strides():
    triangle, b = torch.randn(70, 70, device="cuda").T, torch.randn(20, 70, device="cuda").T
    assert torch.equal(trmm(triangle, b), trmm(triangle.contiguous(), b.contiguous()))
    assert torch.equal(tradd(triangle, triangle.T), torch.tril(triangle + triangle.T))


@UPPER
def test_nan_outside_or_in_other_rows_has_no_effect(upper):
    triangle, b = torch.randn(100, 100, device="cuda"), torch.randn(100, 8, device="cuda")
    b[50, 3] = float("nan")
    triangle[half_of(torch.ones(100, 100, device="cuda"), upper) == 0] = float("nan")
    out = trmm(triangle, b, upper=upper)
    rows = torch.arange(100) <= 50 if upper else torch.arange(100) >= 50
    assert torch.equal(out[:, 3].isnan().cpu(), rows)
    assert out[:, :3].isfinite().all()


def test_nothing_waits_for_the_gpu(no_sync):
    triangle, other, b = normal(70, 70), normal(70, 70), normal(70, 20)

    def step():
        out = trmm(trmul(tradd(triangle, other), other), b)
        return torch.autograd.grad(out, (triangle, other, b), torch.ones_like(out))

    step()  # compiles
    with no_sync:
        step()
