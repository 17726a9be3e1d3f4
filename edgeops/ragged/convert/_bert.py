# SPDX-License-Identifier: Apache-2.0
"""BERT and the models that share its layout (RoBERTa, XLM-R, CamemBERT, ELECTRA, Data2Vec-text; MiniLM, BGE, E5).

Tokens are packed before the embeddings, which then look up real tokens only, at the positions they have in the padded
batch (or, in the RoBERTa family, at those the model derives from the ids).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from edgeops.ragged.convert._hf import finish, loaded, unknown_signature
from edgeops.ragged.convert._projection import Linears, project
from edgeops.ragged.convert._stack import Block
from edgeops.ragged.convert._swap import bypassed, is_stock
from edgeops.ragged.convert._tokens import Ids, PackedTokens
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


def _family(module: nn.Module) -> tuple[ModuleType, str] | None:
    for path, prefix in _FAMILIES.items():
        source = loaded(path)
        if source is not None and isinstance(module, getattr(source, f"{prefix}Model")):
            return source, prefix
    return None


class BertAdapter(PackedTokens):
    """`BertModel` and relatives on packed rows."""

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

    def blocks(self) -> list[Block]:
        blocks = []
        grad = torch.is_grad_enabled()
        per_layer = zip(self.encoder.layer, self.fused_projections(), self.attention_dropouts(), strict=True)
        for layer, fused, dropout in per_layer:
            attention = layer.attention.self
            first, second = layer.attention.output, layer.output
            linears = (attention.query, attention.key, attention.value)
            checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
            blocks.append(
                Block(
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
                    attention_dropout=dropout,
                )
            )
        return blocks

    def _embed(
        self, ids: Tensor | None, types: Tensor | None, positions: Tensor | None, embeds: Tensor | None
    ) -> Tensor:
        """Batches `[B, L]` through the stock embeddings, to rows `[B * L, C]`."""
        x = self.embeddings(input_ids=ids, token_type_ids=types, position_ids=positions, inputs_embeds=embeds)
        if hasattr(self, "embeddings_project"):
            x = self.embeddings_project(x)
        return x.flatten(0, 1)

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
        return self.run_packed(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, layout, kwargs)

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
        x, padding, last, states = self.run_padded(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, given, kwargs
        )
        from transformers import modeling_outputs

        if hasattr(self, "pooler"):
            pooled = None if self.pooler is None else self.pooler(padding.first_rows(x)[:, None])
            output: Any = modeling_outputs.BaseModelOutputWithPoolingAndCrossAttentions(
                last_hidden_state=last, pooler_output=pooled
            )
        else:
            output = modeling_outputs.BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=last)
        if states is not None:
            output["hidden_states"] = states
        return finish(output, kwargs, self.config)
