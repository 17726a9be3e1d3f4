# SPDX-License-Identifier: Apache-2.0
"""The triangular kernels against the float64 twins, in the interpreter."""

import pytest
import torch

from edgeops.ragged import _reference_triangular as twin
from edgeops.triton_kernels.ragged.triangular import tri_binary, trmm_bwd_l, trmm_fwd

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
UPPER = pytest.mark.parametrize("upper", [False, True], ids=["lower", "upper"])


def close(got, exact, terms):
    eps = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=2 * eps, atol=terms * 1e-6 + eps)


@FLOATS
@UPPER
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("size", "width"), [(1, 1), (64, 16), (65, 40), (150, 70)])
def test_trmm(dtype, upper, transpose, size, width):
    triangle, b = torch.randn(size, size).to(dtype), torch.randn(size, width).to(dtype)
    exact = twin.trmm_fwd_reference(triangle.double(), b.double(), upper, transpose, 0.5)
    close(trmm_fwd(triangle, b, upper, transpose, 0.5), exact, size)


@FLOATS
@UPPER
@pytest.mark.parametrize(("size", "width"), [(1, 1), (65, 0), (65, 40), (150, 33)])
def test_trmm_bwd_l(dtype, upper, size, width):
    grad, b = torch.randn(size, width).to(dtype), torch.randn(size, width).to(dtype)
    exact = twin.trmm_bwd_l_reference(grad.double(), b.double(), upper, 0.5)
    close(trmm_bwd_l(grad, b, upper, 0.5), exact, width + 1)


@FLOATS
@UPPER
@pytest.mark.parametrize("multiply", [False, True])
@pytest.mark.parametrize("size", [1, 7, 130])
def test_binary(dtype, upper, multiply, size):
    x, y = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype).T
    assert torch.equal(tri_binary(x, y, multiply, upper), twin.tri_binary_reference(x, y, multiply, upper))


@UPPER
def test_nan_outside_or_in_other_rows_has_no_effect(upper):
    triangle, b = torch.randn(100, 100), torch.randn(100, 8)
    b[50, 3] = float("nan")
    triangle[~twin.triangle_reference(torch.ones(100, 100), upper).bool()] = float("nan")
    out = trmm_fwd(triangle, b, upper, False, 1.0)
    rows = torch.arange(100) <= 50 if upper else torch.arange(100) >= 50
    assert torch.equal(out[:, 3].isnan(), rows)
    assert out[:, :3].isfinite().all()


def test_nothing():
    assert trmm_fwd(torch.ones(0, 0), torch.ones(0, 3), False, False, 1.0).shape == (0, 3)
    assert trmm_bwd_l(torch.ones(0, 3), torch.ones(0, 3), False, 1.0).shape == (0, 0)
    assert tri_binary(torch.ones(0, 0), torch.ones(0, 0), True, False).shape == (0, 0)
