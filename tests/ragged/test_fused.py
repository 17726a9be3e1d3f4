# SPDX-License-Identifier: Apache-2.0
"""bias + GELU and bias + residual + LayerNorm, native and twin, against plain torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeops.ragged import add_layer_norm, bias_gelu
from edgeops.ragged._reference import add_layer_norm_fwd_reference, bias_gelu_fwd_reference
from tests.budget import assert_within_budget
from tests.messages import refused

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WIDTHS = [1, 7, 8, 16, 17, 33, 384, 1025, 2050]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gelu_twin(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    return bias_gelu_fwd_reference(x, bias, approximate == "tanh")


def gelu_peer(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    return F.gelu(x + bias, approximate=approximate)


def norm_twin(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, x_bias: Tensor | None = None
) -> Tensor:
    return add_layer_norm_fwd_reference(x, x_bias, residual, weight, bias, eps)[0]


def norm_peer(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, x_bias: Tensor | None = None
) -> Tensor:
    total = x + residual if x_bias is None else x + x_bias + residual
    return F.layer_norm(total, total.shape[-1:], weight, bias, eps)


def check(
    ours: Callable[..., Tensor], peer: Callable[..., Tensor], inputs: list[Tensor], factor: float = 2.0, **options: Any
) -> None:
    """Result and gradients of `ours` in all inputs, in the budget that `peer` sets in the same dtype."""

    def run(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        named = dict(zip(("x_bias",), leaves[4:]))
        out = function(*leaves[:4], **named, **options)
        grad = normal(*out.shape, dtype=inputs[0].dtype, seed=99).to(dtype)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    dtype = inputs[0].dtype
    names = ["out", *(f"gradient {i}" for i in range(len(inputs)))]
    sizes = [0, *(x.ndim for x in inputs)]
    for name, ndim, got, same, exact in zip(
        names, sizes, run(ours, dtype), run(peer, dtype), run(peer, torch.float64), strict=True
    ):
        # a column sum: each addition rounds at the size of the terms, which are a few units
        noise = len(inputs[0]) * torch.finfo(dtype).eps if ndim == 1 else 0.0
        assert_within_budget(name, got, same, exact, factor, noise)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize(("ours", "width"), [*((bias_gelu, n) for n in WIDTHS), (gelu_twin, 1), (gelu_twin, 33)])
def test_bias_gelu(ours: Callable[..., Tensor], width: int, approximate: str, dtype: torch.dtype) -> None:
    inputs = [3 * normal(6, width, dtype=dtype), normal(width, dtype=dtype, seed=1)]
    check(ours, gelu_peer, inputs, approximate=approximate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_bias", [False, True])
@pytest.mark.parametrize(
    ("ours", "width"), [*((add_layer_norm, n) for n in WIDTHS[1:]), (norm_twin, 7), (norm_twin, 33)]
)
def test_add_layer_norm(ours: Callable[..., Tensor], width: int, x_bias: bool, dtype: torch.dtype) -> None:
    vectors = [normal(width, dtype=dtype, seed=i) for i in range(2, 5 if x_bias else 4)]
    inputs = [normal(6, width, dtype=dtype), normal(6, width, dtype=dtype, seed=1), *vectors]
    check(ours, norm_peer, inputs, eps=1e-5)


def test_layer_norm_of_rows_far_from_zero() -> None:
    inputs = [1e3 + normal(6, 64), normal(6, 64, seed=1), normal(64, seed=2), normal(64, seed=3)]
    check(add_layer_norm, norm_peer, inputs, eps=1e-12)


def test_constant_rows_stay_finite() -> None:
    x = torch.full((2, 9), 3.0)
    assert torch.equal(add_layer_norm(x, x, torch.ones(9), torch.arange(9.0)), torch.arange(9.0).expand(2, 9))
    one = add_layer_norm(torch.randn(4, 1), torch.randn(4, 1), torch.ones(1), torch.full((1,), 2.0))
    assert torch.equal(one, torch.full((4, 1), 2.0))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gradcheck_bias_gelu(approximate: str) -> None:
    x, bias = (
        normal(3, 5, dtype=torch.float64).requires_grad_(),
        normal(5, dtype=torch.float64, seed=1).requires_grad_(),
    )
    assert torch.autograd.gradcheck(lambda x, b: bias_gelu(x, b, approximate), (x, bias))


def test_gradcheck_add_layer_norm() -> None:
    rows = [normal(3, 5, dtype=torch.float64, seed=i).requires_grad_() for i in range(2)]
    vectors = [normal(5, dtype=torch.float64, seed=i).requires_grad_() for i in range(2, 5)]
    assert torch.autograd.gradcheck(lambda x, r, w, b, a: add_layer_norm(x, r, w, b, x_bias=a), (*rows, *vectors))


SPECIAL = [0.0, -0.0, 1e-30, -1e-30, 5.0, -5.0, 12.0, -12.0, 100.0, -100.0, 1e4, -1e4, 1e30, torch.inf, torch.nan]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_special_values(approximate: str, dtype: torch.dtype) -> None:
    x = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype).expand(3, -1)
    bias = torch.zeros(len(SPECIAL), dtype=dtype)
    torch.testing.assert_close(bias_gelu(x, bias, approximate), F.gelu(x, approximate=approximate), equal_nan=True)


@pytest.mark.parametrize("value", [-1e37, -3e38])
def test_tanh_gelu_of_huge_negative_values(value: float) -> None:
    out = bias_gelu(torch.full((1, 8), value), torch.zeros(8), "tanh")
    torch.testing.assert_close(out, torch.zeros(1, 8))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_bad_row_stays_alone(poison: float) -> None:
    x, residual, weight, bias = normal(5, 33), normal(5, 33, seed=1), normal(33, seed=2), normal(33, seed=3)
    clean = [bias_gelu(x, bias), add_layer_norm(x, residual, weight, bias)]
    x[2, 11] = poison
    for before, after in zip(clean, [bias_gelu(x, bias), add_layer_norm(x, residual, weight, bias)]):
        others = [0, 1, 3, 4]
        assert torch.equal(before[others], after[others])
        assert not after[2, 11].isfinite()


@pytest.mark.parametrize("rows", [0, 4])
def test_layouts_and_no_rows(rows: int) -> None:
    dense, vector = normal(rows, 12), normal(12, seed=1)
    buffer = torch.full((rows + 2, 15), torch.nan)
    buffer[1 : rows + 1, 2:14] = dense
    spread = torch.full((12, 2), torch.nan)
    spread[:, 0] = vector
    for x in (dense.T.contiguous().T, buffer[1 : rows + 1, 2:14]):
        assert torch.equal(bias_gelu(x, spread[:, 0]), bias_gelu(dense, vector))
        got = add_layer_norm(x, x, spread[:, 0], spread[:, 0], x_bias=spread[:, 0])
        assert torch.equal(got, add_layer_norm(dense, dense, vector, vector, x_bias=vector))
    one = torch.ones(1, 1)
    out = add_layer_norm(one.expand(rows, 12), one.expand(rows, 12), one[0].expand(12), one[0].expand(12))
    assert torch.equal(out, torch.ones(rows, 12))


def test_refuses() -> None:
    x, v = torch.zeros(3, 4), torch.zeros(4)
    with refused(ValueError, "bias_gelu", "approximate must be 'none' or 'tanh'", "'fast'"):
        bias_gelu(x, v, "fast")
    with refused(ValueError, "bias_gelu", r"bias must have shape \[4\]", r"shape \(5,\)"):
        bias_gelu(x, torch.zeros(5))
    with refused(TypeError, "bias_gelu", "bias must have the dtype of x, Float", "Double"):
        bias_gelu(x, v.double())
    with refused(TypeError, "bias_gelu", "x must be float32, float64, float16 or bfloat16", "Long"):
        bias_gelu(x.long(), v.long())
    with refused(ValueError, "bias_gelu", r"x must have shape \[T, C\]", r"shape \(3, 1, 4\)"):
        bias_gelu(x[:, None], v)
    with refused(ValueError, "add_layer_norm", r"residual must have the shape and device of x", r"shape \(2, 4\)"):
        add_layer_norm(x, x[:2], v, v)
    with refused(TypeError, "add_layer_norm", "residual must have the dtype of x, Float", "Half"):
        add_layer_norm(x, x.half(), v, v)
    for name, position in (("weight", 0), ("bias", 1), ("x_bias", 2)):
        vectors = [v, v, v]
        vectors[position] = torch.zeros(1)
        with refused(ValueError, "add_layer_norm", rf"{name} must have shape \[4\]", r"shape \(1,\)"):
            add_layer_norm(x, x, vectors[0], vectors[1], x_bias=vectors[2])
