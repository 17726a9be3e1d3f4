# SPDX-License-Identifier: Apache-2.0
"""Lists that kernels need beside those of the recording: rows ordered by where they are added, rows of a whole type.

A row that several calls of a batch read gets a gradient from each. Sorted by row, what goes to one row is a segment,
which one program sums in order: the same bits in every run, without atomics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgeops.batching._gpu_plan import operand_columns

Array = np.ndarray[Any, Any]


class Segments(NamedTuple):
    """Of some batches: for batch b, segments `first[b] : first[b + 1]`, each with a row of the destination.

    The sources of segment s are `order[starts[s] : starts[s + 1]]`.
    """

    rows: Array  # int32
    starts: Array  # int32, one more
    order: Array  # int32
    first: Array


def spans(begin: Array, counts: Array) -> tuple[Array, Array]:
    """All of `range(begin[i], begin[i] + counts[i])` one after another, and which i each is of."""
    owner = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return np.arange(len(owner)) - (before - begin)[owner], owner


def rows_of(records: Array, slot: int, lists: Array) -> tuple[Array, Array]:
    """The table rows of an operand for all batches one after another, and which batch each is of."""
    at, count, first, _ = operand_columns(slot)
    within, owner = spans(np.zeros(len(records), np.int64), records[:, count])
    start = records[:, first]
    listed = start < 0
    rows = np.where(listed, 0, start)[owner] + within
    if listed.any():
        of_list = listed[owner]
        rows[of_list] = lists[(records[:, at][owner] + within)[of_list]]
    return rows.astype(np.int32), owner


def numbers_of(records: Array, slot: int, numbers: Array) -> Array:
    """The integers of an operand for all batches one after another."""
    at, count, _, _ = operand_columns(slot)
    where, _ = spans(records[:, at], records[:, count])
    found: Array = numbers[where]
    return found


def members_of(records: Array, slot: int, starts: Array) -> Array:
    """For all members of list operands one after another: which list of its batch each is in."""
    _, _, _, begin = operand_columns(slot)
    where, _ = spans(records[:, begin], records[:, 2])
    within, _ = spans(np.zeros(len(records), np.int64), records[:, 2])
    found: Array = np.repeat(within.astype(np.int32), starts[where + 1] - starts[where])
    return found


def makers_of(records: Array, slots: int) -> list[list[tuple[int, int]]]:
    """By batch: ranges of the list of batches that its operands come from, joined where they meet."""
    columns = 6 + 8 * np.arange(slots)
    begin, end = records[:, columns + 6], records[:, columns + 7]
    there = end > begin
    first = np.where(there, begin, np.iinfo(np.int64).max).min(1, initial=np.iinfo(np.int64).max)
    last = np.where(there, end, 0).max(1, initial=0)
    joined = (end - begin).sum(1) == last - np.minimum(first, last)
    ranges = []
    for b, (low, high, one) in enumerate(zip(first.tolist(), last.tolist(), joined.tolist())):
        if one:
            ranges.append([(low, high)] if high > 0 else [])
        else:
            ranges.append(list(zip(begin[b].tolist(), end[b].tolist())))
    return ranges


def segments(rows: Array, owner: Array, source: Array, batches: int) -> Segments:
    """Sources sorted by batch and row."""
    order = np.lexsort((rows, owner))
    r, o = rows[order], owner[order]
    head = np.ones(len(r), np.bool_)
    head[1:] = (r[1:] != r[:-1]) | (o[1:] != o[:-1])
    begin = np.flatnonzero(head)
    of_batch = np.bincount(o[begin], minlength=batches)
    return Segments(
        r[begin].astype(np.int32),
        np.append(begin, len(r)).astype(np.int32),
        source[order].astype(np.int32),
        np.concatenate([[0], np.cumsum(of_batch)]),
    )
