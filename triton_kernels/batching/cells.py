# SPDX-License-Identifier: Apache-2.0
"""Pointwise cells of states `h` wide, one launch a batch; `csrc/batching/cells.h` has the CPU's under the same names.

Arguments are the places from `field` on, in the order of the op; computed in float32. ED-Batch (ICML 2023), section 5.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from edgeops.triton_kernels.batching.places import record_of, sigmoid, starts_of, tanh

__all__ = ["KERNELS", "cell_tile"]


def cell_tile(h: int) -> tuple[int, int]:
    """Rows and columns of a tile: about a thousand states, so that small batches still fill several units."""
    columns = min(triton.next_power_of_2(max(h, 16)), 256)
    return max(1, 512 // columns), columns


@triton.jit
def _tile(record, h, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Rows and columns of this program, and which are there."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    live = rows < tl.load(record)
    return rows, cols, live, live[:, None] & (cols < h)


@triton.jit
def _read(place, there):
    return tl.load(place, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _write(place, x, there):
    tl.store(place, x.to(place.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _lstm_fwd_kernel(
    cell, field, h,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """gates (i, f, g, o), c, h_out, c_out."""
    record = record_of(cell)
    rows, cols, live, there = _tile(record, h, BLOCK_R, BLOCK_C)
    gates = starts_of(record, field, rows, live, KIND, ALIGN) + cols
    before = starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols
    i, f = sigmoid(_read(gates, there)), sigmoid(_read(gates + h, there))
    g, o = tanh(_read(gates + 2 * h, there)), sigmoid(_read(gates + 3 * h, there))
    state = f * _read(before, there) + i * g
    _write(starts_of(record, field + 6, rows, live, KIND, ALIGN) + cols, o * tanh(state), there)
    _write(starts_of(record, field + 9, rows, live, KIND, ALIGN) + cols, state, there)
    _write(gates, i, there)
    _write(gates + h, f, there)
    _write(gates + 2 * h, g, there)
    _write(gates + 3 * h, o, there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _lstm_bwd_kernel(
    cell, field, h,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """gates, c, c_out, dh, dc, dgates, dc_in."""
    record = record_of(cell)
    rows, cols, live, there = _tile(record, h, BLOCK_R, BLOCK_C)
    gates = starts_of(record, field, rows, live, KIND, ALIGN) + cols
    before = _read(starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols, there)
    t = tanh(_read(starts_of(record, field + 6, rows, live, KIND, ALIGN) + cols, there))
    dh = _read(starts_of(record, field + 9, rows, live, KIND, ALIGN) + cols, there)
    dc = _read(starts_of(record, field + 12, rows, live, KIND, ALIGN) + cols, there)
    i, f = _read(gates, there), _read(gates + h, there)
    g, o = _read(gates + 2 * h, there), _read(gates + 3 * h, there)
    total = dc + dh * o * (1 - t * t)
    dgates = starts_of(record, field + 15, rows, live, KIND, ALIGN) + cols
    _write(dgates, total * g * i * (1 - i), there)
    _write(dgates + h, total * before * f * (1 - f), there)
    _write(dgates + 2 * h, total * i * (1 - g * g), there)
    _write(dgates + 3 * h, dh * t * o * (1 - o), there)
    _write(starts_of(record, field + 18, rows, live, KIND, ALIGN) + cols, total * f, there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _treelstm_fwd_kernel(
    cell, field, h,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """gates (i, o, u, f1, f2), c1, c2, h_out, c_out."""
    record = record_of(cell)
    rows, cols, live, there = _tile(record, h, BLOCK_R, BLOCK_C)
    gates = starts_of(record, field, rows, live, KIND, ALIGN) + cols
    c1 = _read(starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols, there)
    c2 = _read(starts_of(record, field + 6, rows, live, KIND, ALIGN) + cols, there)
    i, o, u = sigmoid(_read(gates, there)), sigmoid(_read(gates + h, there)), tanh(_read(gates + 2 * h, there))
    f1, f2 = sigmoid(_read(gates + 3 * h, there)), sigmoid(_read(gates + 4 * h, there))
    state = i * u + f1 * c1 + f2 * c2
    _write(starts_of(record, field + 9, rows, live, KIND, ALIGN) + cols, o * tanh(state), there)
    _write(starts_of(record, field + 12, rows, live, KIND, ALIGN) + cols, state, there)
    _write(gates, i, there)
    _write(gates + h, o, there)
    _write(gates + 2 * h, u, there)
    _write(gates + 3 * h, f1, there)
    _write(gates + 4 * h, f2, there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _treelstm_bwd_kernel(
    cell, field, h,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """gates, c1, c2, c_out, dh, dc, dgates, dc1, dc2."""
    record = record_of(cell)
    rows, cols, live, there = _tile(record, h, BLOCK_R, BLOCK_C)
    gates = starts_of(record, field, rows, live, KIND, ALIGN) + cols
    c1 = _read(starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols, there)
    c2 = _read(starts_of(record, field + 6, rows, live, KIND, ALIGN) + cols, there)
    t = tanh(_read(starts_of(record, field + 9, rows, live, KIND, ALIGN) + cols, there))
    dh = _read(starts_of(record, field + 12, rows, live, KIND, ALIGN) + cols, there)
    dc = _read(starts_of(record, field + 15, rows, live, KIND, ALIGN) + cols, there)
    i, o, u = _read(gates, there), _read(gates + h, there), _read(gates + 2 * h, there)
    f1, f2 = _read(gates + 3 * h, there), _read(gates + 4 * h, there)
    total = dc + dh * o * (1 - t * t)
    dgates = starts_of(record, field + 18, rows, live, KIND, ALIGN) + cols
    _write(dgates, total * u * i * (1 - i), there)
    _write(dgates + h, dh * t * o * (1 - o), there)
    _write(dgates + 2 * h, total * i * (1 - u * u), there)
    _write(dgates + 3 * h, total * c1 * f1 * (1 - f1), there)
    _write(dgates + 4 * h, total * c2 * f2 * (1 - f2), there)
    _write(starts_of(record, field + 21, rows, live, KIND, ALIGN) + cols, total * f1, there)
    _write(starts_of(record, field + 24, rows, live, KIND, ALIGN) + cols, total * f2, there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _leaf_fwd_kernel(
    cell, field, h,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """gates (i, o, u), h_out, c_out."""
    record = record_of(cell)
    rows, cols, live, there = _tile(record, h, BLOCK_R, BLOCK_C)
    gates = starts_of(record, field, rows, live, KIND, ALIGN) + cols
    i, o, u = sigmoid(_read(gates, there)), sigmoid(_read(gates + h, there)), tanh(_read(gates + 2 * h, there))
    _write(starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols, o * tanh(i * u), there)
    _write(starts_of(record, field + 6, rows, live, KIND, ALIGN) + cols, i * u, there)
    _write(gates, i, there)
    _write(gates + h, o, there)
    _write(gates + 2 * h, u, there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _leaf_bwd_kernel(
    cell, field, h,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """gates, c_out, dh, dc, dgates."""
    record = record_of(cell)
    rows, cols, live, there = _tile(record, h, BLOCK_R, BLOCK_C)
    gates = starts_of(record, field, rows, live, KIND, ALIGN) + cols
    t = tanh(_read(starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols, there))
    dh = _read(starts_of(record, field + 6, rows, live, KIND, ALIGN) + cols, there)
    dc = _read(starts_of(record, field + 9, rows, live, KIND, ALIGN) + cols, there)
    i, o, u = _read(gates, there), _read(gates + h, there), _read(gates + 2 * h, there)
    total = dc + dh * o * (1 - t * t)
    dgates = starts_of(record, field + 12, rows, live, KIND, ALIGN) + cols
    _write(dgates, total * u * i * (1 - i), there)
    _write(dgates + h, dh * t * o * (1 - o), there)
    _write(dgates + 2 * h, total * i * (1 - u * u), there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _gru_fwd_kernel(
    cell, field, h,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x_gates (r, z, n), h_gates, h, h_out."""
    record = record_of(cell)
    rows, cols, live, there = _tile(record, h, BLOCK_R, BLOCK_C)
    x = starts_of(record, field, rows, live, KIND, ALIGN) + cols
    of_h = starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols
    before = _read(starts_of(record, field + 6, rows, live, KIND, ALIGN) + cols, there)
    r = sigmoid(_read(x, there) + _read(of_h, there))
    z = sigmoid(_read(x + h, there) + _read(of_h + h, there))
    n = tanh(_read(x + 2 * h, there) + r * _read(of_h + 2 * h, there))
    _write(starts_of(record, field + 9, rows, live, KIND, ALIGN) + cols, (1 - z) * n + z * before, there)
    _write(x, r, there)
    _write(x + h, z, there)
    _write(x + 2 * h, n, there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _gru_bwd_kernel(
    cell, field, h,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x_gates, h_gates, h, dh, dx_gates, dh_gates, dh_in."""
    record = record_of(cell)
    rows, cols, live, there = _tile(record, h, BLOCK_R, BLOCK_C)
    x = starts_of(record, field, rows, live, KIND, ALIGN) + cols
    hn = _read(starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols + 2 * h, there)
    before = _read(starts_of(record, field + 6, rows, live, KIND, ALIGN) + cols, there)
    dh = _read(starts_of(record, field + 9, rows, live, KIND, ALIGN) + cols, there)
    r, z, n = _read(x, there), _read(x + h, there), _read(x + 2 * h, there)
    dn, dz = dh * (1 - z) * (1 - n * n), dh * (before - n) * z * (1 - z)
    dr = dn * hn * r * (1 - r)
    dx = starts_of(record, field + 12, rows, live, KIND, ALIGN) + cols
    _write(dx, dr, there)
    _write(dx + h, dz, there)
    _write(dx + 2 * h, dn, there)
    dgates = starts_of(record, field + 15, rows, live, KIND, ALIGN) + cols
    _write(dgates, dr, there)
    _write(dgates + h, dz, there)
    _write(dgates + 2 * h, dn * r, there)
    _write(starts_of(record, field + 18, rows, live, KIND, ALIGN) + cols, dh * z, there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _reset_fwd_kernel(
    cell, field, h,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """gates (r1, r2, z1, z2), h1, h2, reset1, reset2."""
    record = record_of(cell)
    rows, cols, live, there = _tile(record, h, BLOCK_R, BLOCK_C)
    gates = starts_of(record, field, rows, live, KIND, ALIGN) + cols
    h1 = _read(starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols, there)
    h2 = _read(starts_of(record, field + 6, rows, live, KIND, ALIGN) + cols, there)
    r1, r2 = sigmoid(_read(gates, there)), sigmoid(_read(gates + h, there))
    _write(starts_of(record, field + 9, rows, live, KIND, ALIGN) + cols, r1 * h1, there)
    _write(starts_of(record, field + 12, rows, live, KIND, ALIGN) + cols, r2 * h2, there)
    _write(gates, r1, there)
    _write(gates + h, r2, there)
    _write(gates + 2 * h, sigmoid(_read(gates + 2 * h, there)), there)
    _write(gates + 3 * h, sigmoid(_read(gates + 3 * h, there)), there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _reset_bwd_kernel(
    cell, field, h,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """gates, h1, h2, dreset1, dreset2, dgates (its r half), dh1, dh2 (added to)."""
    record = record_of(cell)
    rows, cols, live, there = _tile(record, h, BLOCK_R, BLOCK_C)
    gates = starts_of(record, field, rows, live, KIND, ALIGN) + cols
    h1 = _read(starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols, there)
    h2 = _read(starts_of(record, field + 6, rows, live, KIND, ALIGN) + cols, there)
    d1 = _read(starts_of(record, field + 9, rows, live, KIND, ALIGN) + cols, there)
    d2 = _read(starts_of(record, field + 12, rows, live, KIND, ALIGN) + cols, there)
    r1, r2 = _read(gates, there), _read(gates + h, there)
    dgates = starts_of(record, field + 15, rows, live, KIND, ALIGN) + cols
    _write(dgates, d1 * h1 * r1 * (1 - r1), there)
    _write(dgates + h, d2 * h2 * r2 * (1 - r2), there)
    dh1 = starts_of(record, field + 18, rows, live, KIND, ALIGN) + cols
    dh2 = starts_of(record, field + 21, rows, live, KIND, ALIGN) + cols
    _write(dh1, _read(dh1, there) + d1 * r1, there)
    _write(dh2, _read(dh2, there) + d2 * r2, there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _treegru_fwd_kernel(
    cell, field, h,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """candidate1, candidate2, gates, h1, h2, h_out."""
    record = record_of(cell)
    rows, cols, live, there = _tile(record, h, BLOCK_R, BLOCK_C)
    first = starts_of(record, field, rows, live, KIND, ALIGN) + cols
    second = starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols
    gates = starts_of(record, field + 6, rows, live, KIND, ALIGN) + cols
    h1 = _read(starts_of(record, field + 9, rows, live, KIND, ALIGN) + cols, there)
    h2 = _read(starts_of(record, field + 12, rows, live, KIND, ALIGN) + cols, there)
    z1, z2 = _read(gates + 2 * h, there), _read(gates + 3 * h, there)
    c1, c2 = tanh(_read(first, there)), tanh(_read(second, there))
    out = ((z1 * h1 + (1 - z1) * c1) + (z2 * h2 + (1 - z2) * c2)) / 2
    _write(starts_of(record, field + 15, rows, live, KIND, ALIGN) + cols, out, there)
    _write(first, c1, there)
    _write(second, c2, there)


@triton.jit(do_not_specialize=["field"], do_not_specialize_on_alignment=["cell"])
def _treegru_bwd_kernel(
    cell, field, h,
    KIND: tl.constexpr, ALIGN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """candidate1, candidate2, gates, h1, h2, dh, dcandidate1, dcandidate2, dgates (its z half), dh1, dh2."""
    record = record_of(cell)
    rows, cols, live, there = _tile(record, h, BLOCK_R, BLOCK_C)
    c1 = _read(starts_of(record, field, rows, live, KIND, ALIGN) + cols, there)
    c2 = _read(starts_of(record, field + 3, rows, live, KIND, ALIGN) + cols, there)
    gates = starts_of(record, field + 6, rows, live, KIND, ALIGN) + cols
    h1 = _read(starts_of(record, field + 9, rows, live, KIND, ALIGN) + cols, there)
    h2 = _read(starts_of(record, field + 12, rows, live, KIND, ALIGN) + cols, there)
    half = _read(starts_of(record, field + 15, rows, live, KIND, ALIGN) + cols, there) / 2
    z1, z2 = _read(gates + 2 * h, there), _read(gates + 3 * h, there)
    _write(starts_of(record, field + 18, rows, live, KIND, ALIGN) + cols, half * (1 - z1) * (1 - c1 * c1), there)
    _write(starts_of(record, field + 21, rows, live, KIND, ALIGN) + cols, half * (1 - z2) * (1 - c2 * c2), there)
    dgates = starts_of(record, field + 24, rows, live, KIND, ALIGN) + cols
    _write(dgates + 2 * h, half * (h1 - c1) * z1 * (1 - z1), there)
    _write(dgates + 3 * h, half * (h2 - c2) * z2 * (1 - z2), there)
    _write(starts_of(record, field + 27, rows, live, KIND, ALIGN) + cols, half * z1, there)
    _write(starts_of(record, field + 30, rows, live, KIND, ALIGN) + cols, half * z2, there)


# by the names of edgeops.batching._program.CELLS
KERNELS: dict[str, Any] = {
    "lstm_fwd": _lstm_fwd_kernel,
    "lstm_bwd": _lstm_bwd_kernel,
    "treelstm_fwd": _treelstm_fwd_kernel,
    "treelstm_bwd": _treelstm_bwd_kernel,
    "leaf_fwd": _leaf_fwd_kernel,
    "leaf_bwd": _leaf_bwd_kernel,
    "gru_fwd": _gru_fwd_kernel,
    "gru_bwd": _gru_bwd_kernel,
    "reset_fwd": _reset_fwd_kernel,
    "reset_bwd": _reset_bwd_kernel,
    "treegru_fwd": _treegru_fwd_kernel,
    "treegru_bwd": _treegru_bwd_kernel,
}
KINDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
