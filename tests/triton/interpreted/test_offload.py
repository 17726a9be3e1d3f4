# SPDX-License-Identifier: Apache-2.0
"""Sparse projectors and their update against the float64 twins, in the interpreter, through the GPU dispatch."""

import pytest
import torch

from edgeops.offload import SparseProjector
from edgeops.offload import _reference as twin
from edgeops.offload._cuda import (
    KERNELS,
    subspace_adam_cuda,
    subspace_apply_cuda,
    subspace_expand_cuda,
    subspace_project_cuda,
    subspace_value_grad_cuda,
)
from edgeops.triton_kernels.offload.update import words_of
from tests.messages import refused

SHAPES = [(1, 1, 1, 1), (7, 8, 7, 300), (40, 33, 4, 1), (65, 8, 3, 0), (70, 5, 5, 17)]  # m, d, r, N
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def projector(m, d, r, seed=0):
    return SparseProjector.draw(m, d, r, generator=torch.Generator().manual_seed(seed))


def matrix(rows, columns, dtype, form):
    """Plain, transposed (as tokens are), with room between rows, or with a step between neighbours."""
    if form == "turned":
        return torch.randn(columns, rows).to(dtype).T
    if form == "cut":
        return torch.randn(rows + 1, columns + 3).to(dtype)[1:, 2 : columns + 2]
    if form == "spread":
        return torch.randn(rows, columns, 2).to(dtype)[..., 0]
    return torch.randn(rows, columns).to(dtype)


