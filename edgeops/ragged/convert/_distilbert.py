# SPDX-License-Identifier: Apache-2.0
"""DistilBERT: BERT's layer under other names, without token types."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgeops.ragged.convert._hf import finish, loaded, unknown_signature
from edgeops.ragged.convert._projection import Linears, project
from edgeops.ragged.convert._stack import Block
from edgeops.ragged.convert._swap import bypassed, is_stock
from edgeops.ragged.convert._tokens import Ids, PackedTokens
from edgeops.ragged.layout import RaggedLayout

_PATH = "distilbert.modeling_distilbert"
_ARGUMENTS = ("input_ids", "attention_mask", "inputs_embeds", "position_ids")


class DistilBertAdapter(PackedTokens):
    """`DistilBertModel` on packed rows."""

    transformer: Any

    @classmethod
    def recognises(cls, module: nn.Module) -> bool:
        source = loaded(_PATH)
        return source is not None and isinstance(module, source.DistilBertModel)

    @classmethod
    def why_not(cls, module: Any) -> Iterator[str]:
        source: Any = loaded(_PATH)
        if not is_stock(module, source.DistilBertModel):
            yield "its forward is not that of DistilBertModel"
            return
        yield from unknown_signature(module, _ARGUMENTS)
        if not is_stock(module.embeddings, source.Embeddings):
            yield f"embeddings is a {type(module.embeddings).__name__}, not the stock Embeddings"
        yield from bypassed("transformer", module.transformer, source.Transformer)
        for i, layer in enumerate(module.transformer.layer):
            name = f"transformer.layer.{i}"
            yield from bypassed(name, layer, source.TransformerBlock)
            yield from bypassed(f"{name}.attention", layer.attention, source.DistilBertSelfAttention)
            yield from bypassed(f"{name}.ffn", layer.ffn, source.FFN)
            if layer.ffn.chunk_size_feed_forward:
                yield f"{name}.ffn is chunked over the padded batch; set chunk_size_feed_forward to 0"

    def linears(self) -> list[Linears]:
        parts = [layer.attention for layer in self.transformer.layer]
        return [(part.q_lin, part.k_lin, part.v_lin) for part in parts]

    def attentions(self) -> list[tuple[str, nn.Module, float]]:
        parts = [layer.attention for layer in self.transformer.layer]
        return [(f"transformer.layer.{i}.attention", part, part.dropout.p) for i, part in enumerate(parts)]

    def blocks(self) -> list[Block]:
        blocks = []
        grad = torch.is_grad_enabled()
        per_layer = zip(self.transformer.layer, self.fused_projections(), self.attention_dropouts(), strict=True)
        for layer, fused, dropout in per_layer:
            attention, ffn = layer.attention, layer.ffn
            linears = (attention.q_lin, attention.k_lin, attention.v_lin)
            checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
            blocks.append(
                Block(
                    project=partial(project, linears=linears, fused=fused, num_heads=attention.n_heads, grad=grad),
                    scale=attention.scaling,
                    out=attention.out_lin,
                    norm1=layer.sa_layer_norm,
                    fc1=ffn.lin1,
                    activation=ffn.activation,
                    fc2=ffn.lin2,
                    norm2=layer.output_layer_norm,
                    dropouts=(None, None, ffn.dropout),
                    norm_first=False,
                    checkpoint=layer._gradient_checkpointing_func if checkpointed else None,
                    attention_dropout=dropout,
                )
            )
        return blocks

    def _embed(
        self, ids: Tensor | None, types: Tensor | None, positions: Tensor | None, embeds: Tensor | None
    ) -> Tensor:
        return self.embeddings(ids, embeds, positions).flatten(0, 1)

    def encode_packed(
        self,
        input_ids: Ids = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Ids = None,
        position_ids: Ids = None,
        *,
        layout: RaggedLayout | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, RaggedLayout]:
        """Last hidden states of real tokens only, never padded again: see `edgeops.ragged.encode_packed`."""
        return self.run_packed(input_ids, attention_mask, None, position_ids, inputs_embeds, layout, kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the stock model; hidden states of padding positions are zero."""
        _, _, last, states = self.run_padded(input_ids, attention_mask, None, position_ids, inputs_embeds, {}, kwargs)
        from transformers.modeling_outputs import BaseModelOutput

        output = BaseModelOutput(last_hidden_state=last)
        if states is not None:
            output["hidden_states"] = states
        return finish(output, kwargs, self.config)
