# SPDX-License-Identifier: Apache-2.0
"""Rules of `ragged_softmax`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeops.ragged import _reference_softmax as twin
from edgeops.ragged.softmax import ragged_softmax

PUBLIC: dict[str, Callable[..., Any]] = {"ragged_softmax": ragged_softmax}
TWINS: dict[str, Callable[..., Any]] = {
    "_ragged_softmax_fwd": twin.ragged_softmax_fwd_reference,
    "_ragged_softmax_bwd": twin.ragged_softmax_bwd_reference,
}


def _fwd_fake(x: Tensor, offsets: Tensor, log: bool) -> Tensor:
    torch._check(x.dim() == 2, lambda: "ragged_softmax: x must have shape [T, C]")
    return x.new_empty(x.shape)


FAKES: dict[str, Callable[..., Any]] = {
    "_ragged_softmax_fwd": _fwd_fake,
    "_ragged_softmax_bwd": lambda grad_out, out, offsets, log: out.new_empty(out.shape),
}
VMAPS: dict[str, Callable[..., Any]] = {}