def close(got, exact, dtype):
    eps = torch.finfo(dtype).eps
    assert got.shape == exact.shape
    torch.testing.assert_close(got.double(), exact, rtol=2 * eps, atol=1e-6 + eps / 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["plain", "turned", "cut", "spread"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_agree_with_the_twins(shape, form, dtype):
    m, d, r, width = shape
    p = projector(m, min(d, m) if r <= min(d, m) else d, r)
    d = p.width
    index = p.index if dtype == torch.float32 else p.index.int()
    x, y = matrix(m, width, dtype, form), matrix(d, width, dtype, form)
    wide = p.value.double()
    got = subspace_project_cuda(x, index, p.value, p.starts, p.order)
    assert got.dtype == dtype
    close(got, twin.subspace_project_reference(x.double(), index, wide, p.starts, p.order), dtype)
    close(subspace_expand_cuda(y, index, p.value), twin.subspace_expand_reference(y.double(), index, wide), dtype)
    got = subspace_value_grad_cuda(x, y, index)
    assert got.dtype == torch.float32
    exact = twin.subspace_value_grad_reference(x.double(), y.double(), index)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-4)


def test_more_entries_than_a_block():
    """Columns of some hundred entries, rows of more than 16."""
    p = projector(90, 20, 18)
    x = torch.randn(90, 5)
    close(subspace_project_cuda(x, *p.tensors()), p.dense().double().T @ x.double(), torch.float32)
    y = torch.randn(20, 5)
    exact = twin.subspace_value_grad_reference(x.double(), y.double(), p.index)
    torch.testing.assert_close(subspace_value_grad_cuda(x, y, p.index).double(), exact, rtol=1e-5, atol=1e-5)


def test_skipped_zeros_and_empty_columns():
    p = SparseProjector.select(9, torch.tensor([4, 0]))
    x = torch.randn(9, 3)
    assert torch.equal(subspace_project_cuda(x, *p.tensors()), x[[4, 0]])
    starts = torch.tensor([0, 0, 0, 0], dtype=torch.int32)
    assert bool((subspace_project_cuda(x, p.index, p.value, starts, p.order) == 0).all())


def test_nan_stays_where_it_is():
    p = projector(12, 6, 2)
    x, y = torch.randn(12, 4), torch.randn(6, 4)
    clean, clean_y = x.clone(), y.clone()
    x[3, 1] = torch.nan
    y[2, 1] = torch.inf
    hit = (p.index.long()[3][:, None] == torch.arange(6)).any(0)
    got, want = subspace_project_cuda(x, *p.tensors()), subspace_project_cuda(clean, *p.tensors())
    assert torch.equal(got.isnan(), hit[:, None] & (torch.arange(4) == 1))
    assert torch.equal(got[~got.isnan()], want[~got.isnan()])
    got, want = subspace_expand_cuda(y, p.index, p.value), subspace_expand_cuda(clean_y, p.index, p.value)
    reached = (p.index == 2).any(1)[:, None] & (torch.arange(4) == 1)
    assert torch.equal(~got.isfinite(), reached)
    assert torch.equal(got[~reached], want[~reached])
    got = subspace_value_grad_cuda(x, clean_y, p.index)
    assert torch.equal(got.isnan(), (torch.arange(12) == 3)[:, None].expand(12, 2))


def test_integers_outside_count_as_zeros():
    x, y = torch.randn(3, 4), torch.randn(2, 4)
    value = torch.ones(3, 1)
    index = torch.tensor([[0], [2], [-1]], dtype=torch.int16)
    got = subspace_expand_cuda(y, index, value)
    assert torch.equal(got, torch.stack([y[0], 0 * y[0], 0 * y[0]]))
    x[1, 0] = torch.nan
    got = subspace_value_grad_cuda(x, y, index)
    assert bool((got[1:] == 0).all())
    starts, order = torch.tensor([-3, 2, 9], dtype=torch.int32), torch.tensor([0, 7, -5], dtype=torch.int32)
    got = subspace_project_cuda(x, index.clamp(0, 1), value, starts, order)
    assert torch.equal(got, torch.stack([x[0], 0 * x[0]]))
    weight = torch.randn(3, 2)
    before = weight.clone()
    subspace_apply_cuda(weight, torch.ones(2, 2), index, value, index[:2] + 5, value[:2], 1.0)
    assert torch.equal(weight, before)


def update_of(m, n, d, r, dtype):
    p, q = projector(m, min(d, m), min(r, m, d)), projector(n, min(d, n), min(r, n, d), 1)
    room = torch.randn(m, n + 3).to(dtype)
    return room, room[:, 1 : n + 1], torch.randn(p.width, q.width), p, q


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n", "d", "r"), [(1, 1, 1, 1), (33, 70, 8, 4), (5, 1100, 33, 1), (40, 3, 3, 3)])
def test_apply_agrees_with_the_twin(m, n, d, r, dtype):
    room, weight, delta, p, q = update_of(m, n, d, r, dtype)
    around, exact = room.clone(), weight.double()
    sides = (p.index, p.value, q.index.int(), q.value)
    subspace_apply_cuda(weight, delta, *sides, -0.3, 0.9)
    wide = (p.index, p.value.double(), q.index, q.value.double())
    twin.subspace_apply_reference(exact, delta.double(), *wide, -0.3, 0.9)
    close(weight, exact, dtype)
    assert torch.equal(room[:, 0], around[:, 0])
    assert torch.equal(room[:, n + 1 :], around[:, n + 1 :])


@pytest.mark.parametrize("seed", [0, 1, -1, 2**40 + 3, 2**63 - 1, -(2**63)])
def test_rounding_has_the_bits_of_the_twin(seed):
    """With one entry of value 1 a row and alpha a power of 2 nothing is rounded before."""
    d = 37
    p, q = SparseProjector.select(d, torch.arange(d)), SparseProjector.select(d, torch.arange(d))
    delta = torch.randn(d, d)
    delta[0, :6] = torch.tensor([torch.inf, -torch.inf, torch.nan, 3.4e38, -0.0, 1e-40])
    got = torch.zeros(d, d, dtype=torch.bfloat16)
    subspace_apply_cuda(got, delta, p.index, p.value, q.index, q.value, -0.25, 1.0, True, seed)
    want = twin.round_by_chance(-0.25 * delta, seed)
    assert torch.equal(got.isnan(), want.isnan())
    whole = ~want.isnan()
    assert torch.equal(got[whole].view(torch.int16), want[whole].view(torch.int16))


def test_rounding_is_right_on_average():
    delta = torch.full((16, 512), 1 + 2.0**-10)
    p, q = SparseProjector.select(16, torch.arange(16)), SparseProjector.select(512, torch.arange(512))
    weight = torch.zeros(16, 512, dtype=torch.bfloat16)
    subspace_apply_cuda(weight, delta, p.index, p.value, q.index, q.value, 1.0, 1.0, True, 5)
    assert set(weight.float().unique().tolist()) == {1.0, 1 + 2.0**-7}
    assert abs(float(weight.float().mean()) - 1 - 2.0**-10) < 3e-4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0, 1, 1023, 1500])
def test_adam_agrees_with_the_twin(size, dtype):
    grad = torch.randn(size).to(dtype)
    m, v = torch.randn(size), torch.rand(size)
    exact = [x.double() for x in (grad, m, v)]
    for step in (1, 7):
        subspace_adam_cuda(grad, m, v, step, 0.9, 0.999, 1e-8)
        twin.subspace_adam_reference(*exact, step, 0.9, 0.999, 1e-8)
        close(grad, exact[0], dtype)
        torch.testing.assert_close((m.double(), v.double()), tuple(exact[1:]), rtol=1e-5, atol=1e-6)
        exact = [x.double() for x in (grad, m, v)]


