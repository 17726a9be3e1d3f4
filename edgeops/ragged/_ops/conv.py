# SPDX-License-Identifier: Apache-2.0
"""Rules of `ragged_conv1d`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeops.ragged import _reference_conv as twin
from edgeops.ragged.conv import ragged_conv1d_op

PUBLIC: dict[str, Callable[..., Any]] = {"ragged_conv1d": ragged_conv1d_op}
TWINS: dict[str, Callable[..., Any]] = {
    "_ragged_conv1d_fwd": twin.ragged_conv1d_fwd_reference,
    "_ragged_conv1d_bwd_weight": twin.ragged_conv1d_bwd_weight_reference,
}


def _fwd_fake(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pad_left: int,
    pad_right: int,
    dilation: int,
    groups: int,
) -> Tensor:
    torch._check(x.dim() == 2 and weight.dim() == 3, lambda: "ragged_conv1d: x must be [T, C_in], weight [C_out, _, K]")
    torch._check(x.dtype == weight.dtype, lambda: "ragged_conv1d: x and weight must have one dtype")
    torch._check(weight.shape[1] * groups == x.shape[1], lambda: "ragged_conv1d: weight must fit the columns of x")
    grown = pad_left + pad_right - dilation * (weight.shape[2] - 1)
    return x.new_empty(x.shape[0] + (offsets.shape[0] - 1) * grown, weight.shape[0])


def _bwd_weight_fake(
    grad_out: Tensor, x: Tensor, offsets: Tensor, taps: int, pad_left: int, pad_right: int, dilation: int, groups: int
) -> Tensor:
    return x.new_empty(grad_out.shape[1], x.shape[1] // groups, taps)


FAKES: dict[str, Callable[..., Any]] = {
    "_ragged_conv1d_fwd": _fwd_fake,
    "_ragged_conv1d_bwd_weight": _bwd_weight_fake,
}
VMAPS: dict[str, Callable[..., Any]] = {}
