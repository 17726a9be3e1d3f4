# SPDX-License-Identifier: Apache-2.0
"""Softmax over segments: values within budget, gradients, shapes, bad values, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgeops.ragged import ragged_softmax
from edgeops.ragged._reference_softmax import ragged_softmax_bwd_reference, ragged_softmax_fwd_reference
from tests.budget import assert_within_budget
from tests.messages import refused
from tests.peers import offsets_of

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [0, 1, 15, 16, 17, 0, 600, 2]
LOG = pytest.mark.parametrize("log", [False, True], ids=["softmax", "log"])


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def peer(x: Tensor, lengths: list[int], log: bool) -> Tensor:
    parts = [torch.log_softmax(p, 0) if log else torch.softmax(p, 0) for p in x.split(lengths)]
    return torch.cat(parts) if parts else x * 1


@LOG
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 3, 8, 31, 32, 300])
def test_forward_and_backward(width: int, dtype: torch.dtype, log: bool) -> None:
    cu = offsets_of(LENGTHS, torch.int32)
    x = (4 * normal(sum(LENGTHS), width)).to(dtype).requires_grad_()
    grad = normal(sum(LENGTHS), width, dtype=dtype, seed=1)
    wide = x.detach().double().requires_grad_()
    out, same, exact = ragged_softmax(x, cu, log=log), peer(x, LENGTHS, log), peer(wide, LENGTHS, log)
    assert_within_budget("forward", out.detach(), same.detach(), exact.detach(), 2.0, 1e-7)
    (got,) = torch.autograd.grad(out, x, grad)
    (theirs,) = torch.autograd.grad(same, x, grad)
    (want,) = torch.autograd.grad(exact, wide, grad.double())
    # sums of 600 float32 gradients, added in another order than torch does
    assert_within_budget("backward", got, theirs, want, 2.0, 3e-5 if dtype != torch.float64 else 0.0)


@LOG
def test_gradcheck(log: bool) -> None:
    x, cu = normal(5, 2, dtype=torch.float64).requires_grad_(), offsets_of([2, 0, 3])
    assert torch.autograd.gradcheck(lambda x: ragged_softmax(x, cu, log=log), (x,))
    with pytest.raises(NotImplementedError, match="ragged_softmax: has first derivatives only"):
        torch.autograd.gradgradcheck(lambda x: ragged_softmax(x, cu, log=log), (x,))


@LOG
def test_against_twins(log: bool) -> None:
    cu, x = offsets_of(LENGTHS), normal(sum(LENGTHS), 5, dtype=torch.float64)
    out = ragged_softmax_fwd_reference(x, cu, log)
    torch.testing.assert_close(ragged_softmax(x, cu, log=log), out)
    grad = normal(1, 5, dtype=torch.float64).expand(len(x), 5)
    got = torch.ops.edgeops._ragged_softmax_bwd(grad, out, cu, log)
    torch.testing.assert_close(got, ragged_softmax_bwd_reference(grad, out, cu, log))


@LOG
def test_shapes_and_layouts(log: bool) -> None:
    cu, x = offsets_of([7, 0, 17]), normal(24, 3, 4)
    want = ragged_softmax(x.flatten(1), cu, log=log).view(24, 3, 4)
    assert torch.equal(ragged_softmax(x, cu, log=log), want)
    assert torch.equal(ragged_softmax(x.transpose(1, 2), cu, log=log), want.transpose(1, 2))
    torch.testing.assert_close(ragged_softmax(x[:, 0, 0], cu, log=log), want[:, 0, 0])
    assert torch.equal(
        ragged_softmax(x[:, 0, :1].expand(24, 40), cu, log=log),
        ragged_softmax(x[:, 0, :1].repeat(1, 40), cu, log=log),
    )
    wide = normal(24, 90)
    assert torch.equal(ragged_softmax(wide[:, 20:60], cu, log=log), ragged_softmax(wide[:, 20:60].clone(), cu, log=log))


@LOG
@pytest.mark.parametrize("width", [1, 5, 40])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_value_stays_in_its_sequence_and_column(width: int, poison: float, log: bool) -> None:
    x = normal(59, width)
    x[4, width // 2] = poison
    x[6:9, 0] = -torch.inf  # a column of nothing but -inf
    lengths = [3, 3, 3, 50]
    torch.testing.assert_close(
        ragged_softmax(x, offsets_of(lengths), log=log), peer(x, lengths, log), equal_nan=True, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("width", [1, 300])
@pytest.mark.parametrize("size", [1e4, 1e38])
def test_large_values(size: float, width: int) -> None:
    x = torch.linspace(-1, 1, 40)[:, None].repeat(1, width) * size
    out = ragged_softmax(x, offsets_of([40]))
    torch.testing.assert_close(out, torch.softmax(x, 0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]], ids=str)
def test_nothing(lengths: list[int]) -> None:
    x = torch.zeros(0, 5, requires_grad=True)
    assert ragged_softmax(x, offsets_of(lengths)).shape == (0, 5)
    assert ragged_softmax(torch.zeros(4, 0), offsets_of([4])).shape == (4, 0)


@pytest.mark.parametrize("width", [1, 700])
def test_any_number_of_threads_gives_the_same_bits(width: int, threads: Callable[[int], None]) -> None:
    x, cu = normal(sum(LENGTHS), width), offsets_of(LENGTHS)
    want = ragged_softmax(x, cu)
    for count in (2, 3):
        threads(count)
        assert torch.equal(ragged_softmax(x, cu), want)


def test_refuses() -> None:
    x, cu = torch.zeros(5, 2), torch.tensor([0, 2, 5])
    with refused(TypeError, "ragged_softmax", "x must be float32, float64, float16 or bfloat16", "Long"):
        ragged_softmax(x.long(), cu)
    with refused(ValueError, "ragged_softmax", r"x must be \[T, \.\.\.\]"):
        ragged_softmax(torch.tensor(1.0), cu)
    with refused(TypeError, "ragged_softmax", "x must be a tensor", "None"):
        ragged_softmax(None, cu)  # type: ignore[arg-type]
    with refused(ValueError, "ragged_softmax", "offsets must end at the number of rows, 5", "= 4"):
        ragged_softmax(x, torch.tensor([0, 4]))
