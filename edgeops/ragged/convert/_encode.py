# SPDX-License-Identifier: Apache-2.0
"""Packed rows for the caller: `encode_packed` on a converted model, and `RaggedEncoder` for lists of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeops._common import message
from edgeops.ragged.bridges import from_nested, to_nested
from edgeops.ragged.convert._convert import convert
from edgeops.ragged.convert._padding import padding_from_layout
from edgeops.ragged.convert._swap import Converted
from edgeops.ragged.layout import RaggedLayout
from edgeops.ragged.pool import ragged_pool

_POOLS = ("mean", "sum", "max", "first")


def _converted_part(model: nn.Module) -> Any:
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Converted)]
    outermost = [
        (name, module)
        for name, module in found
        if not any(name != other and (name.startswith(f"{other}.") or not other) for other, _ in found)
    ]
    if len(outermost) != 1:
        names = ", ".join(name or "the model" for name, _ in outermost) or f"{type(model).__name__} without any"
        advice = "Call encode_packed on one of them." if outermost else "Call edgeops.ragged.convert(model) first."
        raise ValueError(message("encode_packed", "needs a model with one converted encoder", names, advice))
    return outermost[0][1]


def encode_packed(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, RaggedLayout]:
    """Run the converted encoder of a model and return its last hidden states without padding.

    Args:
        model: a converted model, or any module that holds exactly one converted encoder (a classifier, a
            sentence-transformers pipeline). Heads are not run.
        args, kwargs: as the encoder's forward takes them, padded, with the padding mask; or without any padding:

            * text models: `input_ids` (and `token_type_ids`, `position_ids`, `inputs_embeds`) as lists of sequences,
              or as rows `[T]` with `layout=`;
            * ViT: `pixel_values` as a list of `[channels, h_i, w_i]` images of any size, or `tokens=`, embedded by the
              caller, as a list of `[l_i, C]` or rows `[T, C]` with `layout=`;
            * `nn.TransformerEncoder(Layer)`: `src` as a list of `[l_i, E]`, or rows `[T, E]` with `layout=`.

    Returns:
        (values `[T, C]`, layout): row `layout.offsets[b] + i` is token i of sequence b. Feed them to
        `ragged_pool(values, layout.offsets, "mean")` for sentence embeddings, or to `unpack(values, layout)`.

    Raises:
        ValueError: the model holds no converted encoder, or several.
        NotImplementedError: the call asks for something that packed rows cannot give.

    >>> encoder = convert(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 1))
    >>> values, layout = encode_packed(encoder, [torch.randn(3, 8), torch.randn(5, 8)])
    >>> values.shape, layout.lengths
    (torch.Size([8, 8]), (3, 5))
    """
    result: tuple[Tensor, RaggedLayout] = _converted_part(model).encode_packed(*args, **kwargs)
    return result


class RaggedEncoder(nn.Module):
    """An encoder for sequences of different lengths, in the manner of NaViT: lists in, lists or embeddings out.

    Args:
        encoder: any model that `convert` takes: `nn.TransformerEncoder`, `ViTModel`, `BertModel`, ...; parameters are
            shared with it.
        pool: "mean", "sum", "max" or "first" (the class token) for one row per sequence; `None` for all tokens.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        >>> encoder = RaggedEncoder(nn.TransformerEncoder(layer, 1), pool="mean")
        >>> encoder([torch.randn(3, 8), torch.randn(5, 8)]).shape
        torch.Size([2, 8])
    """

    def __init__(self, encoder: nn.Module, *, pool: str | None = None) -> None:
        super().__init__()
        if pool is not None and pool not in _POOLS:
            rule = f"pool must be None or one of {', '.join(_POOLS)}"
            raise ValueError(message("RaggedEncoder", rule, repr(pool), "Choose one of these."))
        self.encoder = convert(encoder)
        self.pool = pool
        _converted_part(self.encoder)

    def forward(self, sequences: Sequence[Any] | Tensor) -> list[Tensor] | Tensor:
        """Encode a batch of sequences.

        Args:
            sequences: a list with one entry per sequence: `[l_i, C]` tokens; for text models ids `[l_i]` (tensors or
                lists of ints); for ViT images `[channels, h_i, w_i]` of any size. Or a jagged nested tensor of tokens.

        Returns:
            A list of `[l_i, C]` (a nested tensor for a nested input), or `[B, C]` with `pool`; 0 for an empty sequence.
        """
        nested = isinstance(sequences, Tensor)
        if nested:
            rows, layout = from_nested(sequences)  # type: ignore[arg-type]
            values, layout = self._encode_tokens(rows, layout)
        elif len(sequences) and self._is_tokens(sequences[0]):
            values, layout = self._encode_tokens(list(sequences), None)
        else:
            values, layout = encode_packed(self.encoder, sequences)
        if self.pool == "first":
            return padding_from_layout(layout).first_rows(values)
        if self.pool is not None:
            return ragged_pool(values, layout.offsets, self.pool)
        return to_nested(values, layout) if nested else list(torch.split(values, list(layout.lengths)))

    @staticmethod
    def _is_tokens(first: object) -> bool:
        return isinstance(first, Tensor) and first.ndim == 2

    def _encode_tokens(self, tokens: Any, layout: RaggedLayout | None) -> tuple[Tensor, RaggedLayout]:
        return encode_packed(self.encoder, **{_converted_part(self.encoder).embedded_argument: tokens}, layout=layout)
