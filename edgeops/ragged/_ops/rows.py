# SPDX-License-Identifier: Apache-2.0
"""Rules of pack, unpack, pooling and the fused row ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeops.ragged import _reference as twin
from edgeops.ragged._ops._shapes import wide
from edgeops.ragged.fused import add_layer_norm, bias_gelu
from edgeops.ragged.pack import ragged_pack, ragged_unpack
from edgeops.ragged.pool import ragged_pool

PUBLIC: dict[str, Callable[..., Any]] = {
    "ragged_pack": ragged_pack,
    "ragged_unpack": ragged_unpack,
    "ragged_pool": ragged_pool,
    "bias_gelu": bias_gelu,
    "add_layer_norm": add_layer_norm,
}
TWINS: dict[str, Callable[..., Any]] = {
    "_ragged_pack": twin.ragged_pack_reference,
    "_ragged_unpack": twin.ragged_unpack_reference,
    "_ragged_pool_fwd": twin.ragged_pool_fwd_reference,
    "_ragged_pool_bwd": twin.ragged_pool_bwd_reference,
    "_bias_gelu_fwd": twin.bias_gelu_fwd_reference,
    "_bias_gelu_bwd": twin.bias_gelu_bwd_reference,
    "_add_layer_norm_fwd": twin.add_layer_norm_fwd_reference,
    "_add_layer_norm_bwd": twin.add_layer_norm_bwd_reference,
}


def _pool_fwd_fake(x: Tensor, offsets: Tensor, mode: int) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, x.shape[1])


def _add_layer_norm_fwd_fake(
    x: Tensor, x_bias: Tensor | None, residual: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    torch._check(x.shape == residual.shape, lambda: "add_layer_norm: x and residual must have one shape")
    rows = x.new_empty(x.shape[0], dtype=wide(x))
    return x.new_empty(x.shape), rows, rows.new_empty(x.shape[0])


def _add_layer_norm_bwd_fake(
    grad_out: Tensor, x: Tensor, x_bias: Tensor | None, residual: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx_bias = x.new_empty(0) if x_bias is None else x_bias.new_empty(x_bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape), dx_bias


FAKES: dict[str, Callable[..., Any]] = {
    "_ragged_pack": lambda padded, offsets, total: padded.new_empty(total, *padded.shape[2:]),
    "_ragged_unpack": lambda values, offsets, length, padding_value: values.new_empty(
        offsets.shape[0] - 1, length, *values.shape[1:]
    ),
    "_ragged_pool_fwd": _pool_fwd_fake,
    "_ragged_pool_bwd": lambda grad_out, x, out, offsets, mode: x.new_empty(x.shape),
    "_bias_gelu_fwd": lambda x, bias, tanh: x.new_empty(x.shape),
    "_bias_gelu_bwd": lambda grad_out, x, bias, tanh: (x.new_empty(x.shape), bias.new_empty(bias.shape)),
    "_add_layer_norm_fwd": _add_layer_norm_fwd_fake,
    "_add_layer_norm_bwd": _add_layer_norm_bwd_fake,
}
VMAPS: dict[str, Callable[..., Any]] = {}
