# SPDX-License-Identifier: Apache-2.0
"""The dropout mask of attention: a hash of (seed, sequence, head, query, key), so that nothing is stored.

`edgeops.ragged._reference.dropout_keep_reference` is the specification; all arithmetic is uint32 with wrap-around.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl


@triton.jit
def mix(x):
    # a bijection of 32-bit words whose every output bit depends on every input bit
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def dropout_rows(seed_low, seed_high, sequence, head, rows):
    """The state of each query row of one head, `rows` long: all of the hash but the key."""
    word = tl.zeros_like(rows).to(tl.uint32)
    state = mix(word + sequence.to(tl.uint32) * 0x9E3779B9 + seed_low.to(tl.uint32))
    state = mix(state ^ seed_high.to(tl.uint32) ^ ((word + head.to(tl.uint32)) * 0x85EBCA6B))
    return mix(state + rows.to(tl.uint32) * 0xC2B2AE35)


@triton.jit
def dropout_factors(state, keys, threshold, factor):
    """What the weight of each pair is multiplied by, float32: `factor`, or 0 where it is dropped."""
    kept = mix(state ^ (keys.to(tl.uint32) * 0x27D4EB2F)) >= threshold.to(tl.uint32)
    return tl.where(kept, factor, 0.0).to(tl.float32)


def dropout_arguments(p: float, seed: int) -> tuple[int, int, int, float]:
    """What a launch gets for probability p and an int64 seed: two words of the seed, the threshold, the factor.

    Words are signed, so that every launch has the same argument types. With p = 1 the factor is 0.

    >>> dropout_arguments(0.5, -1)
    (-1, -1, -2147483648, 2.0)
    """

    def signed(word: int) -> int:
        word &= 0xFFFFFFFF
        return word - 2**32 if word >= 2**31 else word

    threshold = min(math.floor(p * 2**32), 2**32 - 1)
    return signed(seed), signed(seed >> 32), signed(threshold), 1.0 / (1.0 - p) if p < 1.0 else 0.0
