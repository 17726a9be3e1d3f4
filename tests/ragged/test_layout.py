# SPDX-License-Identifier: Apache-2.0
"""`RaggedLayout`: its constructors, its tensors, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeops.ragged import RaggedLayout, offsets_from_lengths
from tests.messages import refused


def test_facts() -> None:
    layout = RaggedLayout.from_lengths([2, 0, 3])
    assert layout.num_sequences == 3
    assert layout.total == 5
    assert layout.max_len == layout.padded_len == 3
    assert layout.sum_sq == 13
    assert layout.lengths == (2, 0, 3)
    assert layout.offsets.tolist() == [0, 2, 2, 5]
    assert layout.cu_seqlens.tolist() == [0, 2, 2, 5]
    assert layout.positions.tolist() == [0, 1, 0, 1, 2]
    assert layout.sequence_ids.tolist() == [0, 0, 2, 2, 2]
    assert layout.indices is None
    assert (layout.offsets.dtype, layout.cu_seqlens.dtype) == (torch.int64, torch.int32)
    assert (layout.positions.dtype, layout.sequence_ids.dtype) == (torch.int64, torch.int64)
    assert layout.key_padding_mask().tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert layout.key_padding_mask(4).shape == (3, 4)
    assert repr(layout) == "RaggedLayout(3 sequences, 5 rows, longest 3, cpu)"


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_nothing(lengths: list[int]) -> None:
    layout = RaggedLayout.from_lengths(lengths)
    assert (layout.num_sequences, layout.total, layout.max_len, layout.sum_sq) == (len(lengths), 0, 0, 0)
    assert layout.offsets.tolist() == [0] * (len(lengths) + 1)
    assert layout.positions.tolist() == layout.sequence_ids.tolist() == []
    assert layout.key_padding_mask().shape == (len(lengths), 0)


@pytest.mark.parametrize(
    "lengths",
    [
        [4, 1],
        (4, 1),
        np.array([4, 1], dtype=np.uint8),
        torch.tensor([4, 1]),
        torch.tensor([4, 1], dtype=torch.int32),
        torch.tensor([4, 9, 1])[::2],
    ],
    ids=lambda x: type(x).__name__,
)
def test_lengths_of_any_integer_kind(lengths: Any) -> None:
    assert RaggedLayout.from_lengths(lengths).lengths == (4, 1)
    assert offsets_from_lengths(lengths).tolist() == [0, 4, 5]


def test_more_rows_than_int32_holds() -> None:
    """int64 offsets of lengths whose sums pass 2^31; int32 ones refuse."""
    layout = RaggedLayout.from_lengths(torch.tensor([2**30, 2**30, 5], dtype=torch.int32))
    assert layout.total == 2**31 + 5
    assert layout.offsets[-1] == 2**31 + 5
    assert layout.sum_sq == 2 * 2**60 + 25
    with refused(ValueError, "RaggedLayout.cu_seqlens", "int32 offsets hold up to", str(2**31 + 5)):
        _ = layout.cu_seqlens


def test_masks_with_holes_and_left_padding() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 0]])
    layout = RaggedLayout.from_padding_mask(mask)
    assert layout.lengths == (2, 2, 0)
    assert layout.indices is not None
    assert layout.indices.tolist() == [1, 2, 3, 5]
    assert layout.padded_len == 3
    assert torch.equal(layout.key_padding_mask(), mask.bool())


def test_right_padded_mask_is_left_aligned_and_keeps_its_width() -> None:
    mask = torch.tensor([[True, False, False], [True, True, False]])
    layout = RaggedLayout.from_padding_mask(mask)
    assert layout.indices is None
    assert (layout.max_len, layout.padded_len) == (2, 3)
    assert torch.equal(layout.key_padding_mask(), mask)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
def test_mask_dtypes(dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]]).to(dtype)
    assert RaggedLayout.from_padding_mask(mask).lengths == (2, 2)


def test_masks_may_be_strided() -> None:
    mask = torch.tensor([[1, 0], [1, 1], [0, 1]]).T
    assert RaggedLayout.from_padding_mask(mask) == RaggedLayout.from_padding_mask(mask.contiguous())
    assert RaggedLayout.from_padding_mask(torch.tensor([[1, 0]]).expand(3, 2)).lengths == (1, 1, 1)


def test_equality_and_hash() -> None:
    a, b = RaggedLayout.from_lengths([2, 3]), RaggedLayout.from_offsets(torch.tensor([0, 2, 5], dtype=torch.int32))
    assert a == b
    assert hash(a) == hash(b)
    assert len({a, b}) == 1
    assert a != RaggedLayout.from_lengths([3, 2])
    assert a != RaggedLayout.from_padding_mask(torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]))
    assert a != RaggedLayout.from_padding_mask(torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert a != (2, 3)


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
def test_copies(again: Callable[[RaggedLayout], RaggedLayout]) -> None:
    for layout in (
        RaggedLayout.from_lengths([2, 0, 3]),
        RaggedLayout.from_padding_mask(torch.tensor([[0, 1], [1, 0]])),
        RaggedLayout.from_lengths([]),
    ):
        twin = again(layout)
        assert twin == layout
        assert hash(twin) == hash(layout)
        assert twin.lengths == layout.lengths
        assert twin.device == layout.device


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    layout = RaggedLayout.from_lengths([1, 2])
    torch.save(layout.offsets, tmp_path / "offsets.pt")
    assert RaggedLayout.from_offsets(torch.load(tmp_path / "offsets.pt", weights_only=True)) == layout


def test_immutable() -> None:
    layout = RaggedLayout.from_lengths([2, 3])
    for name in ("total", "device", "anything"):
        with refused(AttributeError, "RaggedLayout", "is immutable", name):
            setattr(layout, name, 1)


def test_changing_the_source_changes_nothing() -> None:
    source = torch.tensor([0, 2, 5])
    layout = RaggedLayout.from_offsets(source)
    source.zero_()
    assert layout.lengths == (2, 3)
    lengths = np.array([2, 3])
    other = RaggedLayout.from_lengths(lengths)
    lengths[:] = 9
    assert other == layout


def test_moves() -> None:
    layout = RaggedLayout.from_padding_mask(torch.tensor([[0, 1], [1, 0]]))
    assert layout.to("cpu") is layout
    moved = layout.to("meta")
    assert moved.device.type == moved.offsets.device.type == moved.indices.device.type == "meta"  # type: ignore[union-attr]
    assert moved.lengths == layout.lengths


@pytest.mark.parametrize(
    ("lengths", "kind", "rule", "got"),
    [
        ([2, -1], ValueError, "lengths must not be negative", "-1 at 1"),
        ([1.5], TypeError, "lengths must be integers", r"list \[1.5\]"),
        (torch.tensor([1.0]), TypeError, "lengths must be integers", "float32"),
        ([[1, 2]], ValueError, "lengths must be one-dimensional", "list"),
        (torch.tensor(3), ValueError, "lengths must be one-dimensional", r"shape \(\)"),
        (["2"], TypeError, "lengths must be integers", "list"),
    ],
)
def test_refuses_lengths(lengths: Any, kind: type[Exception], rule: str, got: str) -> None:
    with refused(kind, "offsets_from_lengths", rule, got):
        RaggedLayout.from_lengths(lengths)


@pytest.mark.parametrize(
    ("offsets", "kind", "rule", "got"),
    [
        (torch.tensor([1, 2]), ValueError, "offsets must start at 0", r"offsets\[0\] = 1"),
        (torch.tensor([0, 3, 2]), ValueError, "offsets must not decrease", "3 then 2 at 1"),
        (torch.tensor([]).long(), ValueError, r"offsets must have shape \[N \+ 1\]", r"shape \(0,\)"),
        (torch.tensor(0), ValueError, r"offsets must have shape \[N \+ 1\]", r"shape \(\)"),
        (torch.tensor([[0, 1]]), ValueError, r"offsets must have shape \[N \+ 1\]", r"shape \(1, 2\)"),
        (torch.tensor([0.0, 1.0]), TypeError, "offsets must be an int32 or int64 tensor", "float32"),
        (torch.tensor([0, 1], dtype=torch.uint8), TypeError, "offsets must be an int32 or int64 tensor", "uint8"),
        ([0, 1], TypeError, "offsets must be an int32 or int64 tensor", "list"),
    ],
)
def test_refuses_offsets(offsets: Any, kind: type[Exception], rule: str, got: str) -> None:
    with refused(kind, "RaggedLayout.from_offsets", rule, got):
        RaggedLayout.from_offsets(offsets)


def test_refuses_offsets_that_end_elsewhere() -> None:
    with refused(ValueError, "RaggedLayout.from_offsets", "offsets must end at the number of rows, 6", "5"):
        RaggedLayout.from_offsets(torch.tensor([0, 5]), total=6)


@pytest.mark.parametrize(
    ("mask", "kind", "rule"),
    [
        (torch.ones(3, dtype=torch.bool), ValueError, r"mask must have shape \[B, L\]"),
        (torch.ones(2, 1, 3, dtype=torch.bool), ValueError, r"mask must have shape \[B, L\]"),
        ([[1, 0]], ValueError, r"mask must have shape \[B, L\]"),
        (torch.zeros(2, 3), TypeError, "mask must be boolean or integer"),
    ],
)
def test_refuses_masks(mask: Any, kind: type[Exception], rule: str) -> None:
    with refused(kind, "RaggedLayout.from_padding_mask", rule):
        RaggedLayout.from_padding_mask(mask)


def test_refuses_a_mask_too_narrow() -> None:
    with refused(ValueError, "RaggedLayout.key_padding_mask", "length must be at least 3", "2"):
        RaggedLayout.from_lengths([1, 3]).key_padding_mask(2)
