# SPDX-License-Identifier: Apache-2.0
"""Pooling, native and twin, against plain torch in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgeops.ragged import ragged_pool
from edgeops.ragged._reference import POOL_MODES, ragged_pool_bwd_reference, ragged_pool_fwd_reference
from tests.budget import assert_within_budget
from tests.messages import refused
from tests.peers import offsets_of

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [0, 1, 15, 16, 17, 0, 600, 2]


def twin(x: Tensor, offsets: Tensor, reduction: str) -> Tensor:
    return ragged_pool_fwd_reference(x, offsets, POOL_MODES.index(reduction))


def peer(x: Tensor, offsets: Tensor, reduction: str) -> Tensor:
    """Plain torch, one sequence at a time."""
    rows = []
    for part in x.split(offsets.diff().tolist()) if len(offsets) > 1 else ():
        if len(part) == 0:
            rows.append(x.new_full(x.shape[1:], -torch.inf if reduction == "logsumexp" else 0.0))
        else:
            name = {"max": "amax", "min": "amin"}.get(reduction, reduction)
            rows.append(getattr(part, name)(0))
    return torch.stack(rows) if rows else x.new_zeros(0, x.shape[1])


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=[ragged_pool, twin], ids=["native", "twin"])
def pool(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", POOL_MODES)
@pytest.mark.parametrize("width", [0, 1, 7, 32, 33, 100])
def test_forward(pool: Callable[..., Tensor], width: int, reduction: str, dtype: torch.dtype) -> None:
    x, cu = normal(sum(LENGTHS), width, dtype=dtype), offsets_of(LENGTHS)
    exact, same = peer(x.double(), cu, reduction), peer(x, cu, reduction)
    # rows are added in order, torch adds in pairs: sums of many rows round more, within eps times the sum of the sizes
    noise = torch.finfo(dtype).eps * float(peer(x.double().abs(), cu, "sum").max()) if width else 0.0
    noise = 0.0 if reduction in ("max", "min") else noise / 600 if reduction != "sum" else noise
    assert_within_budget(reduction, pool(x, cu, reduction), same, exact, 2.0, noise)
    if reduction in ("max", "min"):
        assert torch.equal(pool(x, cu, reduction), same)


@pytest.mark.parametrize("reduction", POOL_MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward(reduction: str, dtype: torch.dtype) -> None:
    cu = offsets_of(LENGTHS, torch.int32)
    x = normal(sum(LENGTHS), 9, dtype=dtype).requires_grad_()
    grad = normal(len(LENGTHS), 9, dtype=dtype, seed=1)
    (got,) = torch.autograd.grad(ragged_pool(x, cu, reduction), x, grad)
    (same,) = torch.autograd.grad(peer(x, cu, reduction), x, grad)
    wide = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(peer(wide, cu, reduction), wide, grad.double())
    assert_within_budget(reduction, got, same, exact)


@pytest.mark.parametrize("reduction", POOL_MODES)
def test_gradcheck(reduction: str) -> None:
    cu = offsets_of([2, 1, 3] if reduction == "logsumexp" else [2, 0, 4])  # that of an empty one is -inf, as it must be
    x = normal(6, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ragged_pool(x, cu, reduction), (x,))


def test_ties_of_the_maximum_share_the_gradient() -> None:
    x = torch.tensor([[1.0], [2.0], [2.0]], requires_grad=True)
    ragged_pool(x, torch.tensor([0, 3]), "max").backward(torch.tensor([[3.0]]))
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0], [1.5], [1.5]]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("reduction", POOL_MODES)
def test_nothing(pool: Callable[..., Tensor], reduction: str, lengths: list[int]) -> None:
    x = torch.zeros(0, 5, requires_grad=True)
    out = pool(x, offsets_of(lengths), reduction)
    assert torch.equal(out, torch.full((len(lengths), 5), -torch.inf if reduction == "logsumexp" else 0.0))


@pytest.mark.parametrize("reduction", POOL_MODES)
def test_layouts_of_input(reduction: str) -> None:
    dense, cu = normal(24, 6), offsets_of([7, 0, 17])
    buffer = torch.full((30, 11), torch.nan)
    buffer[3:27, 2:8] = dense
    strided = {
        "transposed": dense.T.contiguous().T,
        "sliced": buffer[3:27, 2:8],
        "rows apart": torch.stack([dense, dense], 1)[:, 0],
    }
    for name, x in strided.items():
        assert torch.equal(ragged_pool(x, cu, reduction), ragged_pool(dense, cu, reduction)), name
    for x in (dense[:1].expand(24, 6), dense[:, :1].expand(24, 6), torch.ones(1, 1).expand(24, 6)):
        assert torch.equal(ragged_pool(x, cu, reduction), ragged_pool(x.contiguous(), cu, reduction))


@pytest.mark.parametrize("reduction", POOL_MODES)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_value_stays_in_its_sequence_and_column(reduction: str, poison: float) -> None:
    cu = offsets_of([3, 2, 4])
    x = normal(9, 40)
    clean = ragged_pool(x, cu, reduction)
    x[4, 7] = poison
    out = ragged_pool(x, cu, reduction)
    hit = torch.zeros(3, 40, dtype=torch.bool)
    hit[1, 7] = True
    assert torch.equal(out[~hit], clean[~hit])
    want = peer(x, cu, reduction)[1, 7]
    assert torch.equal(out[1, 7].nan_to_num(nan=3.0), want.nan_to_num(nan=3.0))


@pytest.mark.parametrize("mode", range(5))
def test_backward_op_against_twin(mode: int) -> None:
    cu = offsets_of(LENGTHS)
    x = normal(sum(LENGTHS), 5)
    out, grad = ragged_pool_fwd_reference(x, cu, mode), normal(len(LENGTHS), 1).expand(-1, 5)
    got = torch.ops.edgeops._ragged_pool_bwd(grad, x, out, cu, mode)
    torch.testing.assert_close(got, ragged_pool_bwd_reference(grad, x, out, cu, mode))


@pytest.mark.parametrize("reduction", POOL_MODES)
def test_any_trailing_shape(reduction: str) -> None:
    cu, x = offsets_of([3, 0, 5]), normal(8, 2, 3)
    want = ragged_pool(x.flatten(1), cu, reduction).view(3, 2, 3)
    assert torch.equal(ragged_pool(x, cu, reduction), want)
    assert torch.equal(ragged_pool(x[:, 0, 0], cu, reduction), want[:, 0, 0])
    assert ragged_pool(x[:, :0], cu, reduction).shape == (3, 0, 3)


def test_gradients_of_infinite_logsumexp_are_finite() -> None:
    x = torch.tensor([[-torch.inf, 1.0], [-torch.inf, torch.inf]], requires_grad=True)
    out = ragged_pool(x, offsets_of([2]), "logsumexp")
    assert out.tolist() == [[-torch.inf, torch.inf]]
    (grad,) = torch.autograd.grad(out, x, torch.ones(1, 2))
    assert grad.tolist() == [[0.5, 0.0], [0.5, 1.0]]


def test_refuses() -> None:
    x, cu = torch.zeros(5, 2), torch.tensor([0, 2, 5])
    with refused(ValueError, "ragged_pool", "reduction must be one of sum, mean, max, min, logsumexp", "'median'"):
        ragged_pool(x, cu, "median")
    with refused(ValueError, "ragged_pool", r"x must have shape \[T, C\]", r"shape \(\)"):
        ragged_pool(x[0, 0], cu)
    with refused(TypeError, "ragged_pool", "x must be float32, float64, float16 or bfloat16", "Long"):
        ragged_pool(x.long(), cu)
