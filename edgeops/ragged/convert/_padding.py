# SPDX-License-Identifier: Apache-2.0
"""What one call knows about its padding: built once before the first layer, shared by all of them (CoRa, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeops import _native
from edgeops._common import describe, message
from edgeops.ragged.layout import RaggedLayout
from edgeops.ragged.pack import unpack


class Padding:
    """The way between a padded batch `[B, L, ...]` and its packed rows `[T, ...]`.

    Attributes:
        offsets: int64 `[B + 1]` on the device of the batch.
        max_len: longest sequence.
        shape: `(B, L)` of the padded batch.
    """

    __slots__ = ("_layout", "_rows", "max_len", "offsets", "shape")

    def __init__(self, shape: tuple[int, int], rows: Tensor | None, layout: RaggedLayout | None, device: torch.device):
        self._layout = layout
        self._rows = rows
        self.shape = shape
        if layout is None:  # no padding: nothing here needs the host, so a compiled graph goes through
            self.offsets = torch.arange(shape[0] + 1, device=device) * shape[1]
            self.max_len = shape[1]
        else:
            self.offsets = layout.offsets
            self.max_len = layout.max_len

    @property
    def rows(self) -> Tensor | None:
        """int64 `[T]`, place of each token in the flattened batch; `None` when every position is a token.

        Looked up when asked for: a graph compiled for packed rows, which does not ask, must not depend on the lengths.
        """
        layout, (count, length) = self._layout, self.shape
        if self._rows is None and layout is not None and layout.total != count * length:
            self._rows = _places(layout, length)
        return self._rows

    @property
    def has_empty(self) -> bool:
        """Whether some sequence has no token."""
        return self.shape[1] == 0 if self._layout is None else 0 in self._layout.lengths

    @property
    def layout(self) -> RaggedLayout:
        """The packed rows."""
        if self._layout is None:
            self._layout = RaggedLayout.from_lengths([self.shape[1]] * self.shape[0], self.offsets.device)
        return self._layout

    @property
    def is_left_aligned(self) -> bool:
        """Whether a token's place in its sequence is its column."""
        return self._layout is None or self._layout.indices is None

    def pack(self, padded: Tensor) -> Tensor:
        """`[B, L, ...]` or a row `[1, L, ...]` that all sequences share, to `[T, ...]`."""
        if padded.shape[0] != self.shape[0]:
            padded = padded.expand(self.shape[0], *padded.shape[1:])
        if self.rows is None:
            return padded.reshape(self.shape[0] * self.shape[1], *padded.shape[2:])
        if not padded.is_contiguous():  # a sequence-first batch, or one row for all: read it where it lies
            return padded[self.rows.div(self.shape[1], rounding_mode="floor"), self.rows.remainder(self.shape[1])]
        return padded.flatten(0, 1).index_select(0, self.rows)

    def unpack(self, values: Tensor) -> Tensor:
        """`[T, ...]` to `[B, L, ...]`, zeros where the batch has padding."""
        if self.rows is None:
            return values.reshape(*self.shape, *values.shape[1:])
        return unpack(values, self.layout, length=self.shape[1])

    def columns(self) -> Tensor:
        """int64 `[T]`: the column of each token in the padded batch."""
        if self.rows is None:
            return torch.arange(self.shape[1], device=self.offsets.device).repeat(self.shape[0])
        return self.rows.remainder(self.shape[1])

    def first_rows(self, values: Tensor) -> Tensor:
        """`[T, C]` to `[B, C]`: the first token of each sequence, zeros for an empty one."""
        if self._layout is not None and self._layout.num_sequences != self.shape[0]:
            return values[:1]  # flattened sequences: the stock model pools the one row it sees
        if not self.has_empty:
            return values.index_select(0, self.offsets[:-1])
        if not values.shape[0]:
            return values.new_zeros(self.shape[0], values.shape[1])
        starts = self.offsets[:-1]
        empty = self.offsets[1:] == starts
        return values.index_select(0, starts.clamp(max=values.shape[0] - 1)).masked_fill(empty[:, None], 0.0)


def padding_from_mask(mask: Tensor | None, shape: tuple[int, int], device: torch.device) -> Padding:
    """From a `[B, L]` mask with nonzero = token, or `None` for all tokens."""
    return Padding(shape, None, None, device) if mask is None else _read_mask(mask, shape, device)


@_native.eager_only
def padding_from_flattened(offsets: Tensor, shape: tuple[int, int], device: torch.device) -> Padding:
    """Sequences that stand one after another in one row `[1, T]`, as padding-free data collators lay them."""
    if shape[0] != 1:
        rule = "cu_seq_lens_q describes sequences flattened into a batch of one row"
        raise ValueError(message("converted model", rule, f"{shape[0]} rows", "Flatten the batch, or drop it."))
    layout = RaggedLayout.from_offsets(offsets.to(device), total=shape[1])
    return Padding(shape, None, layout, device)


@_native.eager_only
def _read_mask(mask: Tensor, shape: tuple[int, int], device: torch.device) -> Padding:
    layout = RaggedLayout.from_padding_mask(mask if not mask.is_floating_point() else mask != 0).to(device)
    rows = layout.indices
    if rows is None and layout.total != shape[0] * shape[1]:  # now, while no graph is being compiled
        rows = _places(layout, shape[1])
    return Padding(shape, rows, layout, device)


def _places(layout: RaggedLayout, length: int) -> Tensor:
    return layout.sequence_ids * length + layout.positions


def padding_from_layout(layout: RaggedLayout) -> Padding:
    """For rows that are packed already; the padded batch, if asked for, is as wide as the longest sequence."""
    return Padding((layout.num_sequences, layout.max_len), None, layout, layout.device)


def packed_rows(who: str, sequences: Sequence[Tensor]) -> tuple[Tensor, RaggedLayout]:
    """Concatenate a list of `[l_i, ...]` tensors: (values `[T, ...]`, layout).

    >>> packed_rows("doc", [torch.zeros(2, 4), torch.zeros(3, 4)])[1].lengths
    (2, 3)
    """
    if not sequences:
        raise ValueError(message(who, "needs at least one sequence", "an empty list", "Pass [l_i, ...] tensors."))
    first = sequences[0]
    for i, item in enumerate(sequences):
        if not isinstance(item, Tensor) or item.ndim != first.ndim or item.ndim == 0:
            rule = f"sequence {i} must be a tensor [l_i, ...] like the first"
            raise ValueError(message(who, rule, describe(item), f"The first is a {describe(first)}."))
    layout = RaggedLayout.from_lengths([len(item) for item in sequences], first.device)
    return torch.cat(list(sequences)), layout
