# SPDX-License-Identifier: Apache-2.0
"""The triangular ops: values within budget, gradients, layouts of input, threads, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgeops.ragged import tradd, trmm, trmul
from edgeops.ragged._reference_triangular import trmm_bwd_l_reference, trmm_fwd_reference
from tests.budget import assert_within_budget
from tests.messages import refused

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
UPPER = pytest.mark.parametrize("upper", [False, True], ids=["lower", "upper"])


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def triangle(x: Tensor, upper: bool) -> Tensor:
    return torch.triu(x) if upper else torch.tril(x)


@UPPER
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "width"), [(1, 1), (6, 16), (7, 17), (144, 40), (253, 33), (300, 1030)], ids=str)
def test_trmm(size: int, width: int, dtype: torch.dtype, upper: bool) -> None:
    l, b = normal(size, size, dtype=dtype), normal(size, width, dtype=dtype, seed=1)  # noqa: E741
    exact = 0.5 * triangle(l.double(), upper) @ b.double()
    peer = 0.5 * (triangle(l, upper) @ b)
    noise = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * size
    assert_within_budget("trmm", trmm(l, b, upper=upper, alpha=0.5), peer, exact, 2.0, noise)
    grad = normal(size, width, dtype=dtype, seed=2)
    got = torch.ops.edgeops._trmm_bwd_l(grad, b, upper, 0.5)
    peer = 0.5 * triangle(grad @ b.T, upper)
    noise = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * width
    exact = 0.5 * triangle(grad.double() @ b.double().T, upper)
    assert_within_budget("gradient", got, peer, exact, 2.0, noise)


@UPPER
@pytest.mark.parametrize("transpose", [False, True])
def test_against_twins(upper: bool, transpose: bool) -> None:
    l, b = normal(130, 130, dtype=torch.float64), normal(130, 20, dtype=torch.float64, seed=1)  # noqa: E741
    got = torch.ops.edgeops._trmm_fwd(l, b, upper, transpose, 1.5)
    torch.testing.assert_close(got, trmm_fwd_reference(l, b, upper, transpose, 1.5))
    torch.testing.assert_close(
        torch.ops.edgeops._trmm_bwd_l(b, b.flip(0), upper, 1.5), trmm_bwd_l_reference(b, b.flip(0), upper, 1.5)
    )


@UPPER
@pytest.mark.parametrize("op", [trmm, tradd, trmul])
def test_gradcheck(op: Callable[..., Tensor], upper: bool) -> None:
    x, y = (normal(4, 4, dtype=torch.float64, seed=i).requires_grad_() for i in range(2))

    def call(x: Tensor, y: Tensor) -> Tensor:
        return op(x, y, upper=upper)

    assert torch.autograd.gradcheck(call, (x, y))
    assert torch.autograd.gradgradcheck(call, (x, y))


@UPPER
def test_one_gradient_only(upper: bool) -> None:
    l, b = normal(9, 9).requires_grad_(), normal(9, 4, seed=1).requires_grad_()  # noqa: E741
    both = torch.autograd.grad(trmm(l, b, upper=upper).sum(), (l, b))
    (first,) = torch.autograd.grad(trmm(l, b.detach(), upper=upper).sum(), l)
    (second,) = torch.autograd.grad(trmm(l.detach(), b, upper=upper).sum(), b)
    assert torch.equal(first, both[0])
    assert torch.equal(second, both[1])
    assert torch.equal(first, triangle(first, upper))


@UPPER
def test_nan_reaches_only_the_rows_that_use_it(upper: bool) -> None:
    l, b = normal(70, 70), normal(70, 20, seed=1)  # noqa: E741
    clean = trmm(l, b, upper=upper)
    for bad in (0, 5, 6, 33, 69):
        poisoned = b.clone()
        poisoned[bad, 3] = torch.nan
        out = trmm(l, poisoned, upper=upper)
        rows = torch.arange(70) <= bad if upper else torch.arange(70) >= bad
        assert torch.equal(out[:, 3].isnan(), rows)
        out[:, 3] = clean[:, 3]
        assert torch.equal(out, clean)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_of_input(dtype: torch.dtype) -> None:
    l, b = normal(40, 40, dtype=dtype), normal(40, 24, dtype=dtype, seed=1)  # noqa: E741
    want = trmm(l, b)
    buffer = torch.zeros(80, 50, dtype=dtype)
    buffer[::2, 5:29] = b
    assert torch.equal(trmm(l.T.contiguous().T, b.T.contiguous().T), want)
    assert torch.equal(trmm(l, buffer[::2, 5:29]), want)
    assert torch.equal(trmm(l[:1].expand(40, 40), b), trmm(l[:1].repeat(40, 1), b))
    assert torch.equal(trmm(l, b[:, :1].expand(40, 24)), trmm(l, b[:, :1].repeat(1, 24)))
    assert torch.equal(tradd(l[:, :1].expand(40, 40), l.T), torch.tril(l[:, :1] + l.T))


@pytest.mark.parametrize("size", [0, 1])
def test_nothing(size: int) -> None:
    l = torch.ones(size, size)  # noqa: E741
    assert trmm(l, torch.ones(size, 0)).shape == (size, 0)
    assert trmm(l, torch.ones(size, 3)).shape == (size, 3)
    assert tradd(l, l).shape == (size, size)
    x = torch.ones(5, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(trmm(x, torch.ones(5, 0)).sum(), x)
    assert torch.equal(grad, torch.zeros(5, 5))


def test_any_number_of_threads_gives_the_same_bits(threads: Callable[[int], None]) -> None:
    l, b = normal(500, 500), normal(500, 300, seed=1)  # noqa: E741

    def work() -> list[Tensor]:
        outer = torch.ops.edgeops._trmm_bwd_l
        return [
            *(trmm(l, b, upper=upper) for upper in (False, True)),
            *(outer(b, b, upper, 1.0) for upper in (False, True)),
            tradd(l, l),
        ]

    want = work()
    for count in (2, 3):
        threads(count)
        assert all(torch.equal(x, y) for x, y in zip(work(), want))


@UPPER
def test_large_results_start_as_untouched_pages(upper: bool) -> None:
    """Beyond 32 MiB the zero half is never written."""
    x, y = normal(3001, 3001), normal(3001, 3001, seed=1)
    out = tradd(x, y, upper=upper)
    assert out.is_contiguous()
    assert out.data_ptr() % 64 == 0
    assert torch.equal(out, triangle(x + y, upper))


def test_refuses() -> None:
    square, b = torch.zeros(4, 4), torch.zeros(4, 3)
    with refused(ValueError, "trmm", r"l must be square, \[M, M\]", r"shape \(4, 3\)"):
        trmm(b, b)
    with refused(ValueError, "trmm", r"b must have shape \[M, N\] with M = 4", r"shape \(3, 3\)"):
        trmm(square, b[:3])
    with refused(TypeError, "trmm", "b must have the dtype of l", "Double beside Float"):
        trmm(square, b.double())
    with refused(TypeError, "trmm", "l must be float32, float64, float16 or bfloat16", "Long"):
        trmm(square.long(), b)
    with refused(ValueError, "tradd", "l1 and l2 must have one shape", r"shape \(4, 4\) and shape \(3, 3\)"):
        tradd(square, square[:3, :3])
    with refused(ValueError, "trmul", "l2 must be square", r"shape \(4, 3\)"):
        trmul(square, b)
    with pytest.raises(TypeError):
        trmm(None, b)  # type: ignore[arg-type]
