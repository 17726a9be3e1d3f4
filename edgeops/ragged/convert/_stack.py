# SPDX-License-Identifier: Apache-2.0
"""Transformer encoder layers over packed rows `[T, C]`: the loop that every converted model runs.

A family (BERT, DistilBERT, ViT, `nn.TransformerEncoder`) describes each of its layers as a `Block`, freshly on every
call, so that a module that was replaced after the conversion is seen. Position-wise parts are plain matrix products
on real tokens; biases go into the kernels behind them (bias + GELU, bias + residual + LayerNorm) where these parts are
the stock ones, and through the modules themselves otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeops.ragged.attention import ragged_attention
from edgeops.ragged.convert._projection import is_plain_linear
from edgeops.ragged.fused import add_layer_norm, bias_gelu

Activation = Callable[[Tensor], Tensor]


class Block(NamedTuple):
    """One encoder layer.

    Attributes:
        project: x `[T, C]` to queries, keys, values `[T, H, D]`.
        scale: factor on the scores.
        out, norm1, fc1, activation, fc2, norm2: the position-wise modules, in order of use.
        dropouts: after `out`, after `activation`, after `fc2`; `None` where the layer has none.
        norm_first: normalise before attention and feed-forward instead of after.
        checkpoint: gradient checkpointing function, or `None`.
    """

    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    scale: float
    out: nn.Module
    norm1: nn.Module
    fc1: nn.Module
    activation: Activation
    fc2: nn.Module
    norm2: nn.Module
    dropouts: tuple[nn.Module | None, nn.Module | None, nn.Module | None]
    norm_first: bool
    checkpoint: Callable[..., Tensor] | None = None


class Pattern(NamedTuple):
    """Which token may look at which.

    Attributes:
        offsets: `[N + 1]`.
        max_len: longest sequence.
        causal: no look ahead.
        bias: additive, broadcastable `[1, 1, L, L]`, or `None`.
    """

    offsets: Tensor
    max_len: int
    causal: bool = False
    bias: Tensor | None = None


def gelu_kind(activation: object) -> str | None:
    """The `approximate` argument of the GELU that `activation` computes, or `None` when it is something else.

    >>> gelu_kind(nn.GELU(approximate="tanh")), gelu_kind(F.relu)
    ('tanh', None)
    """
    if activation is F.gelu:
        return "none"
    if isinstance(activation, nn.Module) and (activation._forward_hooks or activation._forward_pre_hooks):
        return None
    if type(activation) is nn.GELU:
        return activation.approximate
    kind = type(activation)
    if kind.__module__ != "transformers.activations":
        return None
    if kind.__name__ == "GELUActivation" and getattr(activation, "act", None) is F.gelu:
        return "none"
    return "tanh" if kind.__name__ in ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh") else None


def _is_plain_norm(norm: nn.Module) -> bool:
    return (
        type(norm) is nn.LayerNorm
        and norm.weight is not None
        and norm.bias is not None
        and len(norm.normalized_shape) == 1
        and not (norm._forward_hooks or norm._forward_pre_hooks)
    )


def _is_off(dropout: nn.Module | None) -> bool:
    return dropout is None or not dropout.training or (type(dropout) is nn.Dropout and dropout.p == 0.0)


def _linear_activation(x: Tensor, fc: nn.Module, activation: Activation, fuse: bool) -> Tensor:
    kind = gelu_kind(activation) if fuse else None
    if kind is None or not is_plain_linear(fc) or fc.bias is None:
        return activation(fc(x))
    return bias_gelu(F.linear(x, fc.weight), fc.bias, kind)  # type: ignore[arg-type]


def _linear_add_norm(
    x: Tensor, linear: nn.Module, dropout: nn.Module | None, residual: Tensor, norm: nn.Module, fuse: bool
) -> Tensor:
    if not (fuse and _is_plain_norm(norm)):
        y = linear(x)
        return norm(residual + (y if dropout is None else dropout(y)))
    bias = None
    if _is_off(dropout) and is_plain_linear(linear):
        y, bias = F.linear(x, linear.weight), linear.bias  # type: ignore[arg-type]
    else:
        y = linear(x)
        y = y if dropout is None else dropout(y)
    return add_layer_norm(y, residual, norm.weight, norm.bias, norm.eps, x_bias=bias)  # type: ignore[arg-type]


def _linear_add(x: Tensor, linear: nn.Module, dropout: nn.Module | None, residual: Tensor) -> Tensor:
    y = linear(x)
    return residual + (y if dropout is None else dropout(y))


def _attend(x: Tensor, block: Block, pattern: Pattern) -> Tensor:
    q, k, v = block.project(x)
    offsets, longest = pattern.offsets, pattern.max_len
    # a graph with gradients may not hand one tensor twice to an autograd function
    keys = offsets.view(-1) if torch.compiler.is_compiling() else offsets
    y = ragged_attention(
        q, k, v, offsets, keys, longest, longest, scale=block.scale, causal=pattern.causal, bias=pattern.bias
    )
    return y.flatten(1)


def run_block(x: Tensor, block: Block, pattern: Pattern, fuse: bool) -> Tensor:
    """One layer: x `[T, C]` to `[T, C]`."""
    after_out, after_activation, after_fc2 = block.dropouts
    if block.norm_first:
        x = _linear_add(_attend(block.norm1(x), block, pattern), block.out, after_out, x)
        y = _linear_activation(block.norm2(x), block.fc1, block.activation, fuse)
    else:
        x = _linear_add_norm(_attend(x, block, pattern), block.out, after_out, x, block.norm1, fuse)
        y = _linear_activation(x, block.fc1, block.activation, fuse)
    if after_activation is not None:
        y = after_activation(y)
    if block.norm_first:
        return _linear_add(y, block.fc2, after_fc2, x)
    return _linear_add_norm(y, block.fc2, after_fc2, x, block.norm2, fuse)


def run_blocks(x: Tensor, blocks: Iterable[Block], pattern: Pattern, collect: list[Tensor] | None = None) -> Tensor:
    """All layers in turn.

    Args:
        x: packed rows `[T, C]`.
        blocks: the layers.
        pattern: shared by all of them.
        collect: gets x and the output of every layer appended, when given.
    """
    # a compiler fuses the epilogues itself; autocast would hand the fused kernels two dtypes
    fuse = not torch.compiler.is_compiling() and not torch.is_autocast_enabled(x.device.type)
    if collect is not None:
        collect.append(x)
    for block in blocks:
        if block.checkpoint is None:
            x = run_block(x, block, pattern, fuse)
        else:
            x = block.checkpoint(run_block, x, block, pattern, fuse)
        if collect is not None:
            collect.append(x)
    return x
