# SPDX-License-Identifier: Apache-2.0
"""Query, key and value projections as one GEMM over shared storage.

Three `nn.Linear` of a layer become views of one `[3 * H * D, C]` tensor: the parameters keep their names, shapes and
identity, an optimizer or `load_state_dict` writes through them, and inference multiplies once. Nothing is assumed at
call time: when a parameter was replaced, its address differs and the three linears run on their own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

Linears = tuple[nn.Module, nn.Module, nn.Module]
_LINEARS = (nn.Linear, NonDynamicallyQuantizableLinear)


class FusedWeights(NamedTuple):
    """One weight and bias over the storage of three linears, and what they must look like for it to hold."""

    weight: Tensor
    bias: Tensor | None
    parameters: tuple[nn.Parameter, ...]
    addresses: tuple[int, ...]


def is_plain_linear(module: nn.Module) -> bool:
    """An `nn.Linear` whose call does nothing but `F.linear`: no subclass of the user's, no hooks."""
    return type(module) in _LINEARS and not (module._forward_hooks or module._forward_pre_hooks)


def _join(parts: list[nn.Parameter]) -> Tensor | None:
    """A tensor over the rows of all parts, which become views of it; `None` when that could break something."""
    first = parts[0]
    if len({id(p) for p in parts}) < len(parts):
        return None  # tied to each other
    for p in parts:
        if type(p) is not nn.Parameter or type(p.data) is not torch.Tensor or p.layout != torch.strided or p.is_meta:
            return None
        if p.dtype != first.dtype or p.device != first.device or p.shape != first.shape:
            return None
        if not p.is_contiguous() or not p.numel():
            return None
    storage = first.untyped_storage().data_ptr()
    begins = [first.data_ptr() + i * first.nbytes for i in range(len(parts))]
    if all(p.untyped_storage().data_ptr() == storage and p.data_ptr() == at for p, at in zip(parts, begins)):
        # views of one tensor already: from an earlier conversion, or kept together by a file
        shape = (len(parts) * first.shape[0], *first.shape[1:])
        return first.data.as_strided(shape, first.stride(), first.storage_offset())
    if any(p.is_inference() or (p.device.type == "cpu" and p.is_shared()) for p in parts):
        return None  # other owners hold this memory
    with torch.inference_mode(False), torch.no_grad():
        joined = torch.cat([p.data for p in parts])
        for p, rows in zip(parts, joined.chunk(len(parts)), strict=True):
            p.data = rows
    return joined


def fuse(linears: Linears) -> FusedWeights | None:
    """Put the parameters of three linears next to each other; `None` where they have to stay apart."""
    if not all(type(m) is nn.Linear for m in linears):
        return None
    parameters = [m._parameters["weight"] for m in linears]
    biases = [m._parameters["bias"] for m in linears]
    if any(p is None for p in parameters) or len({b is None for b in biases}) == 2:
        return None
    weight = _join(parameters)  # type: ignore[arg-type]
    bias = None
    if weight is not None and biases[0] is not None:
        bias = _join(biases)  # type: ignore[arg-type]
        if bias is None:
            return None
        parameters += biases
    if weight is None:
        return None
    held = tuple(p for p in parameters if p is not None)
    return FusedWeights(weight, bias, held, tuple(p.data_ptr() for p in held))


def _holds(fused: FusedWeights, linears: Linears, grad: bool) -> bool:
    """The linears still use the shared storage, untouched by hooks, and no gradient into them is wanted."""
    current: list[Tensor | None] = []
    for m in linears:
        if not is_plain_linear(m):
            return False
        current.append(m._parameters.get("weight"))
    if fused.bias is not None:
        current += [m._parameters.get("bias") for m in linears]
    for now, then, address in zip(current, fused.parameters, fused.addresses, strict=True):
        if now is not then or then.data_ptr() != address or (grad and then.requires_grad):
            return False
    return True


def project(
    x: Tensor, linears: Linears, fused: FusedWeights | None, num_heads: int, grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x `[T, C]` to queries, keys and values `[T, H, D]`; strided views of one GEMM's output where possible.

    Args:
        x: packed rows.
        linears: query, key and value projection.
        fused: their shared storage, if there is one.
        num_heads: H.
        grad: whether autograd records.
    """
    tokens = x.shape[0]
    if fused is not None and _holds(fused, linears, grad):
        joint = F.linear(x, fused.weight, fused.bias)
        q, k, v = joint.view(tokens, 3, num_heads, joint.shape[1] // (3 * num_heads)).unbind(1)
        return q, k, v
    q, k, v = (m(x) for m in linears)
    shape = (tokens, num_heads, q.shape[1] // num_heads)
    return q.view(shape), k.view(shape), v.view(shape)
