# SPDX-License-Identifier: Apache-2.0
"""Properties of the kernels that read rows of tables, over random sizes, dtypes, places and row lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.batching.batches import SESSIONS, calls
from bench.batching.cells import CELLS
from edgeops.batching._ops import TWINS
from tests.strategies import floats, seeds

sizes = st.one_of(st.sampled_from([0, 1, 2, 3, 4, 6, 7, 12, 13, 145]), st.integers(0, 40))
widths = st.one_of(st.sampled_from([0, 1, 7, 8, 9, 15, 16, 17, 32, 33]), st.integers(0, 40))
depths = st.one_of(widths, st.sampled_from([383, 384, 385, 800]))


def kernel(name: str, *args: object) -> None:
    getattr(torch.ops.edgeops, name).default(*args)


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def picked(generator: torch.Generator, m: int, count: int) -> Tensor:
    return torch.randint(0, max(count, 1), (m,), generator=generator, dtype=torch.int32)


def segment(x: Tensor) -> Tensor:
    """The same matrix as a segment of a table of NaN with wider rows."""
    room = x.new_full((x.shape[0] + 2, x.shape[1] + 3), torch.nan)
    room[1:-1, 2:-1] = x
    return room[1:-1, 2:-1]


@given(st.data(), seeds(), floats(), sizes, widths, st.lists(depths, min_size=1, max_size=3), st.booleans())
def test_rows_linear(
    data: st.DataObject, g: torch.Generator, dtype: torch.dtype, m: int, n: int, k: list[int], packed: bool
) -> None:
    """Every row has the bits it has alone, whatever stands beside it; the weight gradient too is within rounding."""
    tables = [segment(normal(g, 5, width, dtype=dtype)) for width in k]
    rows = [picked(g, m, 5) for _ in k]
    weight, bias = normal(g, n, sum(k), dtype=dtype), normal(g, n, dtype=dtype)
    out = segment(torch.zeros(m, n, dtype=dtype))
    pack = torch.ops.edgeops._rows_linear_pack.default
    kernel("_rows_linear", tables, rows, pack([weight]) if packed else weight, bias, out)
    x = torch.cat([t[r.long()] for t, r in zip(tables, rows)], 1).double()
    wide = torch.promote_types(dtype, torch.float32)
    eps, size = torch.finfo(wide).eps, x.abs() @ weight.double().abs().T + bias.double().abs()
    want = x @ weight.double().T + bias.double()
    room = eps * (sum(k) + 4) * size + torch.finfo(dtype).eps * want.abs() + torch.finfo(dtype).tiny
    assert bool(((out.double() - want).abs() <= room).all())
    if m:
        i = data.draw(st.integers(0, m - 1))
        alone = torch.zeros(1, n, dtype=dtype)
        kernel("_rows_linear", tables, [r[i : i + 1] for r in rows], weight, bias, alone)
        assert torch.equal(alone[0], out[i])
    grad = normal(g, m, n, dtype=dtype)
    dweight, dbias = normal(g, n, sum(k), dtype=wide), normal(g, n, dtype=wide)
    want, want_bias = dweight.double() + grad.double().T @ x, dbias.double() + grad.double().sum(0)
    room = eps * (m + 4) * (dweight.double().abs() + grad.double().abs().T @ x.abs())
    room_bias = eps * (m + 4) * (dbias.double().abs() + grad.double().abs().sum(0))
    kernel("_rows_linear_wgrad", grad, tables, rows, dweight, dbias)
    assert bool(((dweight.double() - want).abs() <= room).all())
    assert bool(((dbias.double() - want_bias).abs() <= room_bias).all())


@given(seeds(), floats(), st.lists(st.integers(0, 5), max_size=9), widths, st.booleans())
def test_rows_sum(g: torch.Generator, dtype: torch.dtype, counts: list[int], width: int, add: bool) -> None:
    """Lists of any length, NaN in rows that no list names."""
    src = segment(normal(g, 6, width, dtype=dtype))
    src[5] = torch.nan
    starts = torch.tensor([0, *counts]).cumsum(0)
    index, out = picked(g, sum(counts), 5), segment(normal(g, len(counts), width, dtype=dtype))
    want = out.to(torch.float64, copy=True) if add else torch.zeros_like(out, dtype=torch.float64)
    TWINS["_rows_sum"](src.double(), starts, index, want, add)
    kernel("_rows_sum", src, starts, index, out, add)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), want, rtol=eps, atol=40 * eps)


@given(seeds(), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 9), widths)
def test_rows_add(g: torch.Generator, dtype: torch.dtype, m: int, width: int) -> None:
    """Rows named several times, NaN in one summand stays in its row."""
    src, out = segment(normal(g, m, width, dtype=dtype)), segment(normal(g, 6, width, dtype=dtype))
    rows = picked(g, m, 5)
    if m:
        src[0] = torch.nan
    want = out.to(torch.float64, copy=True)
    TWINS["_rows_add"](src.double(), rows, want)
    kernel("_rows_add", src, rows, out)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), want, rtol=eps, atol=40 * eps, equal_nan=True)


@pytest.mark.parametrize("name", CELLS)
@given(g=seeds(), dtype=floats(), m=st.integers(0, 9), h=widths, bad=st.booleans())
def test_cells(name: str, g: torch.Generator, dtype: torch.dtype, m: int, h: int, bad: bool) -> None:
    """As the float64 twin, and NaN in one row stays there."""
    args: list[Tensor] = []
    for kind in CELLS[name]:
        if kind == "t":
            args += [segment(normal(g, 7, h, dtype=dtype)), picked(g, m, 7)]
        else:
            count, parts = (2 * m, 1) if kind == "2x" else (m, int(kind))
            args.append(segment(normal(g, count, parts * h, dtype=dtype)))
    wide = [x.to(torch.float64, copy=True) if x.is_floating_point() else x for x in args]
    if name.endswith("_bwd"):  # activated gates lie in (-1, 1)
        for x, y in zip(args, wide):
            if x.is_floating_point():
                x.copy_(x.tanh())
                y.copy_(x)
    clean = [x.clone() for x in args]
    kernel(name, *args)
    TWINS[name](*wide)
    tolerance = 8 * torch.finfo(dtype).eps
    for x, y in zip(args, wide):
        torch.testing.assert_close(x.double(), y.double(), rtol=tolerance, atol=tolerance)
    if bad and m > 1 and h:
        gates = 1 if name.startswith("_treegru_cell") else 0
        clean[gates][0] = torch.nan
        kernel(name, *clean)
        for x, y in zip(args, clean):
            if x.is_floating_point() and len(x) == m:
                assert torch.equal(x[1:], y[1:])


@given(st.sampled_from(sorted(SESSIONS)), floats(), st.integers(1, 20), st.integers(1, 6), st.booleans())
def test_batches_run(session: str, dtype: torch.dtype, width: int, instances: int, train: bool) -> None:
    """Programs give what their twin gives in float64, every section of every session."""
    eps = torch.finfo(dtype).eps
    made = zip(calls(session, width, instances, dtype, train), calls(session, width, instances, dtype, train))
    for ours, theirs in made:
        wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in theirs[9]]
        exact = (*theirs[:9], wide, *theirs[10:])
        kernel("_batches_run", *ours)
        TWINS["_batches_run"](*exact)
        for got, want in zip(ours[9], exact[9], strict=True):
            room = 100 * eps * max(1.0, float(want.abs().max()) if want.numel() else 1.0)
            torch.testing.assert_close(got.double(), want.double(), rtol=100 * eps, atol=room)
