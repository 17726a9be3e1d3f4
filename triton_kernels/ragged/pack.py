# SPDX-License-Identifier: Apache-2.0
"""Padded to packed rows and back: packed[offsets[n] + i] = padded[n, i] (ragged spec, sections 2.2 and 3.1).

Values travel as integers of their own width, so every dtype works and NaN keeps its bits. A padding row is never read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import on_device, traffic
from .segments import rows_of

__all__ = ["ragged_pack", "ragged_unpack"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
MAX_ELEMENT_SIZE = 8


@triton.jit(
    launch_metadata=traffic("ragged_pack", "out", "out"),
    do_not_specialize=["total", "length", "blocks_per_sequence"],
)
def _ragged_pack_kernel(
    padded,
    offsets,
    out,
    stride_pn,
    stride_pl,
    stride_ot,
    total,
    length,
    blocks_per_sequence,
    width,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[offsets[n] + i] = padded[n, i] for i < length of n, `BLOCK_L` rows by `BLOCK_C` elements per program."""
    sequence = (tl.program_id(0) // blocks_per_sequence).to(tl.int64)
    block = tl.program_id(0) % blocks_per_sequence
    start, count = rows_of(offsets, sequence, total)
    count = tl.minimum(count, length)
    if block * BLOCK_L >= count:
        return
    rows = block.to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows[:, None] < count) & (cols[None, :] < width)
    # [BLOCK_L, BLOCK_C]
    x = tl.load(padded + sequence * stride_pn + rows[:, None] * stride_pl + cols[None, :], mask=mask, other=0)
    tl.store(out + (start + rows[:, None]) * stride_ot + cols[None, :], x, mask=mask)


@triton.jit(
    launch_metadata=traffic("ragged_unpack", "values", "out"),
    do_not_specialize=["total", "length", "blocks_per_sequence", "fill"],
)
def _ragged_unpack_kernel(
    values,
    offsets,
    out,
    stride_vt,
    stride_on,
    stride_ol,
    total,
    length,
    blocks_per_sequence,
    width,
    fill,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[n, i] = values[offsets[n] + i] for i < length of n, else `fill`; every element of out is written once."""
    sequence = (tl.program_id(0) // blocks_per_sequence).to(tl.int64)
    block = tl.program_id(0) % blocks_per_sequence
    start, count = rows_of(offsets, sequence, total)
    rows = block.to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (rows[:, None] < length) & (cols[None, :] < width)
    full = inside & (rows[:, None] < count)
    # [BLOCK_L, BLOCK_C]
    x = tl.load(values + (start + rows[:, None]) * stride_vt + cols[None, :], mask=full, other=0)
    x = tl.where(full, x, tl.full([BLOCK_L, BLOCK_C], fill, x.dtype))
    tl.store(out + sequence * stride_on + rows[:, None] * stride_ol + cols[None, :], x, mask=inside)


def _as_rows(x: torch.Tensor, lead: int) -> torch.Tensor:
    """`x` as integers, dimensions after the first `lead` flattened to one dense dimension; copies only if it must."""
    shape = x.shape[:lead]
    width = 1
    for size in x.shape[lead:]:
        width *= size
    x = x.reshape(*shape, width)
    if width > 1 and x.stride(-1) != 1:
        x = x.contiguous()
    return x.view(_INTEGERS[x.element_size()])


def _tile(width: int) -> tuple[int, int]:
    """Rows and columns of one tile of about 4096 elements, wide rows cut at 1024 columns."""
    block_c = min(triton.next_power_of_2(max(width, 1)), 1024)
    return max(min(4096 // block_c, 64), 1), block_c


def ragged_pack(padded: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
    """Copy the first `offsets[n + 1] - offsets[n]` rows of each `padded[n]` to `out`.

    Args:
        padded: `[N, L, ...]`, any dtype of at most 8 bytes, any strides.
        offsets: `[N + 1]` int32 or int64, on the device of `padded`.
        out: `[T, ...]` contiguous, same dtype; rows beyond `offsets[N]` are left as they are.
    """
    num_sequences, length = padded.shape[:2]
    if out.numel() == 0 or length == 0:
        return
    source, target = _as_rows(padded, 2), _as_rows(out, 1)
    width = source.shape[2]
    block_l, block_c = _tile(width)
    blocks = triton.cdiv(length, block_l)
    with on_device(padded):
        _ragged_pack_kernel[(num_sequences * blocks, triton.cdiv(width, block_c))](
            source, offsets, target, source.stride(0), source.stride(1), target.stride(0),
            target.shape[0], length, blocks, width, BLOCK_L=block_l, BLOCK_C=block_c,
        )  # fmt: skip


def ragged_unpack(values: torch.Tensor, offsets: torch.Tensor, padding_value: float, out: torch.Tensor) -> None:
    """Spread packed rows over `out` and write `padding_value` everywhere else.

    Args:
        values: `[T, ...]`, any dtype of at most 8 bytes, any strides.
        offsets: `[N + 1]` int32 or int64, on the device of `values`.
        padding_value: converted to the dtype of `values`.
        out: `[N, L, ...]` contiguous, same dtype. Rows of a sequence beyond L are dropped.
    """
    num_sequences, length = out.shape[:2]
    if out.numel() == 0:
        return
    if values.shape[0] == 0:
        out.fill_(padding_value)
        return
    source, target = _as_rows(values, 1), _as_rows(out, 2)
    width = target.shape[2]
    block_l, block_c = _tile(width)
    blocks = triton.cdiv(length, block_l)
    # made on the host, so reading it back waits for nothing
    fill = torch.full((), padding_value, dtype=values.dtype, device="cpu").view(_INTEGERS[values.element_size()]).item()
    with on_device(values):
        _ragged_unpack_kernel[(num_sequences * blocks, triton.cdiv(width, block_c))](
            source, offsets, target, source.stride(0), target.stride(0), target.stride(1),
            source.shape[0], length, blocks, width, fill, BLOCK_L=block_l, BLOCK_C=block_c,
        )  # fmt: skip
