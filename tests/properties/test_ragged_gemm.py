# SPDX-License-Identifier: Apache-2.0
"""Properties of variable-size and grouped products over random sizes, strides and dtypes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeops.ragged import grouped_mm, vgemm, vgemm_packed
from tests.strategies import floats, lengths, seeds

edges = st.one_of(st.sampled_from([0, 1, 5, 6, 7, 8, 9, 12, 13, 15, 16, 17, 31, 33]), st.integers(0, 40))
depths = st.one_of(edges, st.sampled_from([255, 256, 257, 300, 520]))


@st.composite
def products(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """(m, n, k) of a few products, empty sides among them."""
    return draw(st.lists(st.tuples(edges, edges, depths), min_size=1, max_size=5))


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def placed(draw: st.DrawFn, x: Tensor) -> Tensor:
    """The same matrix in memory of another order: transposed, cut out of NaN, spread, or as it is."""
    kind = draw(st.sampled_from(["dense", "transposed", "cut", "spread"]))
    rows, cols = x.shape
    if kind == "transposed":
        return x.T.contiguous().T
    if kind == "cut":
        room = x.new_full((rows + 2, cols + 3), torch.nan)
        room[1 : rows + 1, 2 : cols + 2] = x
        return room[1 : rows + 1, 2 : cols + 2]
    if kind == "spread":
        room = x.new_full((rows, cols, 2), torch.nan)
        room[..., 0] = x
        return room[..., 0]
    return x


def assert_product(got: Tensor, a: Tensor, b: Tensor) -> None:
    """Within the rounding of a sum in order: k roundings at the size of the terms, and one of the result."""
    want = a.double() @ b.double()
    eps = torch.finfo(torch.promote_types(a.dtype, torch.float32)).eps
    room = eps * (a.shape[1] + 4) * (a.double().abs() @ b.double().abs())
    half = torch.finfo(a.dtype).eps * want.abs() + torch.finfo(a.dtype).tiny
    assert got.dtype == a.dtype
    assert ((got.double() - want).abs() <= room + half).all()


@given(st.data())
def test_vgemm(data: st.DataObject) -> None:
    """Each product is right, and has the bits that it has alone and in any order, wherever its operands lie."""
    generator, dtype = data.draw(seeds()), data.draw(floats())
    sizes = data.draw(products())
    a = [normal(generator, m, k, dtype=dtype) for m, n, k in sizes]
    b = [normal(generator, k, n, dtype=dtype) for m, n, k in sizes]
    out = vgemm(a, b)
    elsewhere = vgemm([placed(data.draw, x) for x in a], [placed(data.draw, x) for x in b])
    order = data.draw(st.permutations(range(len(sizes))))
    permuted = vgemm([a[g] for g in order], [b[g] for g in order])
    for g, (x, y) in enumerate(zip(a, b)):
        assert_product(out[g], x, y)
        assert torch.equal(vgemm([x], [y])[0], out[g])
        assert torch.equal(elsewhere[g], out[g])
        assert torch.equal(permuted[order.index(g)], out[g])


@given(products(), floats(), seeds())
def test_vgemm_packed(sizes: list[tuple[int, int, int]], dtype: torch.dtype, generator: torch.Generator) -> None:
    """The packed form has the bits of the list form, forward and backward."""
    a = [normal(generator, m, k, dtype=dtype).requires_grad_() for m, n, k in sizes]
    b = [normal(generator, k, n, dtype=dtype).requires_grad_() for m, n, k in sizes]
    flat_a, flat_b = (torch.cat([x.detach().flatten() for x in side]).requires_grad_() for side in (a, b))
    out = vgemm(a, b)
    packed = vgemm_packed(flat_a, flat_b, torch.tensor(sizes))
    assert torch.equal(packed, torch.cat([c.flatten() for c in out]))
    grad = normal(generator, packed.shape[0], dtype=dtype)
    parts = [x.view(c.shape) for x, c in zip(grad.split([c.numel() for c in out]), out)]
    packed.backward(grad)
    torch.autograd.backward(out, parts)
    for flat, side in ((flat_a, a), (flat_b, b)):
        assert flat.grad is not None
        assert torch.equal(flat.grad, torch.cat([x.grad.flatten() for x in side if x.grad is not None]))


@pytest.mark.parametrize("form", ["rows", "columns", "inner", "batch"])
@given(data=st.data())
def test_grouped_mm(data: st.DataObject, form: str) -> None:
    """Every group is the product of its parts, with the bits of `vgemm`; behind the last group there is 0."""
    generator, dtype = data.draw(seeds()), data.draw(floats())
    lens = data.draw(lengths(min_size=1))
    rest = data.draw(st.integers(0, 2))
    ends = torch.tensor(lens).cumsum(0).int()
    p, q, total, count = data.draw(edges), data.draw(edges), sum(lens) + rest, len(lens)
    shapes = {
        "rows": ((total, p), (count, p, q)),
        "columns": ((count, q, p), (p, total)),
        "inner": ((p, total), (total, q)),
        "batch": ((count, 5, p), (count, p, q)),
    }
    x, w = (normal(generator, *shape, dtype=dtype) for shape in shapes[form])
    out = grouped_mm(x, w, offs=None if form == "batch" else ends)
    starts = [0, *ends.tolist()]
    for g in range(count):
        part = slice(starts[g], starts[g + 1])
        left = x[part] if form == "rows" else x[:, part] if form == "inner" else x[g]
        right = w[:, part] if form == "columns" else w[part] if form == "inner" else w[g]
        got = out[part] if form == "rows" else out[:, part] if form == "columns" else out[g]
        assert torch.equal(got, vgemm([left], [right])[0])
        assert_product(got, left, right)
    if form in ("rows", "columns"):
        assert not (out[starts[-1] :] if form == "rows" else out[:, starts[-1] :]).any()
