# SPDX-License-Identifier: Apache-2.0
"""Which rows a program owns: sequences from offsets, tiles from program numbers, without a device-to-host copy.

Sequence n owns the tiles `[cu[n] // BLOCK + n, cu[n + 1] // BLOCK + n + 1)`, never fewer than it needs, so a grid of
`total // BLOCK + N + 1` programs suffices whatever the lengths are, and a program finds its sequence by bisection. A
tile map (pairs of sequence and tile) replaces the search where the caller has one.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# a window this wide hides nothing, and adding it to a row number stays inside int32
WIDEST_WINDOW = 2**30


@triton.jit
def find_sequence(cu, tile, num_sequences, BLOCK: tl.constexpr):
    # the largest n in [0, num_sequences] whose first tile cu[n] // BLOCK + n is not after `tile`
    low = tile * 0
    high = low + num_sequences
    while low < high:
        middle = (low + high + 1) // 2
        first = tl.load(cu + middle).to(tl.int64) // BLOCK + middle
        low = tl.where(first <= tile, middle, low)
        high = tl.where(first <= tile, high, middle - 1)
    return low


@triton.jit
def rows_of(offsets, sequence, total):
    # first row and number of rows, clamped to those that exist: a wrong offset may give wrong numbers, never a wrong
    # address
    start = tl.load(offsets + sequence).to(tl.int64)
    end = tl.load(offsets + sequence + 1).to(tl.int64)
    start = tl.minimum(tl.maximum(start, 0), total)
    return start, tl.minimum(tl.maximum(end, start), total) - start


@triton.jit
def segment(cu, sequence, num_sequences, total):
    # offsets are clamped to the rows that exist: a wrong offset may give wrong numbers, never a wrong address
    inside = sequence < num_sequences
    start = tl.load(cu + sequence).to(tl.int64)
    end = tl.load(cu + sequence + 1, mask=inside, other=0).to(tl.int64)
    start = tl.minimum(tl.maximum(start, 0), total)
    end = tl.minimum(tl.maximum(end, start), total)
    return start, tl.where(inside, end - start, 0).to(tl.int32)


@triton.jit
def locate(cu, tile_map, tile, num_sequences, total, BLOCK: tl.constexpr, HAS_MAP: tl.constexpr):
    """Sequence of a tile, its first row there, where the sequence starts and how long it is.

    Sequence `num_sequences` stands for the rows after the last sequence, which belong to nobody. A tile without work
    gets a first row outside `[0, length)`.
    """
    if HAS_MAP:
        sequence = tl.load(tile_map + tile.to(tl.int64) * 2)
        block = tl.load(tile_map + tile.to(tl.int64) * 2 + 1).to(tl.int64)
    else:
        sequence = find_sequence(cu, tile, num_sequences, BLOCK)
        block = tile - (tl.load(cu + sequence).to(tl.int64) // BLOCK + sequence)
    start, length = segment(cu, sequence, num_sequences, total)
    length = tl.where(sequence == num_sequences, (total - start).to(tl.int32), length)
    return sequence, (block * BLOCK).to(tl.int32), start, length
