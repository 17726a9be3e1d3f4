# SPDX-License-Identifier: Apache-2.0
"""Rules of `ragged_instance_norm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeops.ragged import _reference_norm as twin
from edgeops.ragged._ops._shapes import wide
from edgeops.ragged.norm import ragged_instance_norm

PUBLIC: dict[str, Callable[..., Any]] = {"ragged_instance_norm": ragged_instance_norm}
TWINS: dict[str, Callable[..., Any]] = {
    "_ragged_instance_norm_fwd": twin.ragged_instance_norm_fwd_reference,
    "_ragged_instance_norm_bwd": twin.ragged_instance_norm_bwd_reference,
}


def _fwd_fake(
    x: Tensor, offsets: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    torch._check(x.dim() == 2, lambda: "ragged_instance_norm: x must have shape [T, C]")
    mean = x.new_empty(offsets.shape[0] - 1, x.shape[1], dtype=wide(x))
    return x.new_empty(x.shape), mean, mean.new_empty(mean.shape)


def _bwd_fake(
    grad_out: Tensor, x: Tensor, offsets: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


FAKES: dict[str, Callable[..., Any]] = {
    "_ragged_instance_norm_fwd": _fwd_fake,
    "_ragged_instance_norm_bwd": _bwd_fake,
}
VMAPS: dict[str, Callable[..., Any]] = {}