def test_float64_runs_the_twins():
    p = projector(6, 3, 2)
    value, x, y = p.value.double(), torch.randn(6, 4).double(), torch.randn(3, 4).double()
    dense = p.dense().double()
    torch.testing.assert_close(subspace_project_cuda(x, p.index, value, p.starts, p.order), dense.T @ x)
    torch.testing.assert_close(subspace_expand_cuda(y, p.index, value), dense @ y)
    torch.testing.assert_close(subspace_value_grad_cuda(x, y, p.index), (x @ y.T).gather(1, p.index.long()))
    weight, delta = torch.zeros(6, 6).double(), torch.randn(3, 3).double()
    subspace_apply_cuda(weight, delta, p.index, value, p.index, value, 2.0)
    torch.testing.assert_close(weight, 2 * dense @ delta @ dense.T)
    subspace_adam_cuda(delta, torch.zeros_like(delta), torch.zeros_like(delta), 1, 0.9, 0.999, 0.0)
    torch.testing.assert_close(delta.abs(), torch.ones_like(delta))


def test_all_ops_are_served():
    from edgeops.offload._ops import TWINS

    assert set(KERNELS) == set(TWINS)
    assert words_of(2**31) == (-(2**31), 0)


def test_refusals():
    p = projector(6, 3, 2)
    x, y, w, delta = torch.randn(6, 4), torch.randn(3, 4), torch.randn(6, 6), torch.randn(3, 3)
    index, value, starts, order = p.tensors()
    sides, m = (index, value, index, value), torch.zeros(9)
    for who, kind, rule, run, args in (
        ("subspace_project", TypeError, "x must be floating", subspace_project_cuda, (x.int(), *p.tensors())),
        ("subspace_project", ValueError, "x must be a matrix", subspace_project_cuda, (x[0], *p.tensors())),
        ("subspace_project", ValueError, "starts must be an int32", subspace_project_cuda,
         (x, index, value, starts.long(), order)),
        ("subspace_project", ValueError, "an element for each", subspace_project_cuda,
         (x, index, value, starts[:1], order)),
        ("subspace_project", ValueError, "index must have shape", subspace_project_cuda,
         (x, index[:5], value, starts, order)),
        ("subspace_project", TypeError, "value must be torch.float32", subspace_project_cuda,
         (x.half(), index, value.half(), starts, order)),
        ("subspace_expand", TypeError, "index must be int16", subspace_expand_cuda, (y, index.long(), value)),
        ("subspace_expand", ValueError, "value must be like", subspace_expand_cuda, (y, index, value[:, :1])),
        ("subspace_value_grad", ValueError, "y must have the columns", subspace_value_grad_cuda, (x, y.half(), index)),
        ("subspace_apply", ValueError, "dense rows", subspace_apply_cuda, (w.T, delta, *sides, 1.0)),
        ("subspace_apply", ValueError, "overlap", subspace_apply_cuda, (w[:1].expand(6, 6), delta, *sides, 1.0)),
        ("subspace_apply", TypeError, "delta must be", subspace_apply_cuda, (w, delta.half(), *sides, 1.0)),
        ("subspace_apply", TypeError, "stochastic", subspace_apply_cuda, (w, delta, *sides, 1.0, 1.0, True)),
        ("subspace_apply", ValueError, "finite", subspace_apply_cuda, (w, delta, *sides, float("nan"))),
        ("subspace_adam", TypeError, "grad must be", subspace_adam_cuda, (m.int(), m, m, 1, 0.9, 0.9, 0.0)),
        ("subspace_adam", ValueError, "as many elements", subspace_adam_cuda, (m, m[1:], m, 1, 0.9, 0.9, 0.0)),
        ("subspace_adam", ValueError, "contiguous", subspace_adam_cuda, (torch.ones(18)[::2], m, m, 1, 0.9, 0.9, 0.0)),
        ("subspace_adam", ValueError, "count from 1", subspace_adam_cuda, (m, m, m, 0, 0.9, 0.9, 0.0)),
        ("subspace_adam", ValueError, "betas", subspace_adam_cuda, (m, m, m, 1, 1.0, 0.9, 0.0)),
    ):  # fmt: skip
        with refused(kind, who, rule):
            run(*args)
