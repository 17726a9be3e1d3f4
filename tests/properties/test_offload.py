# SPDX-License-Identifier: Apache-2.0
"""Properties of the kernels of sparse projectors, over random sizes, dtypes, places and strides."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeops.offload import SparseProjector
from edgeops.offload import _reference as twin
from tests.strategies import floats, seeds

sizes = st.one_of(st.sampled_from([1, 7, 8, 9, 15, 16, 17, 63, 64, 65]), st.integers(1, 90))
columns = st.one_of(st.sampled_from([0, 1, 8, 16, 17, 63, 64, 65, 130]), st.integers(0, 140))


def normal(g: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


def as_it_may_lie(x: Tensor, way: str) -> Tensor:
    """The same matrix dense, transposed, or inside a larger one of NaN."""
    if way == "transposed":
        return x.T.contiguous().T
    if way == "inside":
        room = x.new_full((x.shape[0] + 2, x.shape[1] + 3), torch.nan)
        room[1:-1, 2:-1] = x
        return room[1:-1, 2:-1]
    return x


@st.composite
def projectors(draw: st.DrawFn, g: torch.Generator, rows: int, dtype: torch.dtype) -> SparseProjector:
    width = draw(sizes)
    p = SparseProjector.draw(rows, width, draw(st.integers(1, min(width, 6))), generator=g, dtype=dtype)
    if draw(st.booleans()):
        p.index = p.index.int()
    return p


def close(got: Tensor, exact: Tensor, size: Tensor, terms: int, dtype: torch.dtype) -> bool:
    """Within rounding of a sum of so many terms whose magnitudes add up to `size`."""
    eps = torch.finfo(twin.compute_dtype(dtype)).eps
    room = eps * (terms + 8) * size + torch.finfo(got.dtype).eps * exact.abs() + torch.finfo(got.dtype).tiny
    return bool(((got.double() - exact).abs() <= room).all())


@given(st.data(), seeds(), floats(), sizes, columns, st.sampled_from(["dense", "transposed", "inside"]))
def test_products(data: st.DataObject, g: torch.Generator, dtype: torch.dtype, m: int, n: int, way: str) -> None:
    """`P^T x`, `P y` and what they give the values, against float64; a column has the bits that it has alone."""
    p = data.draw(projectors(g, m, twin.compute_dtype(dtype)))
    x, y = normal(g, m, n, dtype=dtype), normal(g, p.width, n, dtype=dtype)
    dense = p.dense().double()
    ops = torch.ops.edgeops
    got = ops._subspace_project(as_it_may_lie(x, way), *p.tensors())
    assert close(got, dense.T @ x.double(), dense.abs().T @ x.double().abs(), m, dtype)
    back = ops._subspace_expand(as_it_may_lie(y, way), p.index, p.value)
    assert close(back, dense @ y.double(), dense.abs() @ y.double().abs(), p.r, dtype)
    values = ops._subspace_value_grad(as_it_may_lie(x, way), y, p.index)
    index = p.index.long()
    exact = (x.double() @ y.double().T).gather(1, index)
    assert close(values, exact, (x.double().abs() @ y.double().abs().T).gather(1, index), n, dtype)
    if n:
        j = data.draw(st.integers(0, n - 1))
        assert torch.equal(ops._subspace_project(x[:, j : j + 1], *p.tensors()), got[:, j : j + 1])
        assert torch.equal(ops._subspace_expand(y[:, j : j + 1], p.index, p.value), back[:, j : j + 1])


@given(st.data(), seeds(), floats(), sizes, sizes, st.booleans(), st.integers(0, 2**62))
def test_apply(
    data: st.DataObject, g: torch.Generator, dtype: torch.dtype, m: int, n: int, chance: bool, seed: int
) -> None:
    """A row has the bits that it has alone, memory between the rows stays, and chance moves it to a neighbour only."""
    wide = twin.compute_dtype(dtype)
    p, q = data.draw(projectors(g, m, wide)), data.draw(projectors(g, n, wide))
    weight, delta = normal(g, m, n, dtype=dtype), normal(g, p.width, q.width, dtype=wide)
    room = weight.new_full((m, n + 3), torch.nan)
    room[:, 1 : n + 1] = weight
    chance = chance and dtype == torch.bfloat16
    op = torch.ops.edgeops._subspace_apply
    op(room[:, 1 : n + 1], delta, p.index, p.value, q.index, q.value, -0.25, 0.75, chance, seed)
    got = room[:, 1 : n + 1]
    assert bool(room[:, 0].isnan().all() and room[:, n + 1 :].isnan().all())
    left, right = p.dense().double(), q.dense().double()
    exact = 0.75 * weight.double() - 0.25 * (left @ delta.double() @ right.T)
    size = weight.double().abs() + left.abs() @ delta.double().abs() @ right.abs().T
    if chance:
        assert bool(((got.double() - exact).abs() <= 2**-7 * exact.abs() + 1e-5 * size).all())
    else:
        assert close(got, exact, size, p.r + q.r, dtype)
    i = data.draw(st.integers(0, m - 1))
    alone = weight[i : i + 1].clone()
    if not chance:
        op(alone, delta, p.index[i : i + 1], p.value[i : i + 1], q.index, q.value, -0.25, 0.75, False, 0)
        assert torch.equal(alone, got[i : i + 1])


@given(
    seeds(), floats(), st.one_of(st.integers(0, 100), st.sampled_from([16383, 16384, 16385, 40000])), st.integers(1, 9)
)
def test_adam(g: torch.Generator, dtype: torch.dtype, n: int, step: int) -> None:
    """Against the twin in float64; an element has the bits that it has alone."""
    wide = twin.compute_dtype(dtype)
    grad, m, v = normal(g, n, dtype=dtype), normal(g, n, dtype=wide), normal(g, n, dtype=wide).square()
    ours, exact = [grad.clone(), m.clone(), v.clone()], [x.clone().double() for x in (grad, m, v)]
    torch.ops.edgeops._subspace_adam(*ours, step, 0.9, 0.999, 1e-8)
    twin.subspace_adam_reference(*exact, step, 0.9, 0.999, 1e-8)
    eps, sizes_of_moments = 16 * torch.finfo(wide).eps, m.double().abs() + grad.double().abs()
    root = (exact[2] / (1 - 0.999**step)).sqrt() + 1e-8
    squares = v.double() + grad.double().square()
    for got, want, size in zip(ours, exact, (sizes_of_moments / (1 - 0.9**step) / root, sizes_of_moments, squares)):
        stored = torch.finfo(dtype).eps * want.abs() if got.dtype == dtype else 0
        assert bool(((got.double() - want).abs() <= eps * size + stored).all())
    if n:
        i = n // 2
        alone = [grad[i : i + 1].clone(), m[i : i + 1].clone(), v[i : i + 1].clone()]
        torch.ops.edgeops._subspace_adam(*alone, step, 0.9, 0.999, 1e-8)
        assert all(torch.equal(a, x[i : i + 1]) for a, x in zip(alone, ours))
