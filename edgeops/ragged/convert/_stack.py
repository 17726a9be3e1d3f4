# SPDX-License-Identifier: Apache-2.0
"""Transformer encoder layers over packed rows `[T, C]`: the loop that every converted model runs.

A family (BERT, DistilBERT, ViT, `nn.TransformerEncoder`) describes each of its layers as a `Block`, freshly on every
call, so that a module that was replaced after the conversion is seen. Position-wise parts are plain matrix products
on real tokens; biases go into the kernels behind them (bias + GELU, bias + residual + LayerNorm) where these parts are
the stock ones, and through the modules themselves otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeops import _native
from edgeops.ragged._feed_forward import feed_forward, feed_forward_bare
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
        attention_dropout: probability that a weight of the attention is dropped in this call; 0 outside training.
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
    attention_dropout: float = 0.0


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


def _is_plain_norm(norm: nn.Module, dtype: torch.dtype) -> bool:
    if type(norm) is not nn.LayerNorm:
        return False
    weight = norm._parameters["weight"]
    return (
        weight is not None
        and weight.dtype == dtype
        and norm._parameters["bias"] is not None
        and len(norm.normalized_shape) == 1
        and not (norm._forward_hooks or norm._forward_pre_hooks)
    )


def _is_off(dropout: nn.Module | None) -> bool:
    return dropout is None or not dropout.training or (type(dropout) is nn.Dropout and dropout.p == 0.0)


class Steps(NamedTuple):
    """The ragged kernels of a layer: `attend(q, k, v, pattern, scale, dropout)`, and the fused steps or `None`."""

    attend: Callable[[Tensor, Tensor, Tensor, Pattern, float, float], Tensor]
    bias_gelu: Callable[[Tensor, Tensor, str], Tensor] | None
    add_norm: Callable[[Tensor, Tensor, Tensor, Tensor, float, Tensor | None], Tensor] | None
    feed_forward: Callable[[Tensor, Tensor, Tensor, Tensor, str], Tensor] | None = None


def _attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scale: float, dropout: float) -> Tensor:
    offsets, longest = pattern.offsets, pattern.max_len
    options: dict[str, Any] = {
        "scale": scale,
        "causal": pattern.causal,
        "bias": pattern.bias,
        "dropout_p": dropout or 0,
    }
    y: Tensor = ragged_attention(q, k, v, offsets, offsets, longest, longest, **options)
    return y


def _attend_bare(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scale: float, dropout: float) -> Tensor:
    if dropout > 0:
        return _attend(q, k, v, pattern, scale, dropout)
    offsets = pattern.offsets
    run = torch.ops.edgeops._ragged_attention_fwd.default
    y: Tensor = run(q, k, v, offsets, offsets, pattern.bias, scale, pattern.causal, -1, -1)[0]
    return y


def _bias_gelu_bare(x: Tensor, bias: Tensor, approximate: str) -> Tensor:
    y: Tensor = torch.ops.edgeops._bias_gelu_fwd.default(x, bias, approximate == "tanh")
    return y


def _add_norm_bare(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, x_bias: Tensor | None
) -> Tensor:
    y: Tensor = torch.ops.edgeops._add_layer_norm_fwd.default(x, x_bias, residual, weight, bias, eps)[0]
    return y


def _steps(x: Tensor) -> Steps:
    """What to run x through: nothing is checked twice, so inference on the CPU goes straight to the kernels."""
    # a compiler fuses the epilogues itself; autocast would hand the fused kernels two dtypes
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return Steps(_attend, None, None)
    if torch.is_grad_enabled() or x.device.type != "cpu" or not _native.available():
        # what saves memory for backward is of no use without one
        saving = feed_forward if torch.is_grad_enabled() else None
        return Steps(_attend, bias_gelu, add_layer_norm, saving)
    return Steps(_attend_bare, _bias_gelu_bare, _add_norm_bare, feed_forward_bare)


def _linear_activation(x: Tensor, fc: nn.Module, activation: Activation, steps: Steps) -> Tensor:
    if steps.bias_gelu is not None and is_plain_linear(fc):
        kind = gelu_kind(activation)
        bias = fc._parameters["bias"]
        if kind is not None and bias is not None:
            return steps.bias_gelu(F.linear(x, fc._parameters["weight"]), bias, kind)  # type: ignore[arg-type]
    return activation(fc(x))


def _product(x: Tensor, linear: nn.Module, apart: bool) -> tuple[Tensor, Tensor | None]:
    """`linear(x)` and `None`; or, wanted apart and possible, the product and the bias that it lacks."""
    if apart and is_plain_linear(linear):
        return F.linear(x, linear._parameters["weight"]), linear._parameters["bias"]  # type: ignore[arg-type]
    return linear(x), None


def _feed_forward(x: Tensor, block: Block, steps: Steps, apart: bool) -> tuple[Tensor, Tensor | None]:
    """Both linear layers and what stands between them; the second bias as in `_product`."""
    fc1, fc2, dropout = block.fc1, block.fc2, block.dropouts[1]
    kind = gelu_kind(block.activation)
    if steps.feed_forward is not None and kind is not None and _is_off(dropout):
        first = fc1._parameters.get("bias")
        if first is not None and is_plain_linear(fc1) and is_plain_linear(fc2):
            y = steps.feed_forward(x, fc1._parameters["weight"], first, fc2._parameters["weight"], kind)  # type: ignore[arg-type]
            second = fc2._parameters["bias"]
            return (y, second) if apart or second is None else (y + second, None)
    y = _linear_activation(x, fc1, block.activation, steps)
    return _product(y if dropout is None else dropout(y), fc2, apart)


def _add(y: Tensor, dropout: nn.Module | None, residual: Tensor) -> Tensor:
    return residual + (y if dropout is None else dropout(y))


def _add_norm(
    y: Tensor, bias: Tensor | None, dropout: nn.Module | None, residual: Tensor, norm: nn.Module, steps: Steps
) -> Tensor:
    if bias is None and dropout is not None:
        y = dropout(y)
    if steps.add_norm is None or not _is_plain_norm(norm, residual.dtype):
        return norm(residual + y)
    weight, shift = norm._parameters["weight"], norm._parameters["bias"]
    return steps.add_norm(y, residual, weight, shift, norm.eps, bias)  # type: ignore[arg-type]


def run_block(x: Tensor, block: Block, pattern: Pattern, steps: Steps) -> Tensor:
    """One layer: x `[T, C]` to `[T, C]`."""
    after_out, _, after_fc2 = block.dropouts
    q, k, v = block.project(block.norm1(x) if block.norm_first else x)
    y = steps.attend(q, k, v, pattern, block.scale, block.attention_dropout).flatten(1)
    if block.norm_first:
        x = _add(block.out(y), after_out, x)
        y, _ = _feed_forward(block.norm2(x), block, steps, False)
        return _add(y, after_fc2, x)

    def joins(norm: nn.Module, dropout: nn.Module | None) -> bool:
        # a bias may wait for the kernel behind it when nothing happens in between
        return steps.add_norm is not None and _is_off(dropout) and _is_plain_norm(norm, x.dtype)

    y, bias = _product(y, block.out, joins(block.norm1, after_out))
    x = _add_norm(y, bias, after_out, x, block.norm1, steps)
    y, bias = _feed_forward(x, block, steps, joins(block.norm2, after_fc2))
    return _add_norm(y, bias, after_fc2, x, block.norm2, steps)


def run_blocks(x: Tensor, blocks: Iterable[Block], pattern: Pattern, collect: list[Tensor] | None = None) -> Tensor:
    """All layers in turn.

    Args:
        x: packed rows `[T, C]`.
        blocks: the layers.
        pattern: shared by all of them.
        collect: gets x and the output of every layer appended, when given.
    """
    steps = _steps(x)
    if collect is not None:
        collect.append(x)
    for block in blocks:
        if block.checkpoint is None:
            x = run_block(x, block, pattern, steps)
        else:
            x = block.checkpoint(run_block, x, block, pattern, steps)
        if collect is not None:
            collect.append(x)
    return x
