# SPDX-License-Identifier: Apache-2.0
"""How kernels of the batching executor find their operands: through a launch record in the GPU's memory.

`cell` points to the address of a record of int64. Its first field is the number of rows m. A place takes three fields:
the address of row 0, the address of an int32 list of row numbers (0: rows in order), and the elements from row to row.
So a launch has the same arguments for every batch of a kind, and a CUDA graph of it serves them all.
"""

from __future__ import annotations

import triton
import triton.language as tl

PLACE = 3  # fields of a place


@triton.jit
def record_of(cell):
    """The record whose address stands in `cell`."""
    return tl.load(cell).to(tl.pointer_type(tl.int64))


@triton.jit
def rows_through(address, rows, live):
    """What the int32 list at an address has at `rows`; `rows` themselves where the address is 0."""
    listed = address != 0
    through = tl.load(address.to(tl.pointer_type(tl.int32)) + rows, mask=live & listed, other=0)
    return tl.where(listed, through, rows).to(tl.int64)


@triton.jit
def base_of(record, field, KIND: tl.constexpr, ALIGN: tl.constexpr):
    """Where a place begins; its address and rows are multiples of 16 bytes and elements where `ALIGN` is 16."""
    base = tl.load(record + field).to(tl.pointer_type(KIND))
    if ALIGN > 1:
        base = tl.multiple_of(base, ALIGN)
    return base


@triton.jit
def stride_of(record, field, ALIGN: tl.constexpr):
    """Elements from row to row of a place."""
    stride = tl.load(record + field + 2)
    if ALIGN > 1:
        stride = tl.multiple_of(stride, ALIGN)
    return stride


@triton.jit
def starts_of(record, field, rows, live, KIND: tl.constexpr, ALIGN: tl.constexpr):
    """Pointers to the first element of rows of a place, a column `[rows, 1]`."""
    base = base_of(record, field, KIND, ALIGN)
    row = rows_through(tl.load(record + field + 1), rows, live)
    return base + row[:, None] * stride_of(record, field, ALIGN)


@triton.jit
def sigmoid(x):
    """In float32."""
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    """In float32, without loss near 0."""
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    s = tl.minimum(x * x, 1.0)
    near = x * (1 + s * (-1 / 3 + s * (2 / 15 - s * (17 / 315))))
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0, -far, far))
