# SPDX-License-Identifier: Apache-2.0
"""Cross entropy of a batch's scores with classes that an int32 list names; scores become probabilities.

Operands come from a launch record (`places.py`), as everything of the executor after ACRoBat (MLSys 2024).
"""

from __future__ import annotations

import triton
import triton.language as tl

from edgeops.triton_kernels.batching.places import record_of, starts_of


@triton.jit
def _label(record, field, rows, live):
    """The classes that the list of a place names."""
    list_ = tl.load(record + field + 1).to(tl.pointer_type(tl.int32))
    return tl.load(list_ + rows, mask=live, other=0)[:, None]


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _cross_entropy_fwd_kernel(
    cell, field, classes,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """scores, loss, labels."""
    record = record_of(cell)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = rows < tl.load(record)
    scores = starts_of(record, field, rows, live, KIND, ALIGN)
    label = _label(record, field + 6, rows, live)
    largest = tl.full([BLOCK_R, 1], float("-inf"), tl.float32)
    for first in range(0, classes, BLOCK_C):
        cols = first + tl.arange(0, BLOCK_C)[None, :]
        x = tl.load(scores + cols, mask=live[:, None] & (cols < classes), other=float("-inf")).to(tl.float32)
        largest = tl.maximum(largest, tl.max(x, 1)[:, None])
    largest = tl.where(live[:, None], largest, 0.0)
    total = tl.zeros([BLOCK_R, 1], tl.float32)
    for first in range(0, classes, BLOCK_C):
        cols = first + tl.arange(0, BLOCK_C)[None, :]
        x = tl.load(scores + cols, mask=live[:, None] & (cols < classes), other=float("-inf")).to(tl.float32)
        total += tl.sum(tl.exp(x - largest), 1)[:, None]
    total = tl.where(live[:, None], total, 1.0)
    chosen = tl.load(scores + label, mask=live[:, None], other=0.0).to(tl.float32)
    loss = starts_of(record, field + 3, rows, live, KIND, 1)
    tl.store(loss, (tl.log(total) + largest - chosen).to(KIND), mask=live[:, None])
    tl.debug_barrier()  # all have read their class before it is written over
    for first in range(0, classes, BLOCK_C):
        cols = first + tl.arange(0, BLOCK_C)[None, :]
        there = live[:, None] & (cols < classes)
        x = tl.load(scores + cols, mask=there, other=0.0).to(tl.float32)
        tl.store(scores + cols, (tl.exp(x - largest) / total).to(KIND), mask=there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _cross_entropy_bwd_kernel(
    cell, field, classes,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dscores, probabilities, dloss, labels."""
    record = record_of(cell)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = rows < tl.load(record)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    there = live[:, None] & (cols < classes)
    p = tl.load(starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols, mask=there, other=0.0).to(tl.float32)
    dloss = tl.load(starts_of(record, field + 6, rows, live, KIND, 1), mask=live[:, None], other=0.0).to(tl.float32)
    label = _label(record, field + 9, rows, live)
    grad = (p - tl.where(cols == label, 1.0, 0.0)) * dloss
    tl.store(starts_of(record, field, rows, live, KIND, ALIGN) + cols, grad.to(KIND), mask=there)
