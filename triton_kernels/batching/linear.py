# SPDX-License-Identifier: Apache-2.0
"""Products of a batch's operands with a weight, and gradients of weights, rows read through lists where they stand.

As `rows_linear.py`, with operands named by a launch record (`places.py`); sums are kept in float32. ED-Batch (ICML
2023) gathers first; ACRoBat (MLSys 2024) reads through pointers as here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from edgeops.triton_kernels.batching.places import base_of, record_of, rows_through, starts_of, stride_of

# fields of a product: out, weight, bias, first and second operand, and what must be there (an address, not 0)
OUT, WEIGHT, BIAS, FIRST, SECOND, GUARD, LINEAR = 0, 3, 6, 9, 12, 15, 18
# fields of a weight's gradient: number of rows, gradient, operand, dweight, dbias
WGRAD = 13


@triton.jit
def _add_rows(
    acc, record, field, weight, stride, n, k, rows, live, cols,
    KIND: tl.constexpr, PRECISION: tl.constexpr, ALIGN: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc + rows of a place @ weight[cols].T."""
    left_rows = starts_of(record, field, rows, live, KIND, ALIGN)
    right_cols = weight + cols[None, :].to(tl.int64) * stride
    for first in range(0, k, BLOCK_K):
        p = first + tl.arange(0, BLOCK_K)
        left = tl.load(left_rows + p[None, :], mask=live[:, None] & (p[None, :] < k), other=0.0)
        right = tl.load(right_cols + p[:, None], mask=(p[:, None] < k) & (cols < n)[None, :], other=0.0)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _linear_kernel(
    cell, field, n, k1, k2,
    HAS_SECOND: tl.constexpr, HAS_BIAS: tl.constexpr, ON: tl.constexpr, HAS_GUARD: tl.constexpr, KIND: tl.constexpr,
    PRECISION: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of out (+)= concat(operands) @ weight.T + bias."""
    record = record_of(cell)
    m = tl.load(record)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    # of a bucket, tiles behind the last row have nothing to do
    if tl.program_id(0) * BLOCK_M >= m:
        return
    if HAS_GUARD:  # noqa: SIM102  a constant outside, a value of the GPU inside
        if tl.load(record + field + 15) == 0:
            return
    live = rows < m
    weight, stride = base_of(record, field + 3, KIND, ALIGN), stride_of(record, field + 3, ALIGN)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc = _add_rows(
        acc, record, field + 9, weight, stride, n, k1, rows, live, cols, KIND, PRECISION, ALIGN, BLOCK_K
    )  # fmt: skip
    if HAS_SECOND:
        acc = _add_rows(
            acc, record, field + 12, weight + k1, stride, n, k2, rows, live, cols, KIND, PRECISION, ALIGN, BLOCK_K
        )  # fmt: skip
    if HAS_BIAS:
        bias = tl.load(record + field + 6).to(tl.pointer_type(tl.float32))
        acc += tl.load(bias + cols, mask=cols < n, other=0.0)[None, :]
    there = live[:, None] & (cols < n)[None, :]
    out = starts_of(record, field, rows, live, KIND, ALIGN) + cols[None, :]
    if ON:
        acc += tl.load(out, mask=there, other=0.0).to(tl.float32)
    tl.store(out, acc.to(KIND), mask=there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _wgrad_kernel(
    cell, field, n, k, column,
    HAS_BIAS: tl.constexpr, ADD: tl.constexpr, ADD_BIAS: tl.constexpr, KIND: tl.constexpr, PRECISION: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A tile of dweight[:, column :] (+)= grad.T @ operand, and dbias (+)= column sums of grad, over all rows."""
    record = record_of(cell)
    count = tl.load(record + field)
    outs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    grad, stride_g = base_of(record, field + 1, KIND, ALIGN), stride_of(record, field + 1, ALIGN)
    base, stride_x = base_of(record, field + 4, KIND, ALIGN), stride_of(record, field + 4, ALIGN)
    listed = tl.load(record + field + 5)
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    sums = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, count, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        live = rows < count
        left = tl.load(
            grad + rows[None, :].to(tl.int64) * stride_g + outs[:, None],
            mask=live[None, :] & (outs < n)[:, None],
            other=0.0,
        )  # [BLOCK_N, BLOCK_M]
        row = rows_through(listed, rows, live)
        right = tl.load(
            base + row[:, None] * stride_x + cols[None, :], mask=live[:, None] & (cols < k)[None, :], other=0.0
        )  # [BLOCK_M, BLOCK_K]
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
        if HAS_BIAS:
            sums += tl.sum(left.to(tl.float32), 1)
    to = tl.load(record + field + 7).to(tl.pointer_type(tl.float32))
    to += outs[:, None].to(tl.int64) * tl.load(record + field + 9) + (column + cols)[None, :]
    there = (outs < n)[:, None] & (cols < k)[None, :]
    if ADD:
        acc += tl.load(to, mask=there, other=0.0)
    tl.store(to, acc, mask=there)
    if HAS_BIAS:
        dbias = tl.load(record + field + 10).to(tl.pointer_type(tl.float32)) + outs
        mine = (outs < n) & (tl.program_id(1) == 0)
        if ADD_BIAS:
            sums += tl.load(dbias, mask=mine, other=0.0)
        tl.store(dbias, sums, mask=mine)
