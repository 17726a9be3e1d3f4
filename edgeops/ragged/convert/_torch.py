# SPDX-License-Identifier: Apache-2.0
"""`nn.TransformerEncoder` and free-standing `nn.TransformerEncoderLayer` on packed rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from edgeops import _native
from edgeops._common import describe, message
from edgeops.ragged.bridges import from_nested
from edgeops.ragged.convert._padding import Padding, packed_rows, padding_from_layout, padding_from_mask
from edgeops.ragged.convert._stack import Block, Pattern, run_blocks
from edgeops.ragged.convert._swap import Converted, bypassed, is_stock, refuse_call
from edgeops.ragged.layout import RaggedLayout

Tokens = Tensor | Sequence[Tensor]


def layer_reasons(name: str, layer: Any) -> Iterator[str]:
    """Reasons against the attention of an `nn.TransformerEncoderLayer` whose forward is known."""
    prefix = f"{name}." if name else ""
    attention = layer.self_attn
    yield from bypassed(f"{prefix}self_attn", attention, nn.MultiheadAttention)
    if not isinstance(attention, nn.MultiheadAttention):
        return
    if not attention._qkv_same_embed_dim:
        yield f"{prefix}self_attn has keys or values of another width (kdim, vdim)"
    if attention.bias_k is not None or attention.add_zero_attn:
        yield f"{prefix}self_attn appends a key of its own to every sequence (add_bias_kv, add_zero_attn)"
    if type(attention.out_proj) not in (nn.Linear, NonDynamicallyQuantizableLinear):
        yield f"{prefix}self_attn.out_proj is a {type(attention.out_proj).__name__}, not a linear layer"


def _project(x: Tensor, attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    joint = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = joint.view(x.shape[0], 3, attention.num_heads, attention.head_dim).unbind(1)
    return q, k, v


def _block(layer: Any) -> Block:
    attention = layer.self_attn
    return Block(
        project=partial(_project, attention=attention),
        scale=1.0 / math.sqrt(attention.head_dim),
        out=attention.out_proj,
        norm1=layer.norm1,
        fc1=layer.linear1,
        activation=layer.activation,
        fc2=layer.linear2,
        norm2=layer.norm2,
        dropouts=(layer.dropout1, layer.dropout, layer.dropout2),
        norm_first=layer.norm_first,
        attention_dropout=attention.dropout if attention.training else 0.0,
    )


@_native.eager_only
def _read_mask(mask: Tensor, length: int, dtype: torch.dtype) -> tuple[bool, Tensor | None]:
    """An attention mask as (causal, additive bias): the causal mask is recognised by its values."""
    if mask.ndim != 2:
        return False, mask
    if tuple(mask.shape) != (length, length):
        rule = f"mask must have shape ({length}, {length}), one row and column per position"
        raise ValueError(message("converted encoder", rule, describe(mask), "Cut it to the length of the batch."))
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    bias = bias.masked_fill_(mask, -torch.inf) if mask.dtype == torch.bool else bias.add_(mask)
    causal = torch.full_like(bias, -torch.inf).triu_(1)
    return (True, None) if torch.equal(bias, causal) else (False, bias)


@_native.eager_only
def _token_mask(padding_mask: Tensor) -> tuple[Tensor | None, str | None]:
    """`src_key_padding_mask` as a mask with True = token, or the reason why it is not one."""
    if padding_mask.dtype == torch.bool:
        return ~padding_mask, None
    tokens = padding_mask == 0
    if not bool((tokens | (padding_mask == -torch.inf)).all()):
        return None, "src_key_padding_mask holds numbers other than 0 and -inf: these weigh keys, which packing cannot"
    return tokens, None


class _TorchAdapter(Converted):
    """What the encoder and its layer have in common."""

    embedded_argument = "src"
    training: bool

    def layer_list(self) -> Sequence[Any]:
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        return x

    def _run(
        self, x: Tensor, padding: Padding, mask: Tensor | None, is_causal: bool | None, reasons: list[str]
    ) -> Tensor:
        """Packed rows through all layers."""
        if mask is None or is_causal:
            causal, bias = bool(is_causal), None
        else:
            causal, bias = _read_mask(mask, padding.shape[1], x.dtype)
        if bias is not None and bias.ndim != 2:
            shape = tuple(bias.shape)
            reasons.append(f"the attention mask has shape {shape}: only one [L, L] mask for all sequences is known")
        elif bias is not None and not padding.is_left_aligned:
            reasons.append("an attention mask that is not causal needs sequences without holes or padding in front")
        refuse_call(self, reasons)  # type: ignore[arg-type]
        bias = None if bias is None else bias[None, None]
        pattern = Pattern(padding.offsets, padding.max_len, causal, bias)
        return self.finish(run_blocks(x, [_block(layer) for layer in self.layer_list()], pattern))

    def encode_packed(
        self,
        src: Tokens,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
        *,
        layout: RaggedLayout | None = None,
    ) -> tuple[Tensor, RaggedLayout]:
        """Encoded tokens `[T, E]` without padding: see `edgeops.ragged.encode_packed`."""
        reasons: list[str] = []
        who = f"{type(self).__name__}.encode_packed"
        if not isinstance(src, Tensor):
            src, layout = packed_rows(who, src)
        if layout is None:
            if src.ndim != 3:
                rule = "src must be padded [B, L, E], a list of [l_i, E], or rows [T, E] with their layout"
                raise ValueError(message(who, rule, describe(src), "Pass layout=..."))
            src = src if self.layer_list()[0].self_attn.batch_first else src.transpose(0, 1)
            tokens, reason = (None, None) if src_key_padding_mask is None else _token_mask(src_key_padding_mask)
            padding = padding_from_mask(tokens, (src.shape[0], src.shape[1]), src.device)
            src = padding.pack(src)
            reasons += [reason] if reason else []
        else:
            if src.ndim != 2 or len(src) != layout.total:
                rule = f"rows must have shape [{layout.total}, E], as many as the layout has"
                raise ValueError(message(who, rule, describe(src), "Pass the layout of these rows."))
            padding = padding_from_layout(layout)
        return self._run(src, padding, mask, is_causal, reasons), padding.layout

    def run_padded(
        self, src: Tensor, mask: Tensor | None, padding_mask: Tensor | None, is_causal: bool | None
    ) -> Tensor:
        """A call of the stock signature: padded, unbatched or jagged nested input."""
        if src.is_nested:
            return self._run_nested(src, mask, padding_mask, is_causal)
        reasons: list[str] = []
        tokens, reason = (None, None) if padding_mask is None else _token_mask(padding_mask)
        reasons += [reason] if reason else []
        sequence_first = src.ndim == 3 and not self.layer_list()[0].self_attn.batch_first
        batch = src.transpose(0, 1) if sequence_first else src if src.ndim == 3 else src[None]
        shape = (batch.shape[0], batch.shape[1])
        if tokens is not None:
            tokens = tokens if tokens.ndim == 2 else tokens[None]
            if tuple(tokens.shape) != shape:
                rule = f"src_key_padding_mask must have shape {shape}"
                raise ValueError(message("converted encoder", rule, describe(padding_mask), "Pass [batch, length]."))
        padding = padding_from_mask(tokens, shape, src.device)
        x = padding.unpack(self._run(padding.pack(batch), padding, mask, is_causal, reasons))
        if sequence_first:
            return x.transpose(0, 1).contiguous()
        return x if src.ndim == 3 else x[0]

    def _run_nested(
        self, src: Tensor, mask: Tensor | None, padding_mask: Tensor | None, is_causal: bool | None
    ) -> Tensor:
        reasons: list[str] = []
        if src.layout != torch.jagged:
            reasons.append("src is a nested tensor of strided layout; build it with layout=torch.jagged")
        if padding_mask is not None:
            reasons.append("src_key_padding_mask is given with a nested src, which has no padding")
        refuse_call(self, reasons)  # type: ignore[arg-type]
        values, layout = from_nested(src)
        out = self._run(values, padding_from_layout(layout), mask, is_causal, [])
        return torch.nested.nested_tensor_from_jagged(out, offsets=src.offsets())  # type: ignore[attr-defined]


class EncoderAdapter(_TorchAdapter):
    """`nn.TransformerEncoder`."""

    layers: Any
    norm: nn.Module | None

    @classmethod
    def recognises(cls, module: nn.Module) -> bool:
        return isinstance(module, nn.TransformerEncoder)

    @classmethod
    def why_not(cls, module: Any) -> Iterator[str]:
        if not is_stock(module, nn.TransformerEncoder):
            yield "its forward is not that of nn.TransformerEncoder"
        for i, layer in enumerate(module.layers):
            yield from bypassed(f"layers.{i}", layer, nn.TransformerEncoderLayer)
            if isinstance(layer, nn.TransformerEncoderLayer):
                yield from layer_reasons(f"layers.{i}", layer)

    def layer_list(self) -> Sequence[Any]:
        return self.layers

    def finish(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """As the stock module; padding positions of the output are zero. A jagged nested src gives a nested result."""
        return self.run_padded(src, mask, src_key_padding_mask, is_causal)


class EncoderLayerAdapter(_TorchAdapter):
    """`nn.TransformerEncoderLayer` outside an `nn.TransformerEncoder`."""

    @classmethod
    def recognises(cls, module: nn.Module) -> bool:
        return isinstance(module, nn.TransformerEncoderLayer)

    @classmethod
    def why_not(cls, module: Any) -> Iterator[str]:
        if not is_stock(module, nn.TransformerEncoderLayer):
            yield "its forward is not that of nn.TransformerEncoderLayer"
            return
        yield from layer_reasons("", module)

    def layer_list(self) -> Sequence[Any]:
        return (self,)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """As the stock module; padding positions of the output are zero."""
        return self.run_padded(src, src_mask, src_key_padding_mask, is_causal)
