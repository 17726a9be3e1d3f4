# SPDX-License-Identifier: Apache-2.0
"""Offsets of random dimension graphs against brute-force enumeration (C1)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeops.ragged.addressing import Dim, RaggedShape


def _stored(dims: list[Dim], d: int, index: tuple[int, ...]) -> int:
    dim = dims[d]
    extent = dim.extent if dim.on is None else dim.extent[index[dim.on]]
    return -(-extent // dim.pad) * dim.pad


def _walk(dims: list[Dim], index: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Every stored element in memory order, padding included."""
    if len(index) == len(dims):
        yield index
        return
    for i in range(_stored(dims, len(index), index)):
        yield from _walk(dims, (*index, i))


def _is_real(dims: list[Dim], index: tuple[int, ...]) -> bool:
    return all(
        i < (dim.extent if dim.on is None else dim.extent[index[dim.on]]) for i, dim in zip(index, dims, strict=True)
    )


@st.composite
def dimension_graphs(draw: st.DrawFn) -> list[Dim]:
    dims: list[Dim] = []
    largest: list[int] = []
    for d in range(draw(st.integers(1, 5))):
        pad = draw(st.sampled_from([1, 1, 1, 2, 3]))
        on = draw(st.one_of(st.none(), st.integers(0, d - 1))) if d else None
        if on is None:
            extent: int | tuple[int, ...] = draw(st.integers(0, 3))
            top = extent
        else:
            extent = tuple(draw(st.lists(st.integers(0, 3), min_size=largest[on], max_size=largest[on])))
            top = max(extent, default=0)
        dims.append(Dim(extent, on, pad))
        largest.append(-(-top // pad) * pad)
    return dims


@settings(deadline=None, derandomize=True, max_examples=300)
@given(dimension_graphs())
def test_offsets_equal_enumeration(dims: list[Dim]) -> None:
    elements = list(itertools.islice(_walk(dims), 3000))
    shape = RaggedShape(dims)
    if len(elements) < 3000:
        assert shape.size == len(elements)
    real = [(flat, index) for flat, index in enumerate(elements) if _is_real(dims, index)]
    if real:
        got = shape.offsets([index for _, index in real])
        np.testing.assert_array_equal(got, [flat for flat, _ in real])


def test_worked_example_is_contiguous() -> None:
    lengths = (1, 2)
    dims = [Dim(2), Dim(lengths, on=0), Dim(2), Dim(lengths, on=0)]
    shape = RaggedShape(dims)
    assert shape.prefix(0).tolist() == [0, 1, 5]
    assert [shape.offset(index) for index in _walk(dims)] == list(range(10))
    assert shape.offset((1, 1, 1, 1)) == 9


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=64), st.integers(1, 16))
def test_attention_scores_need_batch_plus_one_integers(lengths: list[int], heads: int) -> None:
    shape = RaggedShape([Dim(len(lengths)), Dim(lengths, on=0), Dim(heads), Dim(lengths, on=0)])
    assert shape.index_size == len(lengths) + 1
    assert shape.size == heads * sum(n * n for n in lengths)


def test_packed_rows_are_the_familiar_offsets() -> None:
    shape = RaggedShape([Dim(3), Dim((2, 0, 5), on=0), Dim(4)])
    assert shape.prefix(0).tolist() == [0, 2, 2, 7]
    assert shape.offset((2, 3, 1)) == (2 + 3) * 4 + 1


def test_triangle() -> None:
    shape = RaggedShape([Dim(100), Dim(lambda i: i + 1, on=0)])
    assert shape.size == 5050
    assert shape.offset((99, 99)) == 5049


def test_large_scores_do_not_overflow_32_bits() -> None:
    shape = RaggedShape([Dim(2), Dim((40000, 40000), on=0), Dim(16), Dim((40000, 40000), on=0)])
    assert shape.size == 2 * 16 * 40000**2
    assert shape.offset((1, 39999, 15, 39999)) == shape.size - 1


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ([], "at least one dimension"),
        ([Dim((1, 2), on=0)], "dimension 0 may depend on an outer dimension only"),
        ([Dim(2), Dim((1, 2), on=1)], "dimension 1 may depend on an outer dimension only"),
        ([Dim(3), Dim((1, 2), on=0)], "needs 3 extents"),
        ([Dim(3, pad=4), Dim((1, 2, 1), on=0)], "needs 4 extents"),
        ([Dim(2), Dim((1, -2), on=0)], "at least 0; got -2"),
        ([Dim((1, 2))], "integer extent when on=None"),
        ([Dim(2), Dim(3, on=0)], "Drop on= for a constant"),
        ([Dim(2), Dim((1.5, 2.0), on=0)], "flat table of integers"),
        ([Dim(2, pad=0)], "pad >= 1"),
    ],
)
def test_bad_graphs_are_refused(dims: list[Dim], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RaggedShape(dims)


def test_bad_indices_are_refused() -> None:
    shape = RaggedShape([Dim(2), Dim((1, 5), on=0, pad=4)])
    with pytest.raises(ValueError, match="index 1 is outside dimension 1 of extent 1"):
        shape.offset((0, 1))
    with pytest.raises(ValueError, match="index -1 is outside dimension 0"):
        shape.offset((-1, 0))
    with pytest.raises(ValueError, match=r"must be \[K, 2\]"):
        shape.offsets([[0, 0, 0]])


def test_storage_and_loop_padding_are_checked() -> None:
    shape = RaggedShape([Dim(2), Dim((1, 5), on=0, pad=4)])
    assert shape.size == 12
    assert shape.extent(1, (1,)) == 5
    assert shape.extent(1, (1,), stored=True) == 8
    shape.check_storage(12)
    with pytest.raises(ValueError, match="must hold 12 elements"):
        shape.check_storage(11)
    shape.check_loops([1, 4])
    with pytest.raises(ValueError, match="looped over up to 8 but stores 4"):
        shape.check_loops([1, 8])
    with pytest.raises(ValueError, match="needs 2 multiples"):
        shape.check_loops([1])
    with pytest.raises(ValueError, match="at least 1"):
        shape.check_loops([1, 0])
