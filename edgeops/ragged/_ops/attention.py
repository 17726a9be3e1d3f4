# SPDX-License-Identifier: Apache-2.0
"""Rules of the attention ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops.ragged import _reference as twin
from edgeops.ragged._ops._shapes import wide
from edgeops.ragged.attention import ragged_attention_lse_op, ragged_attention_op

PUBLIC: dict[str, Callable[..., Any]] = {
    "ragged_attention": ragged_attention_op,
    "ragged_attention_lse": ragged_attention_lse_op,
}
TWINS: dict[str, Callable[..., Any]] = {
    "_ragged_attention_fwd": twin.ragged_attention_fwd_reference,
    "_ragged_attention_bwd": twin.ragged_attention_bwd_reference,
}


def _attention_fwd_fake(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    torch._check(q.dim() == 3 and k.dim() == 3 and v.dim() == 3, lambda: "ragged_attention: q, k, v must be 3-D")
    torch._check(q.dtype == k.dtype == v.dtype, lambda: "ragged_attention: q, k and v must have one dtype")
    torch._check(q.shape[2] == k.shape[2], lambda: "ragged_attention: q and k must have the same head size")
    torch._check(k.shape[0] == v.shape[0], lambda: "ragged_attention: k and v must have the same rows")
    torch._check(cu_q.shape[0] == cu_k.shape[0], lambda: "ragged_attention: cu_q and cu_k must have one length")
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    return out, q.new_empty(q.shape[0], q.shape[1], dtype=wide(q))


def _attention_bwd_fake(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    bias: Tensor | None,
    *_: Any,
) -> tuple[Tensor, ...]:
    dbias = q.new_empty(0, dtype=wide(q)) if bias is None else bias.new_empty(bias.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias


def _attention_fwd_vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
    """Fold the mapped dimension into the heads: [T, H, D] x n becomes [T, n * H, D], one call."""
    op = torch.ops.edgeops._ragged_attention_fwd
    dropout = len(args) > 10 and args[10] > 0  # the mask follows from the head: slices of one batch share it
    if dropout or any(d is not None for d in in_dims[3:6]):  # mapped offsets or bias: other work for each slice
        return _native.loop_vmap(op)(info, in_dims, *args)
    n = info.batch_size
    folded = []
    for x, d in zip(args[:3], in_dims[:3]):
        x = x.unsqueeze(0).expand(n, *x.shape) if d is None else x.movedim(d, 0)
        folded.append(x.movedim(0, 1).flatten(1, 2))
    bias = args[5]
    if bias is not None and bias.shape[1] > 1:
        bias = bias.repeat(1, n, 1, 1)
    out, lse = op(*folded, *args[3:5], bias, *args[6:])
    return (out.unflatten(1, (n, -1)), lse.unflatten(1, (n, -1))), (1, 1)


FAKES: dict[str, Callable[..., Any]] = {
    "_ragged_attention_fwd": _attention_fwd_fake,
    "_ragged_attention_bwd": _attention_bwd_fake,
}
VMAPS: dict[str, Callable[..., Any]] = {"_ragged_attention_fwd": _attention_fwd_vmap}
