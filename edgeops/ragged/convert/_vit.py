# SPDX-License-Identifier: Apache-2.0
"""ViT on images of different sizes: every image brings as many tokens as it has patches, none of them padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgeops._common import describe, message
from edgeops.ragged.convert._hf import (
    HuggingFaceAdapter,
    finish,
    loaded,
    mask_like,
    unknown_signature,
    unpacked_states,
)
from edgeops.ragged.convert._padding import Padding, packed_rows, padding_from_layout, padding_from_mask
from edgeops.ragged.convert._projection import Linears, project
from edgeops.ragged.convert._stack import Block, Pattern, run_blocks
from edgeops.ragged.convert._swap import bypassed, is_stock, refuse_call
from edgeops.ragged.layout import RaggedLayout

_PATH = "vit.modeling_vit"
_ARGUMENTS = ("pixel_values", "bool_masked_pos", "interpolate_pos_encoding", "attention_mask")


class ViTAdapter(HuggingFaceAdapter):
    """`ViTModel` on packed rows."""

    embedded_argument = "tokens"
    embeddings: Any
    layers: Any
    layernorm: nn.Module
    pooler: nn.Module | None

    @classmethod
    def recognises(cls, module: nn.Module) -> bool:
        source = loaded(_PATH)
        return source is not None and isinstance(module, source.ViTModel)

    @classmethod
    def why_not(cls, module: Any) -> Iterator[str]:
        source: Any = loaded(_PATH)
        if not is_stock(module, source.ViTModel):
            yield "its forward is not that of ViTModel"
            return
        yield from unknown_signature(module, _ARGUMENTS)
        for i, layer in enumerate(module.layers):
            yield from bypassed(f"layers.{i}", layer, source.ViTLayer)
            yield from bypassed(f"layers.{i}.attention", layer.attention, source.ViTAttention)
            yield from bypassed(f"layers.{i}.mlp", layer.mlp, source.ViTMLP)

    def linears(self) -> list[Linears]:
        parts = [layer.attention for layer in self.layers]
        return [(part.q_proj, part.k_proj, part.v_proj) for part in parts]

    def attentions(self) -> list[tuple[str, nn.Module, float]]:
        parts = [layer.attention for layer in self.layers]
        return [(f"layers.{i}.attention", part, part.attention_dropout) for i, part in enumerate(parts)]

    def blocks(self) -> list[Block]:
        """The layers, as they are now."""
        blocks = []
        grad = torch.is_grad_enabled()
        per_layer = zip(self.layers, self.fused_projections(), self.attention_dropouts(), strict=True)
        for layer, fused, dropout in per_layer:
            attention = layer.attention
            linears = (attention.q_proj, attention.k_proj, attention.v_proj)
            checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
            blocks.append(
                Block(
                    project=partial(
                        project, linears=linears, fused=fused, num_heads=attention.num_attention_heads, grad=grad
                    ),
                    scale=attention.scaling,
                    out=attention.o_proj,
                    norm1=layer.layernorm_before,
                    fc1=layer.mlp.fc1,
                    activation=layer.mlp.activation_fn,
                    fc2=layer.mlp.fc2,
                    norm2=layer.layernorm_after,
                    dropouts=(layer.dropout, None, layer.dropout),
                    norm_first=True,
                    checkpoint=layer._gradient_checkpointing_func if checkpointed else None,
                    attention_dropout=dropout,
                )
            )
        return blocks

    def _embed_images(self, images: Sequence[Tensor]) -> tuple[Tensor, RaggedLayout]:
        """Images `[channels, h_i, w_i]` to token rows; images of one size share a convolution."""
        who = f"{type(self).__name__}.encode_packed"
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            if not isinstance(image, Tensor) or image.ndim != 3:
                rule = f"image {i} must be a tensor [channels, height, width]"
                raise ValueError(message(who, rule, describe(image), "Pass single images, not batches."))
            groups.setdefault(tuple(image.shape), []).append(i)
        tokens: dict[int, Tensor] = {}
        for members in groups.values():
            pixels = torch.stack([images[i] for i in members])
            tokens.update(zip(members, self._embed_batch(pixels, None, True), strict=True))
        return packed_rows(who, [tokens[i] for i in range(len(images))])

    def _embed_batch(self, pixel_values: Tensor, masked: Tensor | None, interpolate: bool | None) -> Tensor:
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        result: Tensor = self.embeddings(
            pixel_values, bool_masked_pos=masked, interpolate_pos_encoding=bool(interpolate)
        )
        return result

    def _enter(
        self,
        pixel_values: Tensor,
        masked: Tensor | None,
        interpolate: bool | None,
        attention_mask: Tensor | None,
    ) -> tuple[Tensor, Padding]:
        embedded = self._embed_batch(pixel_values, masked, interpolate)
        shape = (embedded.shape[0], embedded.shape[1])
        mask_like(type(self).__name__, attention_mask, shape)
        padding = padding_from_mask(attention_mask, shape, embedded.device)
        return padding.pack(embedded), padding

    def encode_packed(
        self,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        attention_mask: Tensor | None = None,
        *,
        tokens: Tensor | Sequence[Tensor] | None = None,
        layout: RaggedLayout | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, RaggedLayout]:
        """Last hidden states `[T, C]`: see `edgeops.ragged.encode_packed`.

        `pixel_values` is a batch of equal images or a list of `[channels, h_i, w_i]`; or `tokens`, embedded by the
        caller, is a list of `[l_i, C]` or rows `[T, C]` with their layout.
        """
        refuse_call(self, self.call_reasons(attention_mask, {}, kwargs))  # type: ignore[arg-type]
        if (pixel_values is None) == (tokens is None):
            who = f"{type(self).__name__}.encode_packed"
            got = "neither" if tokens is None else "both"
            raise ValueError(message(who, "needs either pixel_values or tokens", got, "Pass one of them."))
        if tokens is not None:
            x, padding = self._enter_tokens(tokens, layout)
        elif isinstance(pixel_values, Tensor):
            x, padding = self._enter(pixel_values, None, interpolate_pos_encoding, attention_mask)
        else:
            x, layout = self._embed_images(pixel_values)  # type: ignore[arg-type]
            padding = padding_from_layout(layout)
        x = run_blocks(x, self.blocks(), Pattern(padding.offsets, padding.max_len))
        return self.layernorm(x), padding.layout

    def _enter_tokens(self, tokens: Tensor | Sequence[Tensor], layout: RaggedLayout | None) -> tuple[Tensor, Padding]:
        who = f"{type(self).__name__}.encode_packed"
        if not isinstance(tokens, Tensor):
            tokens, layout = packed_rows(who, tokens)
        if layout is None or tokens.ndim != 2 or len(tokens) != layout.total:
            rule = "tokens must be a list of [l_i, C], or rows [T, C] with their layout"
            raise ValueError(message(who, rule, f"{describe(tokens)}, layout {layout}", "Pass layout=..."))
        return tokens, padding_from_layout(layout)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the stock model; hidden states where `attention_mask` is 0 are zero."""
        refuse_call(self, self.call_reasons(attention_mask, {}, kwargs))  # type: ignore[arg-type]
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        selected = self.selected_states(kwargs)
        collected: list[Tensor] | None = None if selected is False else []
        x, padding = self._enter(pixel_values, bool_masked_pos, interpolate_pos_encoding, attention_mask)
        x = self.layernorm(run_blocks(x, self.blocks(), Pattern(padding.offsets, padding.max_len), collected))
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        pooled = None if self.pooler is None else self.pooler(padding.first_rows(x)[:, None])
        output: Any = BaseModelOutputWithPooling(last_hidden_state=padding.unpack(x), pooler_output=pooled)
        if collected is not None:
            output["hidden_states"] = unpacked_states(collected, padding, selected, None)
        return finish(output, kwargs, self.config)
