# SPDX-License-Identifier: Apache-2.0
"""Where the elements of a ragged tensor lie: dimension graphs and prefix-sum offsets (CoRa, MLSys 2022, section 5.2).

A tensor has dimensions 0..n-1, outermost first. The extent of a dimension is a constant, or a function of the index of
one outer dimension. The second kind makes an edge of the *dimension graph*. Storage needs one prefix-sum array for each
dimension that others depend on, and nothing else: attention scores of shape (batch, l, heads, l) need `batch + 1`
integers, where a sparse format that takes every inner dimension to depend on all outer ones keeps a pointer per row.

Everything here is host-side planning on numpy arrays. The kernels use the special case of packed rows
(`RaggedLayout.offsets`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeops._common import message

__all__ = ["Dim", "RaggedShape"]

Extent = int | Sequence[int] | Callable[[int], int]
Table = NDArray[np.int64]


@dataclass(frozen=True)
class Dim:
    """One dimension of a ragged tensor.

    Args:
        extent: a constant; or, when `on` is given, the extent for every index of dimension `on`, as a sequence or as a
            function of that index.
        on: the outer dimension that decides the extent, `None` for a constant.
        pad: storage is rounded up to a multiple of this, at least 1.

    Example:
        >>> Dim(2), Dim((1, 2), on=0, pad=4)
        (Dim(extent=2, on=None, pad=1), Dim(extent=(1, 2), on=0, pad=4))
    """

    extent: Extent
    on: int | None = None
    pad: int = 1


def _fail(d: int, rule: str, got: object, advice: str) -> ValueError:
    return ValueError(message("RaggedShape", f"dimension {d} {rule}", str(got), advice))


class RaggedShape:
    """Extents, storage size and element offsets of a ragged tensor.

    Args:
        dims: at most one outer dimension decides each extent; dimension 0 is constant. A table has to cover all stored
            indices of its outer dimension, padding included.

    Attributes:
        size: elements to allocate, storage padding included.
        index_size: integers of prefix-sum data that addressing needs.

    Raises:
        ValueError: on an edge that does not go outwards, a table that is too short, or a negative extent.

    Example:
        The scores of a batch with lengths 1 and 2 and two heads (the paper's worked example):

        >>> scores = RaggedShape([Dim(2), Dim((1, 2), on=0), Dim(2), Dim((1, 2), on=0)])
        >>> scores.size, scores.index_size, scores.offset((1, 1, 1, 1))
        (10, 3, 9)
        >>> scores.prefix(0).tolist()
        [0, 1, 5]
    """

    def __init__(self, dims: Sequence[Dim]) -> None:
        self.dims = tuple(dims)
        if not self.dims:
            raise ValueError(message("RaggedShape", "needs at least one dimension", "none", "Pass a list of Dim."))
        self._inner: list[list[int]] = [[] for _ in self.dims]
        self._extents: list[Table] = []
        self._stored: list[Table] = []
        for d, dim in enumerate(self.dims):
            table = self._tabulate(d, dim)
            if table.size and int(table.min()) < 0:
                raise _fail(d, "must have extents of at least 0", int(table.min()), "Pass lengths, not offsets.")
            self._extents.append(table)
            self._stored.append(-(-table // dim.pad) * dim.pad)
            if dim.on is not None:
                self._inner[dim.on].append(d)
        self._prefix = self._prefix_sums()

    def _tabulate(self, d: int, dim: Dim) -> Table:
        """Extents of dimension d: one entry when constant, otherwise one for each stored index of its outer one."""
        if dim.pad < 1:
            raise _fail(d, "needs pad >= 1", dim.pad, "Pass the multiple to round up to.")
        if dim.on is None:
            if callable(dim.extent) or not isinstance(dim.extent, (int, np.integer)):
                raise _fail(d, "needs an integer extent when on=None", repr(dim.extent), "Name the outer dimension.")
            return np.array([dim.extent], dtype=np.int64)
        if not 0 <= dim.on < d:
            raise _fail(d, "may depend on an outer dimension only", f"on={dim.on}", "Put outer dimensions first.")
        if isinstance(dim.extent, (int, np.integer)):
            raise _fail(d, f"needs an extent per index of dimension {dim.on}", dim.extent, "Drop on= for a constant.")
        count = int(self._stored[dim.on].max(initial=0))
        if callable(dim.extent):
            return np.array([dim.extent(i) for i in range(count)], dtype=np.int64)
        table = np.asarray(dim.extent)
        if table.ndim != 1 or (table.size and not np.issubdtype(table.dtype, np.integer)):
            raise _fail(d, "needs a flat table of integers", f"shape {table.shape}, {table.dtype}", "Pass a list.")
        if len(table) < count:
            rule = f"needs {count} extents, one per stored index of dimension {dim.on}"
            raise _fail(d, rule, len(table), "Lengthen the table.")
        return table[:count].astype(np.int64)

    def _prefix_sums(self) -> list[Table | None]:
        """A_d[i] = elements of the dimensions that hang on d for its indices below i; innermost first."""
        sums: list[Table | None] = [None] * len(self.dims)
        for d in range(len(self.dims) - 1, -1, -1):
            if not self._inner[d]:
                continue
            per_index = np.ones(int(self._stored[d].max(initial=0)), dtype=np.int64)
            for child in self._inner[d]:
                rows = self._stored[child]
                below = sums[child]
                per_index *= rows if below is None else below[rows]
            sums[d] = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(per_index)])
        return sums

    def _volume(self, d: int, outer: NDArray[np.int64]) -> NDArray[np.int64]:
        """Elements of dimension d and all that hangs on it, its outer index given per row of `outer`."""
        on = self.dims[d].on
        extent = np.broadcast_to(self._stored[d], (len(outer),)) if on is None else self._stored[d][outer[:, on]]
        below = self._prefix[d]
        return extent if below is None else below[extent]

    @cached_property
    def size(self) -> int:
        none = np.zeros((1, len(self.dims)), dtype=np.int64)
        free = [int(self._volume(d, none)[0]) for d, dim in enumerate(self.dims) if dim.on is None]
        return int(np.prod(free, dtype=np.int64))

    @property
    def index_size(self) -> int:
        return sum(len(table) for table in self._prefix if table is not None)

    def prefix(self, d: int) -> Table:
        """The prefix sums of dimension `d`, `[extent + 1]`, or an empty array when nothing depends on it."""
        table = self._prefix[d]
        return np.empty(0, dtype=np.int64) if table is None else table.copy()

    def extent(self, d: int, index: Sequence[int] = (), *, stored: bool = False) -> int:
        """Extent of dimension `d` at the given outer indices; with storage padding when `stored`.

        >>> RaggedShape([Dim(2), Dim((1, 5), on=0, pad=4)]).extent(1, (1,), stored=True)
        8
        """
        on = self.dims[d].on
        table = self._stored[d] if stored else self._extents[d]
        return int(table[0] if on is None else table[index[on]])

    def offsets(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Flat positions of many elements at once.

        Args:
            indices: integers `[K, n]`, one element a row.

        Returns:
            int64 `[K]`.

        Raises:
            ValueError: when an index lies outside its extent (storage padding does not count as inside).
        """
        rows = np.asarray(indices, dtype=np.int64)
        if rows.ndim != 2 or rows.shape[1] != len(self.dims):
            rule = f"indices must be [K, {len(self.dims)}]"
            raise ValueError(message("RaggedShape.offsets", rule, f"shape {rows.shape}", "Pass one row per element."))
        self._check_inside(rows)
        total = np.zeros(len(rows), dtype=np.int64)
        for d in range(len(self.dims)):
            skipped = self._prefix[d]
            step = rows[:, d] if skipped is None else skipped[rows[:, d]]
            for j in range(d + 1, len(self.dims)):
                # dimensions that hang on d, or on something that does, are inside the prefix sum already
                on = self.dims[j].on
                if on is None or on < d:
                    step = step * self._volume(j, rows)
            total += step
        return total

    def _check_inside(self, rows: NDArray[np.int64]) -> None:
        for d, dim in enumerate(self.dims):
            extent = self._extents[d] if dim.on is None else self._extents[d][rows[:, dim.on]]
            outside = (rows[:, d] < 0) | (rows[:, d] >= extent)
            if outside.any():
                first = int(np.argmax(outside))
                limit = int(extent[0] if dim.on is None else extent[first])
                rule = f"index {int(rows[first, d])} is outside dimension {d} of extent {limit}"
                got = f"element {tuple(rows[first].tolist())}"
                raise ValueError(message("RaggedShape.offsets", rule, got, "Stay below the extents."))

    def offset(self, index: Sequence[int]) -> int:
        """Flat position of one element.

        >>> RaggedShape([Dim(3), Dim(lambda i: i + 1, on=0)]).offset((2, 1))
        4
        """
        return int(self.offsets([tuple(index)])[0])

    def check_storage(self, numel: int) -> None:
        """Raise unless a buffer of `numel` elements holds this shape, storage padding included."""
        if numel < self.size:
            rule = f"storage must hold {self.size} elements, padding included"
            raise ValueError(
                message("RaggedShape.check_storage", rule, str(numel), "Allocate RaggedShape.size elements.")
            )

    def check_loops(self, loop_pads: Sequence[int]) -> None:
        """Raise unless every loop extent, rounded up to `loop_pads[d]`, stays inside the stored extent."""
        if len(loop_pads) != len(self.dims):
            rule = f"needs {len(self.dims)} multiples, one per dimension"
            raise ValueError(message("RaggedShape.check_loops", rule, str(len(loop_pads)), "Pass 1 for no padding."))
        for d, multiple in enumerate(loop_pads):
            if multiple < 1:
                raise _fail(d, "needs a loop multiple of at least 1", multiple, "Pass 1 for no padding.")
            looped = -(-self._extents[d] // multiple) * multiple
            over = looped > self._stored[d]
            if over.any():
                worst = int(np.argmax(over))
                raise _fail(
                    d,
                    f"is looped over up to {int(looped[worst])} but stores {int(self._stored[d][worst])}",
                    f"loop multiple {multiple}, storage multiple {self.dims[d].pad}",
                    "Give storage at least the loop's padding.",
                )
