# SPDX-License-Identifier: Apache-2.0
"""Products with sparse projectors: the grid of the specification, gradients, threads, bad input."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgeops.offload import Pair, SparseProjector, subspace_expand, subspace_project
from edgeops.offload import _reference as twin
from tests.messages import refused

OPS = torch.ops.edgeops
SIZES = (1, 7, 64, 384, 1000, 1536)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def drawn(rows: int, width: int, r: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> SparseProjector:
    return SparseProjector.draw(rows, width, r, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("d", [8, 33, 256])
def test_the_three_products_on_the_grid(d: int, dtype: torch.dtype, limit: float) -> None:
    """Item 1 of section 14: `P^T G Q`, `P S Q^T` and `(x Q), (dy P)` against dense float64 products, d > m too."""
    for (m, n), r in itertools.product(zip(SIZES, (*SIZES[1:], 7)), (1, 4, min(16, d))):
        pair = Pair(drawn(m, d, r), drawn(n, d, r, seed=1))
        left, right = pair.left.dense().double(), pair.right.dense().double()
        g, s = normal(m, n, dtype=dtype), normal(d, d, dtype=dtype, seed=1)
        x, dy = normal(5, n, dtype=dtype, seed=2), normal(5, m, dtype=dtype, seed=3)
        assert error(pair.compress(g), left.T @ g.double() @ right) <= limit
        assert error(pair.expand(s), left @ s.double() @ right.T) <= limit
        assert error(pair.grad(x, dy), (dy.double() @ left).T @ (x.double() @ right)) <= limit


def test_r_up_to_d_and_nothing_to_project() -> None:
    p = drawn(5, 3, 3)
    assert p.project(torch.zeros(5, 0)).shape == (3, 0)
    assert p.expand(torch.zeros(3, 0)).shape == (5, 0)
    x = normal(5, 2)
    torch.testing.assert_close(p.project(x), p.dense().T @ x)
    assert torch.equal(Pair(p, p).grad(torch.zeros(0, 5), torch.zeros(0, 5)), torch.zeros(3, 3))


def test_gradcheck() -> None:
    p = drawn(6, 4, 2, dtype=torch.float64)
    x, y = normal(6, 3, dtype=torch.float64).requires_grad_(), normal(4, 3, dtype=torch.float64).requires_grad_()
    value = p.value.clone().requires_grad_()

    def project(x: Tensor, value: Tensor) -> Tensor:
        return subspace_project(x, p.index, value, p.starts, p.order)

    def expand(y: Tensor, value: Tensor) -> Tensor:
        return subspace_expand(y, p.index, value, p.starts, p.order)

    assert torch.autograd.gradcheck(project, (x, value))
    assert torch.autograd.gradcheck(expand, (y, value))
    with pytest.raises(NotImplementedError, match="subspace_project: has first derivatives only"):
        torch.autograd.gradgradcheck(project, (x, value))


@pytest.mark.parametrize("m", [100, 1000])
def test_any_number_of_threads_gives_the_same_bits(m: int, threads: Callable[[int], None]) -> None:
    p, q = drawn(m, 64, 4), drawn(700, 32, 4, seed=1)
    x, y, delta = normal(m, 700), normal(64, 700, seed=1), normal(64, 32, seed=2)

    def everything() -> list[Tensor]:
        weight, chance = normal(m, 700, seed=3), normal(m, 700, seed=3).bfloat16()
        parts = (delta, p.index, p.value, q.index, q.value, -0.1, 0.9)
        OPS._subspace_apply(weight, *parts)
        OPS._subspace_apply(chance, *parts, True, 5)
        adam = [normal(m, 700, seed=4), normal(m, 700, seed=5), normal(m, 700, seed=6).square()]
        OPS._subspace_adam(*adam, 3, 0.9, 0.999, 1e-8)
        return [p.project(x), p.project(x.T.contiguous().T), p.expand(y), OPS._subspace_value_grad(x, y, p.index),
                weight, chance, *adam]  # fmt: skip

    want = everything()
    for count in (2, 3):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(everything(), want))


def test_nan_stays_in_its_column() -> None:
    p, x = drawn(64, 16, 4), normal(64, 40)
    x[3, 17] = torch.nan
    bad = p.project(x).isnan().any(0)
    assert bad.nonzero().flatten().tolist() == [17]


def test_rounding_by_chance_has_the_right_mean() -> None:
    """Between two neighbours, over many elements; what is not finite and what is exact stays."""
    x = torch.full((200, 500), 1.0 + 2**-9)
    rounded = twin.round_by_chance(x, 7)
    assert sorted(rounded.unique().tolist()) == [1.0, 1.0078125]
    assert abs(float(rounded.double().mean()) - float(x[0, 0])) < 1e-4
    odd = torch.tensor([[torch.inf, -torch.inf, torch.nan, 0.0, -1.5, 3.0e38]])
    torch.testing.assert_close(twin.round_by_chance(odd, 3)[:, :5].float(), odd[:, :5], equal_nan=True)
    assert not torch.equal(rounded, twin.round_by_chance(x, 8))


def test_chance_is_bitwise_that_of_the_twin() -> None:
    """Rows of one entry: the sums are exact, so that nothing but the rounding is compared."""
    p, q = drawn(40, 8, 1), drawn(70, 8, 1, seed=1)
    delta, weight = torch.full((8, 8), 0.5), torch.ones(40, 70, dtype=torch.bfloat16)
    for side in (p, q):
        side.value = torch.full_like(side.value, 0.0625)
    other = weight.clone()
    args = (delta, p.index, p.value, q.index, q.value, -0.25, 1.0, True, 2**45 + 11)
    OPS._subspace_apply(weight, *args)
    twin.subspace_apply_reference(other, *args)
    assert torch.equal(weight, other)
    assert not torch.equal(weight, torch.ones_like(weight))


def test_adam_refuses_and_apply_refuses() -> None:
    p, q = drawn(4, 3, 2), drawn(5, 3, 2)
    weight, delta = torch.zeros(4, 5), torch.zeros(3, 3)
    parts = (p.index, p.value, q.index, q.value)
    with refused(ValueError, "subspace_apply", "p_index must have shape .4, r.*", r"shape \(5, 2\)"):
        OPS_apply(weight, delta, q.index, q.value, *parts[2:], -1.0)
    with refused(TypeError, "subspace_apply", "stochastic rounding is for bfloat16 weights", "Float"):
        OPS_apply(weight, delta, *parts, -1.0, 1.0, True)
    with refused(ValueError, "subspace_apply", "alpha and keep must be finite", "nan"):
        OPS_apply(weight, delta, *parts, float("nan"))
    with refused(TypeError, "subspace_apply", "delta must be float32", "Double"):
        OPS_apply(weight, delta.double(), *parts, -1.0)
    with refused(ValueError, "subspace_apply", "weight must have dense rows"):
        OPS_apply(torch.zeros(5, 4).T, delta, *parts, -1.0)
    with refused(ValueError, "subspace_apply", "weight must not overlap itself"):
        OPS_apply(torch.zeros(1, 5).expand(4, 5), delta, *parts, -1.0)
    with refused(ValueError, "subspace_apply", r"p_index must be columns in \[0, 2\)", "2"):
        OPS_apply(weight, torch.zeros(2, 3), *parts, -1.0)
    assert torch.equal(weight, torch.zeros(4, 5))
    state = torch.zeros(4)
    with refused(ValueError, "subspace_adam", "step must count from 1", "0"):
        native(OPS._subspace_adam, state, state.clone(), state.clone(), 0, 0.9, 0.999, 1e-8)
    with refused(ValueError, "subspace_adam", "exp_avg must have as many elements as grad", r"shape \(3,\)"):
        native(OPS._subspace_adam, state, torch.zeros(3), state.clone(), 1, 0.9, 0.999, 1e-8)
    with refused(ValueError, "subspace_adam", r"betas must lie in \[0, 1\)", "1.0"):
        native(OPS._subspace_adam, state, state.clone(), state.clone(), 1, 1.0, 0.999, 1e-8)


def native(op: Callable[..., object], *args: object) -> None:
    from edgeops._native import translate

    try:
        op(*args)
    except RuntimeError as caught:
        raise translate(caught) from None


def OPS_apply(*args: object) -> None:
    native(OPS._subspace_apply, *args)


def test_products_refuse() -> None:
    p = drawn(5, 4, 2)
    index, value, starts, order = p.tensors()
    with refused(ValueError, "subspace_project", "x must have a row for each of the projector's, 5", r"shape \(4, 2\)"):
        subspace_project(torch.zeros(4, 2), *p.tensors())
    with refused(TypeError, "subspace_project", "value must be float64 with float64", "Float"):
        subspace_project(torch.zeros(5, 2, dtype=torch.float64), *p.tensors())
    with refused(TypeError, "subspace_project", "x must be float32, float64, float16 or bfloat16", "Long"):
        subspace_project(torch.zeros(5, 2, dtype=torch.int64), *p.tensors())
    with refused(ValueError, "subspace_project", "x must be a matrix", r"shape \(5,\)"):
        subspace_project(torch.zeros(5), *p.tensors())
    with refused(ValueError, "subspace_project", r"order must be positions in index, in \[0, 10\)", "10"):
        subspace_project(torch.zeros(5, 2), index, value, starts, order + 1)
    with refused(ValueError, "subspace_project", "starts must begin with 0, never decrease and end within order"):
        subspace_project(torch.zeros(5, 2), index, value, starts + 1, order)
    with refused(ValueError, "subspace_expand", r"index must be columns in \[0, 3\)"):
        subspace_expand(torch.zeros(3, 2), *p.tensors())
    with refused(TypeError, "subspace_expand", "index must be int16 or int32", "Long"):
        subspace_expand(torch.zeros(4, 2), index.long(), value, starts, order)
    with refused(ValueError, "subspace_expand", r"value must be like its index, shape \(5, 2\)", r"shape \(5, 1\)"):
        subspace_expand(torch.zeros(4, 2), index, value[:, :1], starts, order)
