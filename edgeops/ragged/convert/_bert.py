# SPDX-License-Identifier: Apache-2.0
"""BERT and the models that share its layout: RoBERTa, XLM-R, CamemBERT, ELECTRA, Data2Vec-text; MiniLM, BGE, E5 are these.

Tokens are packed before the embeddings, which then look up real tokens only, at the positions they have in the padded
batch (or, in the RoBERTa family, at those the model derives from the ids).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import ModuleType
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

_FAMILIES = {
    "bert.modeling_bert": "Bert",
    "roberta.modeling_roberta": "Roberta",
    "xlm_roberta.modeling_xlm_roberta": "XLMRoberta",
    "camembert.modeling_camembert": "Camembert",
    "electra.modeling_electra": "Electra",
    "data2vec.modeling_data2vec_text": "Data2VecText",
}
_ARGUMENTS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "inputs_embeds",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "past_key_values",
    "use_cache",
)
_LAYER_PARTS = {
    "attention": "Attention",
    "attention.self": "SelfAttention",
    "attention.output": "SelfOutput",
    "intermediate": "Intermediate",
    "output": "Output",
}

Ids = Tensor | Sequence[Any] | None


def _family(module: nn.Module) -> tuple[ModuleType, str] | None:
    for path, prefix in _FAMILIES.items():
        source = loaded(path)
        if source is not None and isinstance(module, getattr(source, f"{prefix}Model")):
            return source, prefix
    return None


class BertAdapter(HuggingFaceAdapter):
    """`BertModel` and relatives on packed rows."""

    embeddings: Any
    encoder: Any

    @classmethod
    def recognises(cls, module: nn.Module) -> bool:
        return _family(module) is not None

    @classmethod
    def why_not(cls, module: Any) -> Iterator[str]:
        source, prefix = _family(module)  # type: ignore[misc]
        if not is_stock(module, getattr(source, f"{prefix}Model")):
            yield f"its forward is not that of {prefix}Model"
            return
        yield from unknown_signature(module, _ARGUMENTS)
        config = module.config
        if config.is_decoder:
            yield "it is configured as a decoder (config.is_decoder); only encoders are converted"
        if config.add_cross_attention:
            yield "it has cross-attention (config.add_cross_attention); only self-attention is converted"
        relative = getattr(config, "position_embedding_type", None) or "absolute"
        if relative != "absolute":
            yield f"it adds relative positions to the scores (position_embedding_type={relative!r})"
        if config.chunk_size_feed_forward:
            yield "its feed-forward is chunked over the padded batch; set chunk_size_feed_forward to 0"
        yield from bypassed("encoder", module.encoder, getattr(source, f"{prefix}Encoder"))
        if not is_stock(module.embeddings, getattr(source, f"{prefix}Embeddings")):
            yield f"embeddings is a {type(module.embeddings).__name__}, not the stock {prefix}Embeddings"
        for i, layer in enumerate(module.encoder.layer):
            yield from bypassed(f"encoder.layer.{i}", layer, getattr(source, f"{prefix}Layer"))
            for path, suffix in _LAYER_PARTS.items():
                part = layer.get_submodule(path)
                yield from bypassed(f"encoder.layer.{i}.{path}", part, getattr(source, f"{prefix}{suffix}"))

    def linears(self) -> list[Linears]:
        parts = [layer.attention.self for layer in self.encoder.layer]
        return [(part.query, part.key, part.value) for part in parts]

    def attentions(self) -> list[tuple[str, nn.Module, float]]:
        parts = [layer.attention.self for layer in self.encoder.layer]
        return [(f"encoder.layer.{i}.attention.self", part, part.dropout.p) for i, part in enumerate(parts)]

    def _blocks(self) -> Iterator[Block]:
        grad = torch.is_grad_enabled()
        for layer, fused in zip(self.encoder.layer, self.fused_projections(), strict=True):
            attention = layer.attention.self
            first, second = layer.attention.output, layer.output
            linears = (attention.query, attention.key, attention.value)
            checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
            yield Block(
                project=partial(
                    project, linears=linears, fused=fused, num_heads=attention.num_attention_heads, grad=grad
                ),
                scale=attention.scaling,
                out=first.dense,
                norm1=first.LayerNorm,
                fc1=layer.intermediate.dense,
                activation=layer.intermediate.intermediate_act_fn,
                fc2=second.dense,
                norm2=second.LayerNorm,
                dropouts=(first.dropout, None, second.dropout),
                norm_first=False,
                checkpoint=layer._gradient_checkpointing_func if checkpointed else None,
            )

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

    def _embed(
        self, ids: Tensor | None, types: Tensor | None, positions: Tensor | None, embeds: Tensor | None
    ) -> Tensor:
        """Batches `[B, L]` through the stock embeddings, to rows `[B * L, C]`."""
        x = self.embeddings(input_ids=ids, token_type_ids=types, position_ids=positions, inputs_embeds=embeds)
        if hasattr(self, "embeddings_project"):
            x = self.embeddings_project(x)
        return x.flatten(0, 1)

    def _enter(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> tuple[Tensor, Padding]:
        """A padded batch to embedded rows `[T, C]`."""
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        if tokens is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        shape = (tokens.shape[0], tokens.shape[1])
        mask_like(type(self).__name__, attention_mask, shape)
        padding = padding_from_mask(attention_mask, shape, tokens.device)
        if padding.rows is None:
            return self._embed(input_ids, token_type_ids, position_ids, inputs_embeds), padding
        positions = self._positions(input_ids, padding) if position_ids is None else padding.pack(position_ids)
        ids, types, embeds = (
            None if part is None else padding.pack(part)[None] for part in (input_ids, token_type_ids, inputs_embeds)
        )
        return self._embed(ids, types, positions[None], embeds), padding

    def _enter_rows(
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
                part, found = packed_rows(who, [torch.as_tensor(item, device=device) for item in part])
                if layout is not None and found.lengths != layout.lengths:
                    rule = f"all inputs must have the lengths {layout.lengths}"
                    raise ValueError(message(who, rule, str(found.lengths), "Pass one entry per token."))
                layout = layout or found
            rows.append(part)
        ids, types, positions, embeds = rows
        if layout is None or (ids is None) == (embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        for part in rows:
            if part is not None and len(part) != layout.total:
                rule = f"rows must be as many as the layout has, {layout.total}"
                raise ValueError(message(who, rule, describe(part), "Pass the layout of these rows."))
        if positions is None:
            positions = self._positions_of_rows(ids, layout)
        batch = (None if part is None else part[None] for part in (ids, types, positions, embeds))
        return self._embed(*batch), padding_from_layout(layout)

    def encode_packed(
        self,
        input_ids: Ids = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Ids = None,
        position_ids: Ids = None,
        inputs_embeds: Ids = None,
        *,
        layout: RaggedLayout | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, RaggedLayout]:
        """Last hidden states of real tokens only, never padded again: see `edgeops.ragged.encode_packed`."""
        refuse_call(self, self.call_reasons(attention_mask, {}, kwargs))  # type: ignore[arg-type]
        parts = (input_ids, token_type_ids, position_ids, inputs_embeds)
        if layout is not None or any(part is not None and not isinstance(part, Tensor) for part in parts):
            x, padding = self._enter_rows(*parts, layout)
        else:
            x, padding = self._enter(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)  # type: ignore[arg-type]
        x = run_blocks(x, self._blocks(), Pattern(padding.offsets, padding.max_len))
        return x, padding.layout

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the stock model; hidden states of padding positions are zero."""
        given = {
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "past_key_values": past_key_values,
        }
        refuse_call(self, self.call_reasons(attention_mask, given, kwargs))  # type: ignore[arg-type]
        selected = self.selected_states(kwargs)
        collected: list[Tensor] | None = None if selected is False else []
        x, padding = self._enter(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        x = run_blocks(x, self._blocks(), Pattern(padding.offsets, padding.max_len), collected)
        last = padding.unpack(x)
        from transformers import modeling_outputs

        if hasattr(self, "pooler"):
            pooled = None if self.pooler is None else self.pooler(padding.first_rows(x)[:, None])
            output: Any = modeling_outputs.BaseModelOutputWithPoolingAndCrossAttentions(
                last_hidden_state=last, pooler_output=pooled
            )
        else:
            output = modeling_outputs.BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=last)
        if collected is not None:
            output["hidden_states"] = unpacked_states(collected, padding, selected, last)
        return finish(output, kwargs, self.config)
