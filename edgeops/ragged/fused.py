# SPDX-License-Identifier: Apache-2.0
"""Position-wise steps of an encoder layer, each in one pass over the rows: bias + GELU, bias + residual + LayerNorm.

CoRa (MLSys 2022), section 5: the fused kernels Proj2, FF1, FF2 and LayerNorm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops._common import message

_gelu_fwd = _native.kernel("_bias_gelu_fwd", "bias_gelu")
_gelu_bwd = _native.kernel("_bias_gelu_bwd", "bias_gelu")
_norm_fwd = _native.kernel("_add_layer_norm_fwd", "add_layer_norm")
_norm_bwd = _native.kernel("_add_layer_norm_bwd", "add_layer_norm")


def _gelu_save(ctx: Any, args: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(args[0], args[1])
    ctx.tanh = args[2]


def _gelu_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    x, bias = ctx.saved_tensors
    dx, dbias = _gelu_bwd(grad, x, bias, ctx.tanh)
    return dx, dbias, None


def _norm_save(ctx: Any, args: Sequence[Any], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_bias, residual, weight, _, _ = args
    _, mean, rstd = outputs
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, residual, mean, rstd, weight, *([] if x_bias is None else [x_bias]))


def _norm_backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None, None
    x, residual, mean, rstd, weight, *x_bias = ctx.saved_tensors
    dsum, dweight, dbias, dx_bias = _norm_bwd(grad, x, x_bias[0] if x_bias else None, residual, mean, rstd, weight)
    return dsum, dx_bias if x_bias else None, dsum, dweight, dbias, None


_bias_gelu = _native.differentiable("bias_gelu", _gelu_fwd, _gelu_save, _gelu_backward, inputs=(0, 1))
_add_layer_norm = _native.differentiable(
    "add_layer_norm", _norm_fwd, _norm_save, _norm_backward, inputs=(0, 1, 2, 3, 4)
)


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """GELU of `x + bias` in one pass: for the output of a linear layer computed without its bias.

    Args:
        x: `[T, C]`, floating point.
        bias: `[C]`, same dtype.
        approximate: "none" (exact, with erf) or "tanh", as in `torch.nn.functional.gelu`.

    Returns:
        `[T, C]`. Differentiable in x and bias.

    Raises:
        ValueError: shapes do not fit, or an unknown `approximate`.

    >>> bias_gelu(torch.zeros(1, 2), torch.tensor([0.0, 1.0]))
    tensor([[0.0000, 0.8413]])
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(message("bias_gelu", "approximate must be 'none' or 'tanh'", repr(approximate), "Pick one."))
    if _native.autocast_dtype(x) is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    result: Tensor = _bias_gelu(x, bias, approximate == "tanh")
    return result


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    x_bias: Tensor | None = None,
) -> Tensor:
    """LayerNorm over the last dimension of `x + x_bias + residual`, in one pass.

    Args:
        x: `[T, C]`, floating point; for example a projection computed without its bias.
        residual: `[T, C]`, same dtype.
        weight: `[C]`, scale of the normalised rows.
        bias: `[C]`, shift of the normalised rows.
        eps: added to the variance, > 0 to keep constant rows finite.
        x_bias: `[C]` or `None`, the bias of the projection that made x.

    Returns:
        `[T, C]`. Differentiable in all tensors.

    Raises:
        TypeError, ValueError: dtypes differ, or shapes do not fit.

    >>> add_layer_norm(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2), torch.ones(2), torch.zeros(2))
    tensor([[-1.0000,  1.0000]])
    """
    if _native.autocast_dtype(x) is not None:
        wide = torch.promote_types(x.dtype, residual.dtype)
        x, residual, weight, bias = x.to(wide), residual.to(wide), weight.to(wide), bias.to(wide)
        x_bias = None if x_bias is None else x_bias.to(wide)
    result: Tensor = _add_layer_norm(x, x_bias, residual, weight, bias, eps)[0]
    return result
