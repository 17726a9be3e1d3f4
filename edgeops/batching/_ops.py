# SPDX-License-Identifier: Apache-2.0
"""Rules of the batching ops: readable twins as fallbacks, fake kernels, and what is not meant for users.

The ops that write into segments of tables are steps of an executor, which has one `autograd.Function` around all of
them: they have no gradients of their own, and functorch transforms are refused (`_native.refuse_vmap`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops.batching import _reference as twin
from edgeops.batching._cuda import register_cuda
from edgeops.batching._reference_batches import batches_run_reference

PUBLIC: dict[str, Callable[..., Any]] = {}
TWINS: dict[str, Callable[..., Any]] = {
    "_rows_linear": twin.rows_linear_reference,
    "_rows_linear_pack": twin.rows_linear_pack_reference,
    "_rows_linear_wgrad": twin.rows_linear_wgrad_reference,
    "_batches_run": batches_run_reference,
    "_rows_add": twin.rows_add_reference,
    "_rows_sum": twin.rows_sum_reference,
    "_lstm_cell_fwd": twin.lstm_cell_fwd_reference,
    "_lstm_cell_bwd": twin.lstm_cell_bwd_reference,
    "_treelstm_cell_fwd": twin.treelstm_cell_fwd_reference,
    "_treelstm_cell_bwd": twin.treelstm_cell_bwd_reference,
    "_treelstm_leaf_fwd": twin.treelstm_leaf_fwd_reference,
    "_treelstm_leaf_bwd": twin.treelstm_leaf_bwd_reference,
    "_gru_cell_fwd": twin.gru_cell_fwd_reference,
    "_gru_cell_bwd": twin.gru_cell_bwd_reference,
    "_treegru_reset_fwd": twin.treegru_reset_fwd_reference,
    "_treegru_reset_bwd": twin.treegru_reset_bwd_reference,
    "_treegru_cell_fwd": twin.treegru_cell_fwd_reference,
    "_treegru_cell_bwd": twin.treegru_cell_bwd_reference,
}


def _pack_fake(weights: Sequence[Tensor]) -> Tensor:
    first = weights[0]
    torch._check(first.dim() == 2, lambda: "rows_linear_pack: weights must have shape [N, K]")
    dtype = torch.promote_types(first.dtype, torch.float32)
    width = 64 // dtype.itemsize
    columns = sum(weight.shape[1] for weight in weights)
    return first.new_empty((first.shape[0] + width - 1) // width, columns, width, dtype=dtype)


_REFUSAL = (
    "is a step of the batching executor and cannot be transformed by torch.func",
    "Record the cells of all instances instead.",
)
FAKES: dict[str, Callable[..., Any]] = {"_rows_linear_pack": _pack_fake}


def register() -> torch.library.Library:
    """Register every rule. Returns the library object, which must be kept alive."""
    library = torch.library.Library(_native.NAMESPACE, "IMPL")
    for name, function in TWINS.items():
        op = getattr(torch.ops.edgeops, name)
        library.impl(name, function, "CompositeExplicitAutograd")
        qualified = f"{_native.NAMESPACE}::{name}"
        torch.library.register_fake(qualified, FAKES.get(name, _native.writes_only), lib=library)
        mutable = op.default._schema.is_mutable
        if mutable:  # saves looking for gradients that there are none of: 2 us a call
            library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        rule = _native.refuse_vmap(name, *_REFUSAL) if mutable else _native.loop_vmap(op)
        torch.library.register_vmap(qualified, rule, lib=library)
    register_cuda(library)
    return library
