# SPDX-License-Identifier: Apache-2.0
"""The dropout mask of attention: a hash of (seed, sequence, head, query, key), so that nothing is stored.

`edgeops.ragged._reference.dropout_keep_reference` is the specification; all arithmetic is uint32 with wrap-around.
"""

from __future__ import annotations

import math

import torch
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
def dropout_words(seed):
    """The two words of the int64 that `seed` points at. It is read on the GPU, so a captured graph may draw it anew."""
    number = tl.load(seed)
    return number.to(tl.uint32), (number >> 32).to(tl.uint32)


@triton.jit
def dropout_rows(seed_low, seed_high, sequence, head, rows):
    """The state of each query row of one head, `rows` long: all of the hash but the key."""
    word = tl.zeros_like(rows).to(tl.uint32)
    state = mix(word + sequence.to(tl.uint32) * 0x9E3779B9 + seed_low)
    state = mix(state ^ seed_high ^ ((word + head.to(tl.uint32)) * 0x85EBCA6B))
    return mix(state + rows.to(tl.uint32) * 0xC2B2AE35)


@triton.jit
def dropout_factors(state, keys, threshold, factor):
    """What the weight of each pair is multiplied by, float32: `factor`, or 0 where it is dropped."""
    kept = mix(state ^ (keys.to(tl.uint32) * 0x27D4EB2F)) >= threshold.to(tl.uint32)
    return tl.where(kept, factor, 0.0).to(tl.float32)


def dropout_arguments(p: float, seed: torch.Tensor | None) -> tuple[torch.Tensor | None, int, float]:
    """What a launch gets for probability p and a seed, a 0-dim int64 tensor: the seed, the threshold, the factor.

    The threshold is signed, so that every launch has the same argument types. With p = 1 the factor is 0.

    >>> dropout_arguments(0.5, torch.tensor(3))
    (tensor(3), -2147483648, 2.0)
    """
    if p == 0:
        return None, 0, 1.0
    threshold = min(math.floor(p * 2**32), 2**32 - 1)
    return seed, threshold - 2**32 if threshold >= 2**31 else threshold, 1.0 / (1.0 - p) if p < 1.0 else 0.0
