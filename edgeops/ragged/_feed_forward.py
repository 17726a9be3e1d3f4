# SPDX-License-Identifier: Apache-2.0
"""The feed-forward part of an encoder layer as one step that keeps its input and what stands before the GELU.

A plain composition also keeps what stands behind the GELU, 2048 of about 8200 numbers a token in the paper's layer, and
in backward holds two gradients of that width. Here the GELU is computed again, and backward goes through both linear
layers a piece of rows at a time, so that nothing else of the inner width exists as a whole. Ragged spec, section 9.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeops import _native

_gelu_fwd = _native.kernel("_bias_gelu_fwd", "bias_gelu")
_gelu_bwd = _native.kernel("_bias_gelu_bwd", "bias_gelu")

# rows in a piece: 4 MB of 2048 float32, which the last-level cache keeps, and enough for products at full speed
_ROWS = 512


def _pieces(rows: int) -> Iterator[slice]:
    """About equal pieces, so that none is too small for a fast product."""
    count = max(1, -(-rows // _ROWS))
    return (slice(rows * i // count, rows * (i + 1) // count) for i in range(count))


def _whole(x: Tensor) -> bool:
    """Whether all rows go through at once.

    Half precision does, since sums over pieces would be rounded to it once a piece; GPUs do, which want large products;
    and functorch, under which there are no writes into parts of a result.
    """
    pieces = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return not pieces or x.shape[0] <= _ROWS or _native._functorch_active()


def _forward(x: Tensor, first: Tensor, bias: Tensor, second: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    before = F.linear(x, first)
    rows = x.shape[0]
    if _whole(x):
        return F.linear(_gelu_fwd(before, bias, tanh), second), before
    out = x.new_empty(rows, second.shape[0])
    for part in _pieces(rows):
        torch.mm(_gelu_fwd(before[part], bias, tanh), second.t(), out=out[part])
    return out, before


def _save(ctx: Any, args: Sequence[Any], outputs: tuple[Tensor, Tensor]) -> None:
    x, first, bias, second, tanh = args
    ctx.mark_non_differentiable(outputs[1])
    ctx.save_for_backward(x, first, bias, second, outputs[1])
    ctx.tanh = tanh


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None
    x, first, bias, second, before = ctx.saved_tensors
    rows = x.shape[0]
    if _whole(x):
        dsecond = grad.t() @ _gelu_fwd(before, bias, ctx.tanh)
        inner, dbias = _gelu_bwd(grad @ second, before, bias, ctx.tanh)
        return inner @ first, inner.t() @ x, dbias, dsecond, None
    dx = x.new_empty(x.shape)
    dfirst, dsecond = first.new_zeros(first.shape), second.new_zeros(second.shape)
    dbias = torch.zeros_like(bias)
    for part in _pieces(rows):
        up = grad[part]
        dsecond.addmm_(up.t(), _gelu_fwd(before[part], bias, ctx.tanh))
        inner, some = _gelu_bwd(up @ second, before[part], bias, ctx.tanh)
        dfirst.addmm_(inner.t(), x[part])
        torch.mm(inner, first, out=dx[part])
        dbias += some
    return dx, dfirst, dbias, dsecond, None


_step = _native.differentiable("bias_gelu", _forward, _save, _backward, inputs=(0, 1, 2, 3))


def feed_forward(x: Tensor, first: Tensor, bias: Tensor, second: Tensor, approximate: str) -> Tensor:
    """`linear(gelu(linear(x, first, bias)), second)`: x `[T, M]`, first `[FF, M]`, bias `[FF]`, second `[N, FF]`.

    All of one dtype; `approximate` is "none" or "tanh", as in `bias_gelu`. Differentiable in all four tensors.

    >>> feed_forward(torch.zeros(1, 2), torch.ones(4, 2), torch.zeros(4), torch.ones(3, 4), "none")
    tensor([[0., 0., 0.]])
    """
    result: Tensor = _step(x, first, bias, second, approximate == "tanh")[0]
    return result


def feed_forward_bare(x: Tensor, first: Tensor, bias: Tensor, second: Tensor, approximate: str) -> Tensor:
    """`feed_forward` for inference on the CPU: nothing of the inner width ever exists as a whole.

    Faster too on many rows: two results of the inner width, 20 MB for 1280 rows of 2048, are more than the caches hold
    and more than the allocator keeps from call to call.

    >>> feed_forward_bare(torch.zeros(1, 2), torch.ones(4, 2), torch.zeros(4), torch.ones(3, 4), "none")
    tensor([[0., 0., 0.]])
    """
    tanh = approximate == "tanh"
    gelu = torch.ops.edgeops._bias_gelu_fwd.default
    if _whole(x):
        return F.linear(gelu(F.linear(x, first), bias, tanh), second)
    out = x.new_empty(x.shape[0], second.shape[0])
    for part in _pieces(x.shape[0]):
        torch.mm(gelu(F.linear(x[part], first), bias, tanh), second.t(), out=out[part])
    return out
