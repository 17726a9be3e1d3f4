# SPDX-License-Identifier: Apache-2.0
"""Rules of the offload ops: public functions, readable twins as fallbacks, fake kernels, batching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops.offload import _reference as twin
from edgeops.offload._cuda import register_cuda
from edgeops.offload.subspace import subspace_expand, subspace_project

PUBLIC: dict[str, Callable[..., Any]] = {"subspace_project": subspace_project, "subspace_expand": subspace_expand}
TWINS: dict[str, Callable[..., Any]] = {
    "_subspace_project": twin.subspace_project_reference,
    "_subspace_expand": twin.subspace_expand_reference,
    "_subspace_value_grad": twin.subspace_value_grad_reference,
    "_subspace_apply": twin.subspace_apply_reference,
    "_subspace_adam": twin.subspace_adam_reference,
}


def _project_fake(x: Tensor, index: Tensor, value: Tensor, starts: Tensor, order: Tensor) -> Tensor:
    torch._check(x.dim() == 2, lambda: "subspace_project: x must be a matrix")
    return x.new_empty(starts.shape[0] - 1, x.shape[1])


def _expand_fake(y: Tensor, index: Tensor, value: Tensor) -> Tensor:
    torch._check(y.dim() == 2, lambda: "subspace_expand: y must be a matrix")
    return y.new_empty(index.shape[0], y.shape[1])


def _value_grad_fake(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(index.shape, dtype=twin.compute_dtype(x.dtype))


_REFUSAL = (
    "updates tensors in place and cannot be transformed by torch.func",
    "Call it for each tensor of the batch.",
)
FAKES: dict[str, Callable[..., Any]] = {
    "_subspace_project": _project_fake,
    "_subspace_expand": _expand_fake,
    "_subspace_value_grad": _value_grad_fake,
}


def register() -> torch.library.Library:
    """Register every rule. Returns the library object, which must be kept alive."""
    library = torch.library.Library(_native.NAMESPACE, "IMPL")
    for name, function in TWINS.items():
        op = getattr(torch.ops.edgeops, name)
        library.impl(name, function, "CompositeExplicitAutograd")
        qualified = f"{_native.NAMESPACE}::{name}"
        torch.library.register_fake(qualified, FAKES.get(name, _native.writes_only), lib=library)
        rule = _native.refuse_vmap(name, *_REFUSAL) if op.default._schema.is_mutable else _native.loop_vmap(op)
        torch.library.register_vmap(qualified, rule, lib=library)
    for name, function in PUBLIC.items():
        library.impl(name, function, "CompositeImplicitAutograd")
    register_cuda(library)
    return library
