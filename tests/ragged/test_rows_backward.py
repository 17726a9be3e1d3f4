# SPDX-License-Identifier: Apache-2.0
"""The backward kernel ops of bias + GELU, residual + LayerNorm and pooling, against their twins in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeops.ragged import _reference as twin
from edgeops.ragged import add_layer_norm, bias_gelu, ragged_pool
from tests.messages import refused
from tests.peers import offsets_of

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# around the vector widths, the slice of 1024 columns and the block of 64 rows
WIDTHS = [1, 7, 8, 33, 1023, 1025]
ROWS = [0, 1, 63, 64, 65, 200]
ops = torch.ops.edgeops


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got: Tensor, exact: Tensor, size: Tensor | float = 1.0) -> None:
    """Within a few roundings of the dtype, `size` being the size of the terms that were added."""
    low, wide = torch.finfo(got.dtype), torch.finfo(torch.promote_types(got.dtype, torch.float32))
    assert got.shape == exact.shape
    # float64 is no more exact than the twin; the last term is the distance of the smallest numbers
    roundings = 64 if got.dtype == torch.float64 else 16
    size = torch.as_tensor(size, dtype=torch.float64)
    room = low.eps * exact.abs() + roundings * wide.eps * size + low.eps * low.smallest_normal
    assert ((got.double() - exact).abs() <= room).all()


def double(*args: Any) -> list[Any]:
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_bias_gelu(width: int, tanh: bool, dtype: torch.dtype) -> None:
    for rows in ROWS:
        grad, x = normal(rows, width, dtype=dtype, seed=1), 3 * normal(rows, width, dtype=dtype)
        bias = normal(width, dtype=dtype, seed=2)
        got = ops._bias_gelu_bwd(grad, x, bias, tanh)
        exact = twin.bias_gelu_bwd_reference(*double(grad, x, bias), tanh)
        close(got[0], exact[0], grad.double().abs())
        close(got[1], exact[1], grad.double().abs().sum(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("width", WIDTHS[1:])
def test_add_layer_norm(width: int, with_bias: bool, dtype: torch.dtype) -> None:
    for rows in ROWS:
        grad, x, residual = (normal(rows, width, dtype=dtype, seed=i) for i in range(3))
        weight, bias, x_bias = (normal(width, dtype=dtype, seed=i) for i in (3, 4, 5))
        x_bias = x_bias if with_bias else None  # type: ignore[assignment]
        _, mean, rstd = ops._add_layer_norm_fwd(x, x_bias, residual, weight, bias, 1e-5)
        wide = double(x, x_bias, residual, weight, bias)
        _, true_mean, true_rstd = twin.add_layer_norm_fwd_reference(*wide, 1e-5)
        got = ops._add_layer_norm_bwd(grad, x, x_bias, residual, mean, rstd, weight)
        exact = twin.add_layer_norm_bwd_reference(grad.double(), *wide[:3], true_mean, true_rstd, wide[3])
        scaled = (grad.double() * weight.double()).abs()
        # each term counts as much as the largest of its row, through the two means
        close(got[0], exact[0], (scaled.amax(1) * true_rstd)[:, None] * 4)
        close(got[1], exact[1], 4 * grad.double().abs().sum(0))
        close(got[2], exact[2], grad.double().abs().sum(0))
        assert got[3].shape == exact[3].shape == ((width,) if with_bias else (0,))
        close(got[3], exact[3], float((scaled.amax(1) * true_rstd).sum()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", range(5), ids=twin.POOL_MODES)
@pytest.mark.parametrize("width", [0, *WIDTHS])
def test_pool(width: int, mode: int, dtype: torch.dtype) -> None:
    lengths = [0, 1, 5, 0, 255, 256, 257, 600]
    cu = offsets_of(lengths)
    x = normal(sum(lengths), width, dtype=dtype).round(decimals=1)  # ties for the maximum
    grad = normal(len(lengths), width, dtype=dtype, seed=1)
    out = ops._ragged_pool_fwd(x, cu, mode)
    got = ops._ragged_pool_bwd(grad, x, out, cu, mode)
    close(got, twin.ragged_pool_bwd_reference(*double(grad, x, out), cu, mode))


def every_op(grad: Tensor, x: Tensor) -> list[Tensor]:
    """All backward ops on grad and x `[T, C]`, T at least 6."""
    width, total = x.shape[1], x.shape[0]
    vector, cu = normal(width, seed=5), offsets_of([1, 0, total - 3, 2])
    _, mean, rstd = ops._add_layer_norm_fwd(x, vector, x, vector, vector, 1e-5)
    results = [*ops._bias_gelu_bwd(grad, x, vector, False), *ops._bias_gelu_bwd(grad, x, vector, True)]
    results += ops._add_layer_norm_bwd(grad, x, vector, x, mean, rstd, vector)
    for mode in range(5):
        out = ops._ragged_pool_fwd(x, cu, mode)
        results.append(ops._ragged_pool_bwd(grad[:4], x, out, cu, mode))
    return results


def test_any_number_of_threads_gives_the_same_bits(threads: Callable[[int], None]) -> None:
    grad, x = normal(1000, 300), normal(1000, 300, seed=1)
    threads(1)
    expected = every_op(grad, x)
    for count in (2, 3, 8):
        threads(count)
        for got, want in zip(every_op(grad, x), expected, strict=True):
            assert torch.equal(got, want)


def test_a_row_does_not_depend_on_the_others() -> None:
    grad, x = normal(200, 70), normal(200, 70, seed=1)
    vector = normal(70, seed=5)
    _, mean, rstd = ops._add_layer_norm_fwd(x, vector, x, vector, vector, 1e-5)
    dx, _ = ops._bias_gelu_bwd(grad, x, vector, False)
    dsum = ops._add_layer_norm_bwd(grad, x, vector, x, mean, rstd, vector)[0]
    part = slice(67, 130)
    alone, _ = ops._bias_gelu_bwd(grad[part], x[part], vector, False)
    assert torch.equal(alone, dx[part])
    alone = ops._add_layer_norm_bwd(grad[part], x[part], vector, x[part], mean[part], rstd[part], vector)[0]
    assert torch.equal(alone, dsum[part])


@pytest.mark.parametrize(
    "grad",
    [
        torch.ones(()).expand(9, 12),
        normal(12).expand(9, 12),
        normal(9, 1).expand(9, 12),
        normal(12, 9).T,
        normal(9, 30)[:, 3:15],
        normal(18, 12)[::2],
    ],
    ids=["one number", "one row", "one column", "transposed", "sliced", "every other row"],
)
def test_layouts_of_the_gradient(grad: Tensor) -> None:
    x = normal(9, 12, seed=1)
    for got, want in zip(every_op(grad, x), every_op(grad.contiguous(), x), strict=True):
        assert torch.equal(got, want)
    for got, want in zip(every_op(normal(9, 12), grad), every_op(normal(9, 12), grad.contiguous()), strict=True):
        assert torch.equal(got, want)


def test_gradients_of_a_plain_sum() -> None:
    """What `out.sum().backward()` sends back: one number, expanded."""
    x, vector, cu = normal(6, 5).requires_grad_(), normal(5, seed=1).requires_grad_(), offsets_of([2, 0, 4])
    total = bias_gelu(x, vector).sum() + add_layer_norm(x, x, vector, vector, x_bias=vector).sum()
    total = total + sum(ragged_pool(x, cu, reduction).sum() for reduction in twin.POOL_MODES)
    total.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert vector.grad is not None
    assert vector.grad.isfinite().all()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_bad_gradient_stays_in_its_row(poison: float) -> None:
    grad, x, vector = normal(70, 33), normal(70, 33, seed=1), normal(33, seed=2)
    _, mean, rstd = ops._add_layer_norm_fwd(x, None, x, vector, vector, 1e-5)

    def rows() -> list[Tensor]:
        norm = ops._add_layer_norm_bwd(grad, x, None, x, mean, rstd, vector)
        return [ops._bias_gelu_bwd(grad, x, vector, False)[0], norm[0]]

    clean = rows()
    grad[66, 3] = poison
    others = torch.arange(70) != 66
    for before, after in zip(clean, rows(), strict=True):
        assert torch.equal(before[others], after[others])
        assert not after[66].isfinite().all()


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slope_far_out(tanh: bool, dtype: torch.dtype) -> None:
    x = torch.tensor([[12.0, -12.0, 100.0, -100.0, 6e4, -6e4]], dtype=dtype)
    dx, _ = ops._bias_gelu_bwd(torch.ones_like(x), x, torch.zeros(6, dtype=dtype), tanh)
    want = torch.tensor([[1.0, 0.0] * 3], dtype=dtype)
    torch.testing.assert_close(dx, want, atol=1e-9, rtol=0)
    huge = torch.tensor([[1e30, -1e30]], dtype=torch.promote_types(dtype, torch.float32))
    dx, _ = ops._bias_gelu_bwd(torch.ones_like(huge), huge, torch.zeros(2, dtype=huge.dtype), tanh)
    assert dx.tolist() == [[1.0, 0.0]]
    nothing = torch.full((1, 9), torch.nan, dtype=dtype)
    dx, dbias = ops._bias_gelu_bwd(torch.ones_like(nothing), nothing, torch.zeros(9, dtype=dtype), tanh)
    assert dx.isnan().all()
    assert dbias.isnan().all()


def test_nan_in_one_sequence_stays_there() -> None:
    cu = offsets_of([3, 2, 4])
    x, grad = normal(9, 5), normal(3, 5, seed=1)
    clean = ops._ragged_pool_bwd(grad, x, ops._ragged_pool_fwd(x, cu, 2), cu, 2)
    x[4, 2] = torch.nan
    got = ops._ragged_pool_bwd(grad, x, ops._ragged_pool_fwd(x, cu, 2), cu, 2)
    hit = torch.zeros(9, 5, dtype=torch.bool)
    hit[3:5, 2] = True
    assert torch.equal(got[~hit], clean[~hit])
    assert got[hit].isnan().all(), "as the gradient of torch.amax"


def test_refuses() -> None:
    x, v, s, cu = torch.zeros(3, 4), torch.zeros(4), torch.zeros(3), torch.tensor([0, 3])
    with refused(ValueError, "bias_gelu", "grad_out must have the shape and device of x", r"shape \(2, 4\)"):
        translated(ops._bias_gelu_bwd, x[:2], x, v, False)
    with refused(TypeError, "bias_gelu", "grad_out must have the dtype of x, Float", "Double"):
        translated(ops._bias_gelu_bwd, x.double(), x, v, False)
    with refused(ValueError, "add_layer_norm", r"mean must be the one that the forward op returned, \[3\]", "Float"):
        translated(ops._add_layer_norm_bwd, x, x, None, x, s[:2], s, v)
    with refused(ValueError, "add_layer_norm", "rstd must be the one that the forward op returned", "Double"):
        translated(ops._add_layer_norm_bwd, x, x, None, x, s, s.double(), v)
    with refused(ValueError, "ragged_pool", r"grad_out must have one row a sequence, \[1, 4\]", r"shape \(3, 4\)"):
        translated(ops._ragged_pool_bwd, x, x, x[:1], cu, 0)
    with refused(ValueError, "ragged_pool", r"out must have one row a sequence, \[1, 4\]", r"shape \(2, 4\)"):
        translated(ops._ragged_pool_bwd, x[:1], x, x[:2], cu, 2)
    with refused(ValueError, "ragged_pool", "mode must be 0", "5"):
        translated(ops._ragged_pool_bwd, x[:1], x, x[:1], cu, 5)


def translated(op: Any, *args: Any) -> Any:
    """Call a kernel op with the error that its public function would raise."""
    from edgeops import _native

    try:
        return op(*args)
    except RuntimeError as error:
        raise _native.translate(error) from None
