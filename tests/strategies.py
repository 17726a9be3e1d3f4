# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for ragged batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.peers import offsets_of

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ANY_DTYPE = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool, torch.complex64)


def floats() -> st.SearchStrategy[torch.dtype]:
    """The dtypes of the float kernels."""
    return st.sampled_from(FLOATS)


def lengths(max_size: int = 6, max_length: int = 40, min_size: int = 0) -> st.SearchStrategy[list[int]]:
    """Sequence lengths: many empty and single ones, around the tiles, and some of any size."""
    edges = [n for n in (0, 1, 7, 8, 9, 15, 16, 17, 18, 19, 36) if n <= max_length]
    length = st.one_of(st.sampled_from(edges), st.integers(0, max_length))
    return st.lists(length, min_size=min_size, max_size=max_size)


def seeds() -> st.SearchStrategy[torch.Generator]:
    """Generators for the values: the structure is drawn, the numbers are random but fixed."""
    return st.integers(0, 2**31).map(lambda seed: torch.Generator().manual_seed(seed))


@st.composite
def masks(draw: st.DrawFn, max_batch: int = 5, max_columns: int = 9) -> Tensor:
    """bool `[B, L]` padding masks: right padded, left padded, with holes, full and empty rows."""
    b, columns = draw(st.integers(0, max_batch)), draw(st.integers(0, max_columns))
    position = torch.arange(columns)
    rows = []
    for _ in range(b):
        kind = draw(st.sampled_from(["right", "left", "holes"]))
        n = draw(st.integers(0, columns))
        if kind == "right":
            rows.append(position < n)
        elif kind == "left":
            rows.append(position >= columns - n)
        else:
            rows.append(
                torch.tensor(draw(st.lists(st.booleans(), min_size=columns, max_size=columns)), dtype=torch.bool)
            )
    return torch.stack(rows) if rows else torch.zeros(0, columns, dtype=torch.bool)


@dataclass(frozen=True)
class AttentionInput:
    """Arguments of one attention call."""

    q: Tensor
    k: Tensor
    v: Tensor
    cu_q: Tensor
    cu_k: Tensor
    causal: bool
    window: tuple[int, int]
    bias: Tensor | None

    @property
    def options(self) -> dict[str, object]:
        """Its keyword arguments."""
        return {"causal": self.causal, "window": self.window, "bias": self.bias}

    @property
    def longest(self) -> tuple[int, int]:
        """Longest query and key sequences."""
        return tuple(int(c.diff().max()) if len(c) > 1 else 0 for c in (self.cu_q, self.cu_k))  # type: ignore[return-value]


@st.composite
def attention_inputs(
    draw: st.DrawFn, dtype: torch.dtype = torch.float32, min_size: int = 0, with_bias: bool = True, max_length: int = 40
) -> AttentionInput:
    """Self- and cross-attention of small batches: grouped heads, odd head sizes, masks, any form of bias."""
    lens_q = draw(lengths(min_size=min_size, max_length=max_length))
    cross = draw(st.booleans())
    length = st.integers(0, max_length)
    lens_k = [draw(length) for _ in lens_q] if cross else lens_q
    generator = draw(seeds())
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    dim, dim_v = draw(st.sampled_from([1, 3, 8, 20])), draw(st.sampled_from([1, 5, 16, 17]))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    heads = kv_heads * group
    bias = None
    if with_bias and draw(st.booleans()):
        top_q, top_k = max(lens_q, default=0), max(lens_k, default=0)
        full = (len(lens_q), heads, top_q + draw(st.integers(0, 2)), top_k + draw(st.integers(0, 2)))
        bias = normal(*(1 if draw(st.booleans()) else n for n in full))
        if draw(st.booleans()):
            bias = bias.masked_fill(torch.rand(bias.shape, generator=generator) < 0.3, -torch.inf)
    window = draw(st.sampled_from([(-1, -1), (-1, 0), (0, 0), (3, -1), (2, 1), (-1, 4), (100, 100)]))
    index = draw(st.sampled_from([torch.int32, torch.int64]))
    return AttentionInput(
        normal(sum(lens_q), heads, dim),
        normal(sum(lens_k), kv_heads, dim),
        normal(sum(lens_k), kv_heads, dim_v),
        offsets_of(lens_q, index),
        offsets_of(lens_k, index),
        draw(st.booleans()),
        window,
        bias,
    )
