# SPDX-License-Identifier: Apache-2.0
"""Rules of the triangular ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeops.ragged import _reference_triangular as twin
from edgeops.ragged.triangular import tradd, trmm, trmul

PUBLIC: dict[str, Callable[..., Any]] = {"trmm": trmm, "tradd": tradd, "trmul": trmul}
TWINS: dict[str, Callable[..., Any]] = {
    "_trmm_fwd": twin.trmm_fwd_reference,
    "_trmm_bwd_l": twin.trmm_bwd_l_reference,
    "_tri_binary": twin.tri_binary_reference,
}


def _trmm_fwd_fake(l: Tensor, b: Tensor, upper: bool, transpose: bool, alpha: float) -> Tensor:  # noqa: E741
    torch._check(l.dim() == 2 and b.dim() == 2, lambda: "trmm: l and b must be matrices")
    torch._check(l.dtype == b.dtype, lambda: "trmm: l and b must have one dtype")
    torch._check(l.shape[0] == l.shape[1], lambda: "trmm: l must be square")
    torch._check(l.shape[0] == b.shape[0], lambda: "trmm: b must have as many rows as l")
    return b.new_empty(b.shape)


def _trmm_bwd_l_fake(grad_out: Tensor, b: Tensor, upper: bool, alpha: float) -> Tensor:
    return b.new_empty(b.shape[0], b.shape[0])


def _tri_binary_fake(l1: Tensor, l2: Tensor, multiply: bool, upper: bool) -> Tensor:
    torch._check(l1.dim() == 2 and l1.shape[0] == l1.shape[1], lambda: "tradd, trmul: l1 must be square")
    torch._check(l1.shape == l2.shape and l1.dtype == l2.dtype, lambda: "tradd, trmul: l1 and l2 must be alike")
    return l1.new_empty(l1.shape)


FAKES: dict[str, Callable[..., Any]] = {
    "_trmm_fwd": _trmm_fwd_fake,
    "_trmm_bwd_l": _trmm_bwd_l_fake,
    "_tri_binary": _tri_binary_fake,
}
VMAPS: dict[str, Callable[..., Any]] = {}
