# SPDX-License-Identifier: Apache-2.0
"""Token ids into packed rows: before the embeddings, so that these look up real tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops._common import describe, message
from edgeops.ragged.convert._hf import HuggingFaceAdapter, mask_like, unpacked_states
from edgeops.ragged.convert._padding import (
    Padding,
    packed_rows,
    padding_from_flattened,
    padding_from_layout,
    padding_from_mask,
)
from edgeops.ragged.convert._stack import Block, Pattern, run_blocks
from edgeops.ragged.convert._swap import refuse_call
from edgeops.ragged.layout import RaggedLayout

Ids = Tensor | Sequence[Any] | None


def _not_one(who: str, ids: object) -> ValueError:
    got = "neither" if ids is None else "both"
    return ValueError(message(who, "needs exactly one of input_ids or inputs_embeds", got, "Pass one of them."))


def _sequence(who: str, item: Any, integers: bool, device: torch.device) -> Tensor:
    """One sequence of a list as a tensor; an empty list of ids has no dtype of its own."""
    rows = torch.as_tensor(item, device=device)
    if integers and rows.is_floating_point():
        if rows.numel():
            raise TypeError(message(who, "ids, types and positions must be integers", describe(rows), "Cast them."))
        rows = rows.long()
    return rows


class PackedTokens(HuggingFaceAdapter):
    """A text encoder whose embeddings depend on (id, token type, position) of each token alone."""

    embeddings: Any
    embedded_argument = "inputs_embeds"

    def blocks(self) -> list[Block]:
        """The layers, as they are now."""
        raise NotImplementedError

    def _embed(
        self, ids: Tensor | None, types: Tensor | None, positions: Tensor | None, embeds: Tensor | None
    ) -> Tensor:
        """Batches `[B, L]` through the stock embeddings, to rows `[B * L, C]`."""
        raise NotImplementedError

    def _positions(self, input_ids: Tensor | None, padding: Padding) -> Tensor:
        """int64 `[T]`: the positions that the stock model gives the tokens of a padded batch."""
        first = getattr(self.embeddings, "padding_idx", None)
        if first is None:
            return padding.columns()
        if input_ids is None:
            return padding.columns() + (first + 1)
        return padding.pack(self.embeddings.create_position_ids_from_input_ids(input_ids, first))

    def _positions_of_rows(self, ids: Tensor | None, layout: RaggedLayout) -> Tensor:
        """int64 `[T]`: the positions of rows that were never padded."""
        first = getattr(self.embeddings, "padding_idx", None)
        if first is None:
            return layout.positions
        if ids is None:
            return layout.positions + (first + 1)
        real = ids.ne(first).long()
        before = torch.cat([real.new_zeros(1), real.cumsum(0)])
        return (before[1:] - before[layout.offsets[:-1]][layout.sequence_ids]) * real + first

    def enter(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        flattened: Tensor | None = None,
    ) -> tuple[Tensor, Padding]:
        """A padded batch, or a row `[1, T]` of sequences with `flattened` offsets, to embedded rows `[T, C]`."""
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        if tokens is None or (input_ids is not None and inputs_embeds is not None):
            raise _not_one(f"converted {type(self).__name__}", input_ids)
        shape = (tokens.shape[0], tokens.shape[1])
        mask_like(type(self).__name__, attention_mask, shape)
        if flattened is not None and attention_mask is None:
            padding = padding_from_flattened(flattened, shape, tokens.device)
        else:
            padding = padding_from_mask(attention_mask, shape, tokens.device)
        if padding.rows is None:
            return self._embed(input_ids, token_type_ids, position_ids, inputs_embeds), padding
        positions = self._positions(input_ids, padding) if position_ids is None else padding.pack(position_ids)
        ids, types, embeds = (
            None if part is None else padding.pack(part)[None] for part in (input_ids, token_type_ids, inputs_embeds)
        )
        return self._embed(ids, types, positions[None], embeds), padding

    def enter_rows(
        self,
        input_ids: Ids,
        token_type_ids: Ids,
        position_ids: Ids,
        inputs_embeds: Ids,
        layout: RaggedLayout | None,
    ) -> tuple[Tensor, Padding]:
        """Lists of sequences, or rows with their layout, to embedded rows `[T, C]`."""
        who = f"{type(self).__name__}.encode_packed"
        device = self.embeddings.word_embeddings.weight.device
        rows: list[Tensor | None] = []
        for part in (input_ids, token_type_ids, position_ids, inputs_embeds):
            if part is not None and not isinstance(part, Tensor):
                integers = part is not inputs_embeds
                part, found = packed_rows(who, [_sequence(who, item, integers, device) for item in part])
                if layout is not None and found.lengths != layout.lengths:
                    rule = f"all inputs must have the lengths {layout.lengths}"
                    raise ValueError(message(who, rule, str(found.lengths), "Pass one entry per token."))
                layout = layout or found
            rows.append(part)
        ids, types, positions, embeds = rows
        if layout is None or (ids is None) == (embeds is None):
            raise _not_one(who, ids)
        for part in rows:
            if part is not None and len(part) != layout.total:
                rule = f"rows must be as many as the layout has, {layout.total}"
                raise ValueError(message(who, rule, describe(part), "Pass the layout of these rows."))
        if positions is None:
            positions = self._positions_of_rows(ids, layout)
        batch = (None if part is None else part[None] for part in (ids, types, positions, embeds))
        return self._embed(*batch), padding_from_layout(layout)

    def run_packed(
        self,
        input_ids: Ids,
        attention_mask: Tensor | None,
        token_type_ids: Ids,
        position_ids: Ids,
        inputs_embeds: Ids,
        layout: RaggedLayout | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, RaggedLayout]:
        """Last hidden states of real tokens `[T, C]` and their layout, from any form of input."""
        refuse_call(self, self.call_reasons(attention_mask, {}, kwargs))  # type: ignore[arg-type]
        parts = (input_ids, token_type_ids, position_ids, inputs_embeds)
        if layout is not None or any(part is not None and not isinstance(part, Tensor) for part in parts):
            x, padding = self.enter_rows(*parts, layout)
        else:
            x, padding = self.enter(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)  # type: ignore[arg-type]
        x = run_blocks(x, self.blocks(), Pattern(padding.offsets, padding.max_len))
        return x, padding.layout

    def run_padded(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        given: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Padding, Tensor, tuple[Tensor | None, ...] | None]:
        """A call of the stock signature: packed rows, their padding, last hidden state and all hidden states."""
        refuse_call(self, self.call_reasons(attention_mask, given, kwargs))  # type: ignore[arg-type]
        selected = self.selected_states(kwargs)
        collected: list[Tensor] | None = None if selected is False else []
        flattened = kwargs.get("cu_seq_lens_q")
        x, padding = self.enter(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, flattened)
        x = run_blocks(x, self.blocks(), Pattern(padding.offsets, padding.max_len), collected)
        last = padding.unpack(x)
        states = None if collected is None else unpacked_states(collected, padding, selected, last)
        return x, padding, last, states
