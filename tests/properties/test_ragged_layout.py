# SPDX-License-Identifier: Apache-2.0
"""Properties of `RaggedLayout` over random lengths and masks."""

from __future__ import annotations

import pickle

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from edgeops.ragged import RaggedLayout, offsets_from_lengths, to_nested
from tests.strategies import lengths, masks


@given(lengths(), st.sampled_from([torch.int32, torch.int64]))
def test_constructors_agree(lens: list[int], dtype: torch.dtype) -> None:
    layout = RaggedLayout.from_lengths(lens)
    others = [
        RaggedLayout.from_lengths(torch.tensor(lens, dtype=dtype)),
        RaggedLayout.from_offsets(layout.offsets.to(dtype), total=sum(lens)),
        RaggedLayout.from_offsets(layout.cu_seqlens),
        RaggedLayout.from_padding_mask(layout.key_padding_mask()),
        pickle.loads(pickle.dumps(layout)),
    ]
    if lens:
        others.append(RaggedLayout.from_nested(to_nested(torch.zeros(layout.total, 1), layout)))
    for other in others:
        assert other == layout
        assert hash(other) == hash(layout)
        assert other.lengths == tuple(lens)
        assert torch.equal(other.offsets, offsets_from_lengths(lens))


@given(lengths())
def test_facts_of_lengths(lens: list[int]) -> None:
    layout = RaggedLayout.from_lengths(lens)
    assert (layout.num_sequences, layout.total) == (len(lens), sum(lens))
    assert layout.max_len == max(lens, default=0)
    assert layout.sum_sq == sum(n * n for n in lens)
    assert layout.positions.tolist() == [i for n in lens for i in range(n)]
    assert layout.sequence_ids.tolist() == [b for b, n in enumerate(lens) for _ in range(n)]
    assert layout.offsets[1:].sub(layout.offsets[:-1]).tolist() == lens


@given(masks())
def test_masks(mask: Tensor) -> None:
    layout = RaggedLayout.from_padding_mask(mask)
    assert torch.equal(layout.key_padding_mask(), mask)
    assert layout.lengths == tuple(mask.sum(1).tolist())
    assert layout.padded_len == mask.shape[1]
    flat = mask.flatten().nonzero()[:, 0]
    if layout.indices is None:
        left = torch.arange(mask.shape[1]) < mask.sum(1)[:, None]
        assert torch.equal(left, mask)
    else:
        assert torch.equal(layout.indices, flat)
    assert pickle.loads(pickle.dumps(layout)) == layout
    assert RaggedLayout.from_padding_mask(mask.long()) == layout


@given(lengths(), lengths())
def test_equal_when_the_lengths_are(a: list[int], b: list[int]) -> None:
    assume(a != b)
    assert RaggedLayout.from_lengths(a) != RaggedLayout.from_lengths(b)
