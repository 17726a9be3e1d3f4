# SPDX-License-Identifier: Apache-2.0
"""Gradients of pooling and of the fused row kernels against the float64 twins, in the interpreter."""

import pytest
import torch

from edgeops.ragged import _reference as twin
from edgeops.triton_kernels.ragged.fused_bwd import add_layer_norm_bwd, bias_gelu_bwd
from edgeops.triton_kernels.ragged.pool import ragged_pool_bwd
from tests.peers import offsets_of

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
WIDTHS = pytest.mark.parametrize("width", [1, 31, 300])
# within one block of 64 rows, and one row beyond
ROWS = pytest.mark.parametrize("rows", [0, 3, 65])


def values(*shape, dtype):
    return (torch.randn(*shape) * 2).to(dtype)


def double(*args):
    return [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]


def close(got, exact, terms=1):
    """One rounding of the dtype, and float32 roundings of sums of so many terms of a few units."""
    eps = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), exact.double(), rtol=2 * eps, atol=4e-6 * max(terms, 1))


@FLOATS
@WIDTHS
@ROWS
@pytest.mark.parametrize("tanh", [False, True], ids=["erf", "tanh"])
def test_bias_gelu(dtype, width, rows, tanh):
    grad, x, bias = values(rows, width, dtype=dtype), values(rows, width, dtype=dtype), values(width, dtype=dtype)
    got = bias_gelu_bwd(grad, x, bias, tanh)
    exact = twin.bias_gelu_bwd_reference(*double(grad, x, bias), tanh)
    close(got[0], exact[0])
    close(got[1], exact[1], rows)


@FLOATS
@WIDTHS
@ROWS
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "x_bias"])
def test_add_layer_norm(dtype, width, rows, with_bias):
    grad, x = values(rows, width, dtype=dtype), values(rows, width, dtype=dtype)
    residual = values(rows, width + 4, dtype=dtype)[:, 2 : width + 2]
    weight, bias, x_bias = values(3, width, dtype=dtype)
    x_bias = x_bias if with_bias else None
    wide = double(x, x_bias, residual, weight, bias)
    # large enough for rows of one element, whose variance is 0
    _, mean, rstd = twin.add_layer_norm_fwd_reference(*wide, 1e-2)
    got = add_layer_norm_bwd(grad, x, x_bias, residual, mean.float(), rstd.float(), weight)
    exact = twin.add_layer_norm_bwd_reference(grad.double(), *wide[:3], mean, rstd, wide[3])
    close(got[0], exact[0], 20)
    for mine, theirs in zip(got[1:], exact[1:], strict=True):
        close(mine, theirs, 20 * rows)


@FLOATS
@pytest.mark.parametrize("lengths", [[3, 0, 5, 1, 0], [0, 0, 70, 0], [1], [0, 0], []], ids=str)
@pytest.mark.parametrize("mode", range(4), ids=twin.POOL_MODES[:4])
def test_pool(dtype, lengths, mode):
    offsets = offsets_of(lengths)
    x = values(sum(lengths), 37, dtype=dtype).round()  # ties
    grad, out = values(len(lengths), 37, dtype=dtype), twin.ragged_pool_fwd_reference(x, offsets, mode)
    got = ragged_pool_bwd(grad, x, out, offsets.int(), mode)
    assert got.dtype == dtype
    close(got, twin.ragged_pool_bwd_reference(*double(grad, x, out), offsets, mode))


def test_pool_keeps_nan_in_its_segment():
    x, grad, offsets = torch.randn(50, 5), torch.randn(3, 5), offsets_of([10, 35, 5])
    x[40, 3] = float("nan")
    got = ragged_pool_bwd(grad, x, twin.ragged_pool_fwd_reference(x, offsets, 2), offsets, 2)
    hit = torch.zeros(50, 5, dtype=torch.bool)
    hit[10:45, 3] = True
    assert torch.equal(got.isnan(), hit)


@pytest.mark.parametrize("wrong", [[0, 500, 900], [0, 7, 2], [-5, 3, 10], [0, 2**40, 2**41]])
def test_wrong_offsets_never_reach_outside(wrong):
    ragged_pool_bwd(torch.randn(2, 3), torch.randn(6, 3), torch.randn(2, 3), torch.tensor(wrong), 2)


def test_slope_far_out():
    x = torch.tensor([[30.0, -30.0, 1e12, -1e12]])
    for tanh in (False, True):
        dx, _ = bias_gelu_bwd(torch.ones_like(x), x, torch.zeros(4), tanh)
        assert dx.tolist() == [[1.0, 0.0, 1.0, 0.0]]
