# SPDX-License-Identifier: Apache-2.0
"""Rows copied, added and summed through lists; rows set to zero; the step from one launch record to the next.

A segment is a range of source rows that go to one destination row, summed in order and in float32: no atomics, so the
same batch gives the same bits. ACRoBat (MLSys 2024) and ED-Batch (ICML 2023) gather and scatter with launches as these.
"""

from __future__ import annotations

import triton
import triton.language as tl

from edgeops.triton_kernels.batching.places import base_of, record_of, rows_through, starts_of, stride_of

SEGMENTS = 8  # fields: destination, source, number of segments, list of their starts (0: one source row each)
CLEAR = 3  # fields a place: address, width, stride


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _segments_kernel(
    cell, field, width,
    ADD: tl.constexpr, KIND: tl.constexpr, TO: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Destination rows (+)= sums of segments of source rows; nothing where the destination's address is 0."""
    record = record_of(cell)
    if tl.load(record + field) == 0:
        return
    count = tl.load(record + field + 6)
    starts = tl.load(record + field + 7)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = rows < count
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    there = live[:, None] & (cols < width)
    begin = rows_through(starts, rows, live)
    end = tl.where(starts != 0, rows_through(starts, rows + 1, live), begin + 1)
    source, stride = base_of(record, field + 3, KIND, ALIGN), stride_of(record, field + 3, ALIGN)
    order = tl.load(record + field + 4)
    longest = tl.max(tl.where(live, end - begin, 0), 0)
    acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(longest):
        at = begin + step
        more = live & (at < end)
        from_ = rows_through(order, at, more)
        acc += tl.load(source + from_[:, None] * stride + cols, mask=there & more[:, None], other=0.0).to(tl.float32)
    to = starts_of(record, field, rows, live, TO, ALIGN) + cols
    if ADD:
        acc += tl.load(to, mask=there, other=0.0).to(tl.float32)
    tl.store(to, acc.to(TO), mask=there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _clear_kernel(
    cell, field,
    COUNT: tl.constexpr, KIND: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The first m rows of some dense places become zeros."""
    record = record_of(cell)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = (rows < tl.load(record))[:, None]
    zeros = tl.zeros([BLOCK_R, BLOCK_C], KIND)
    for i in tl.static_range(COUNT):
        base, width = base_of(record, field + 3 * i, KIND, 1), tl.load(record + field + 3 * i + 1)
        if tl.load(record + field + 3 * i) != 0:
            first = base + rows[:, None].to(tl.int64) * stride_of(record, field + 3 * i, 1)
            for begin in range(0, width, BLOCK_C):
                cols = begin + tl.arange(0, BLOCK_C)[None, :]
                tl.store(first + cols, zeros, mask=live & (cols < width))


@triton.jit(do_not_specialize=["length"], do_not_specialize_on_alignment=["cell"])
def _advance_kernel(cell, length):
    """`cell` goes on to the next record, `length` fields behind."""
    tl.store(cell, tl.load(cell) + length * 8)
