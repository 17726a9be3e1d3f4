# SPDX-License-Identifier: Apache-2.0
"""Rules of the ragged ops: public functions, readable twins as fallbacks, fake kernels, batching rules, GPU paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops.ragged import _reference as twin
from edgeops.ragged._cuda_dispatch import register_cuda
from edgeops.ragged.attention import ragged_attention_lse_op, ragged_attention_op
from edgeops.ragged.fused import add_layer_norm, bias_gelu
from edgeops.ragged.pack import ragged_pack, ragged_unpack
from edgeops.ragged.pool import ragged_pool

# public op -> its differentiable function
PUBLIC = {
    "ragged_attention": ragged_attention_op,
    "ragged_attention_lse": ragged_attention_lse_op,
    "ragged_pack": ragged_pack,
    "ragged_unpack": ragged_unpack,
    "ragged_pool": ragged_pool,
    "bias_gelu": bias_gelu,
    "add_layer_norm": add_layer_norm,
}

# kernel op -> its twin in _reference.py; the op-contract test reads this table
TWINS = {
    "_ragged_attention_fwd": twin.ragged_attention_fwd_reference,
    "_ragged_attention_bwd": twin.ragged_attention_bwd_reference,
    "_ragged_pack": twin.ragged_pack_reference,
    "_ragged_unpack": twin.ragged_unpack_reference,
    "_ragged_pool_fwd": twin.ragged_pool_fwd_reference,
    "_ragged_pool_bwd": twin.ragged_pool_bwd_reference,
    "_bias_gelu_fwd": twin.bias_gelu_fwd_reference,
    "_bias_gelu_bwd": twin.bias_gelu_bwd_reference,
    "_add_layer_norm_fwd": twin.add_layer_norm_fwd_reference,
    "_add_layer_norm_bwd": twin.add_layer_norm_bwd_reference,
}


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _attention_fwd_fake(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    torch._check(q.dim() == 3 and k.dim() == 3 and v.dim() == 3, lambda: "ragged_attention: q, k, v must be 3-D")
    torch._check(q.dtype == k.dtype == v.dtype, lambda: "ragged_attention: q, k and v must have one dtype")
    torch._check(q.shape[2] == k.shape[2], lambda: "ragged_attention: q and k must have the same head size")
    torch._check(k.shape[0] == v.shape[0], lambda: "ragged_attention: k and v must have the same rows")
    torch._check(cu_q.shape[0] == cu_k.shape[0], lambda: "ragged_attention: cu_q and cu_k must have one length")
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    return out, q.new_empty(q.shape[0], q.shape[1], dtype=_wide(q))


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
    dbias = q.new_empty(0, dtype=_wide(q)) if bias is None else bias.new_empty(bias.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias


def _pool_fwd_fake(x: Tensor, offsets: Tensor, mode: int) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, x.shape[1])


def _add_layer_norm_fwd_fake(
    x: Tensor, x_bias: Tensor | None, residual: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    torch._check(x.shape == residual.shape, lambda: "add_layer_norm: x and residual must have one shape")
    rows = x.new_empty(x.shape[0], dtype=_wide(x))
    return x.new_empty(x.shape), rows, rows.new_empty(x.shape[0])


def _add_layer_norm_bwd_fake(
    grad_out: Tensor, x: Tensor, x_bias: Tensor | None, residual: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


_FAKES: dict[str, Callable[..., Any]] = {
    "_ragged_attention_fwd": _attention_fwd_fake,
    "_ragged_attention_bwd": _attention_bwd_fake,
    "_ragged_pack": lambda padded, offsets, total: padded.new_empty(total, *padded.shape[2:]),
    "_ragged_unpack": lambda values, offsets, length, padding_value: values.new_empty(
        offsets.shape[0] - 1, length, *values.shape[1:]
    ),
    "_ragged_pool_fwd": _pool_fwd_fake,
    "_ragged_pool_bwd": lambda grad_out, x, out, offsets, mode: x.new_empty(x.shape),
    "_bias_gelu_fwd": lambda x, bias, tanh: x.new_empty(x.shape),
    "_bias_gelu_bwd": lambda grad_out, x, bias, tanh: x.new_empty(x.shape),
    "_add_layer_norm_fwd": _add_layer_norm_fwd_fake,
    "_add_layer_norm_bwd": _add_layer_norm_bwd_fake,
}


def _attention_fwd_vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
    """Fold the mapped dimension into the heads: [T, H, D] x n becomes [T, n * H, D], one call."""
    op = torch.ops.edgeops._ragged_attention_fwd
    if any(d is not None for d in in_dims[3:6]):  # mapped offsets or bias: different shapes of work for each slice
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


_VMAPS = {"_ragged_attention_fwd": _attention_fwd_vmap}


def register() -> torch.library.Library:
    """Register every rule. Returns the library object, which must be kept alive."""
    library = torch.library.Library(_native.NAMESPACE, "IMPL")
    for name, reference in TWINS.items():
        library.impl(name, reference, "CompositeExplicitAutograd")
        qualified = f"{_native.NAMESPACE}::{name}"
        torch.library.register_fake(qualified, _FAKES[name], lib=library)
        op = getattr(torch.ops.edgeops, name)
        torch.library.register_vmap(qualified, _VMAPS.get(name) or _native.loop_vmap(op), lib=library)
    register_cuda(library)
    for name, function in PUBLIC.items():
        library.impl(name, function, "CompositeImplicitAutograd")
    return library
