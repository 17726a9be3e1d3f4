# SPDX-License-Identifier: Apache-2.0
"""Properties of `pack` and `unpack` over random masks, dtypes and shapes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeops.ragged import RaggedLayout, from_nested, pack, to_nested, unpack
from tests.strategies import ANY_DTYPE, lengths, masks, seeds

trailing = st.lists(st.integers(0, 4), max_size=2)


def values_of(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    numbers = torch.randint(1, 100, shape, generator=generator)
    return numbers.bool() if dtype == torch.bool else numbers.to(dtype)


@given(masks(), trailing, st.sampled_from(ANY_DTYPE), seeds())
def test_round_trip(mask: Tensor, tail: list[int], dtype: torch.dtype, generator: torch.Generator) -> None:
    """Masks with holes and left padding: packing is indexing, unpacking puts the rows back and zeros elsewhere."""
    layout = RaggedLayout.from_padding_mask(mask)
    padded = values_of((*mask.shape, *tail), dtype, generator)
    packed = pack(padded, layout)
    assert torch.equal(packed, padded[mask])
    back = unpack(packed, layout)
    assert back.shape == padded.shape
    assert torch.equal(back[mask], padded[mask])
    assert not back[~mask].any()
    assert torch.equal(pack(back, layout), packed)


@given(masks(), seeds(), st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_padding_never_leaks(mask: Tensor, generator: torch.Generator, poison: float) -> None:
    layout = RaggedLayout.from_padding_mask(mask)
    clean = torch.randn(*mask.shape, 3, generator=generator)
    dirty = clean.masked_fill(~mask[:, :, None], poison).requires_grad_()
    packed = pack(dirty, layout)
    assert torch.equal(packed, clean[mask])
    grad = torch.randn(packed.shape, generator=generator)
    (back,) = torch.autograd.grad(packed, dirty, grad)
    assert torch.equal(back[mask], grad)
    assert not back[~mask].any()


@given(lengths(max_length=9), st.integers(0, 3), st.floats(width=32), seeds())
def test_unpack_fills_every_place(lens: list[int], extra: int, value: float, generator: torch.Generator) -> None:
    layout = RaggedLayout.from_lengths(lens)
    rows = torch.randn(layout.total, 2, generator=generator)
    out = unpack(rows, layout, padding_value=value, length=layout.max_len + extra)
    mask = layout.key_padding_mask(layout.max_len + extra)
    want = torch.full(out.shape, value)
    want[mask] = rows
    torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)


@given(lengths(max_length=9), st.permutations([0, 1, 2]), seeds())
def test_strides_do_not_matter(lens: list[int], order: list[int], generator: torch.Generator) -> None:
    layout = RaggedLayout.from_lengths(lens)
    shape = (len(lens), layout.max_len, 3)
    inverse = [order.index(d) for d in range(3)]
    dense = torch.randn(shape, generator=generator)
    strided = dense.permute(order).contiguous().permute(inverse)
    assert torch.equal(pack(strided, layout), pack(dense, layout))


@given(lengths(max_length=9, min_size=1), seeds())
def test_nested_round_trip(lens: list[int], generator: torch.Generator) -> None:
    layout = RaggedLayout.from_lengths(lens)
    rows = torch.randn(layout.total, 2, generator=generator)
    values, again = from_nested(to_nested(rows, layout))
    assert again == layout
    assert torch.equal(values, rows)
