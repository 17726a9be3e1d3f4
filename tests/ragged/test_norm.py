# SPDX-License-Identifier: Apache-2.0
"""Segment normalisation: values within budget, gradients, layouts, bad values, threads, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeops.ragged import ragged_instance_norm
from edgeops.ragged._reference_norm import ragged_instance_norm_bwd_reference, ragged_instance_norm_fwd_reference
from tests.budget import assert_within_budget
from tests.messages import refused
from tests.peers import offsets_of

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [2, 15, 16, 17, 600]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def peer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([F.instance_norm(part.T[None], weight=weight, bias=bias)[0].T for part in x.split(LENGTHS)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 33, 300])
def test_forward(width: int, dtype: torch.dtype) -> None:
    x, cu = normal(sum(LENGTHS), width, dtype=dtype), offsets_of(LENGTHS, torch.int32)
    weight, bias = normal(width, dtype=dtype, seed=1), normal(width, dtype=dtype, seed=2)
    out = ragged_instance_norm(x, cu, weight, bias)
    exact = peer(x.double(), weight.double(), bias.double())
    # a pair of close values is divided by their small distance
    noise = 0.0 if dtype == torch.float64 else 1e-5
    assert_within_budget("forward", out, peer(x, weight, bias), exact, 2.0, noise)


@pytest.mark.parametrize("with_vectors", [False, True])
def test_gradcheck_and_twins(with_vectors: bool) -> None:
    cu, x = offsets_of([2, 0, 3, 1]), normal(6, 3, dtype=torch.float64).requires_grad_()
    vectors = [normal(3, dtype=torch.float64, seed=i).requires_grad_() for i in (1, 2)] if with_vectors else []
    assert torch.autograd.gradcheck(lambda x, *v: ragged_instance_norm(x, cu, *v, eps=0.1), (x, *vectors))
    with pytest.raises(NotImplementedError, match="ragged_instance_norm: has first derivatives only"):
        torch.autograd.gradgradcheck(lambda x, *v: ragged_instance_norm(x, cu, *v, eps=0.1), (x, *vectors))
    args = [x.detach(), cu, *(v.detach() for v in vectors)] + ([] if with_vectors else [None, None])
    got = torch.ops.edgeops._ragged_instance_norm_fwd(*args, 1e-5)
    want = ragged_instance_norm_fwd_reference(*args, 1e-5)  # type: ignore[arg-type]
    torch.testing.assert_close(got, want)
    grad = normal(1, 3, dtype=torch.float64).expand(6, 3)
    more = (grad, args[0], cu, *want[1:], args[2])
    torch.testing.assert_close(
        torch.ops.edgeops._ragged_instance_norm_bwd(*more),
        ragged_instance_norm_bwd_reference(*more),  # type: ignore[arg-type]
    )


def test_layouts_and_threads(threads: Callable[[int], None]) -> None:
    cu, x = offsets_of(LENGTHS), normal(sum(LENGTHS), 300)
    want = ragged_instance_norm(x, cu)
    assert torch.equal(ragged_instance_norm(x.T.contiguous().T, cu), want)
    wide = normal(sum(LENGTHS), 320)
    assert torch.equal(ragged_instance_norm(wide[:, 9:99], cu), ragged_instance_norm(wide[:, 9:99].clone(), cu))
    leaf = x.clone().requires_grad_()
    grads = torch.autograd.grad(ragged_instance_norm(leaf, cu).square().sum(), leaf)
    for count in (2, 3):
        threads(count)
        assert torch.equal(ragged_instance_norm(x, cu), want)
        again = torch.autograd.grad(ragged_instance_norm(leaf, cu).square().sum(), leaf)
        assert torch.equal(again[0], grads[0])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_bad_value_stays_in_its_sequence_and_column(poison: float) -> None:
    cu, x = offsets_of([3, 4, 3]), normal(10, 40)
    clean = ragged_instance_norm(x, cu)
    x[4, 7] = poison
    out = ragged_instance_norm(x, cu)
    hit = torch.zeros(10, 40, dtype=torch.bool)
    hit[3:7, 7] = True
    assert torch.equal(out[~hit], clean[~hit])
    assert out[4, 7].isnan()


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_nothing(lengths: list[int]) -> None:
    x, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(4, requires_grad=True)
    out = ragged_instance_norm(x, offsets_of(lengths), weight)
    assert out.shape == (0, 4)
    assert not torch.autograd.grad(out.sum(), weight)[0].any()


def test_refuses() -> None:
    x, cu = torch.zeros(5, 2), torch.tensor([0, 2, 5])
    with refused(ValueError, "ragged_instance_norm", r"x must have shape \[T, C\]"):
        ragged_instance_norm(x[:, 0], cu)
    with refused(ValueError, "ragged_instance_norm", r"weight must have shape \[C\] with C = 2", r"shape \(3,\)"):
        ragged_instance_norm(x, cu, torch.ones(3))
    with refused(ValueError, "ragged_instance_norm", "bias must have shape .* dtype of x", "Double"):
        ragged_instance_norm(x, cu, None, torch.ones(2).double())
    with refused(TypeError, "ragged_instance_norm", "x must be float32, float64, float16 or bfloat16", "Long"):
        ragged_instance_norm(x.long(), cu)
