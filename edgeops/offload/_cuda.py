# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of the offload ops and their registration; what they do not serve runs its twin there.

Integers are not read back from the GPU: an entry outside its matrix counts as 0. Nothing here imports triton before a
call needs it.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeops._common import describe, message
from edgeops.offload import _reference as twin

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BUILD = "Build projectors with edgeops.offload."


def _triton_serves(x: Tensor) -> bool:
    """Whether triton is there, knows the dtype and compiles for the GPU of x."""
    if importlib.util.find_spec("triton") is None or x.dtype not in TRITON_DTYPES:
        return False
    return not x.is_cuda or torch.version.hip is not None or torch.cuda.get_device_capability(x.device) >= (7, 0)


def _check_matrix(who: str, name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(message(who, f"{name} must be floating point", describe(x), "Cast it."))
    if x.dim() != 2:
        raise ValueError(message(who, f"{name} must be a matrix", describe(x), "Reshape it."))


def _check_index(who: str, name: str, index: Tensor, rows: int, device: torch.device) -> None:
    if index.dtype not in (torch.int16, torch.int32):
        raise TypeError(message(who, f"{name} must be int16 or int32", describe(index), "Cast it with .int()."))
    if index.dim() != 2 or index.shape[0] != rows or index.shape[1] == 0 or index.device != device:
        rule = f"{name} must have shape [{rows}, r], r > 0, on {device}"
        advice = "A projector has one row of entries for each row that it projects."
        raise ValueError(message(who, rule, describe(index), advice))


def _check_value(who: str, name: str, value: Tensor, index: Tensor, dtype: torch.dtype) -> None:
    if value.dtype != dtype:
        raise TypeError(message(who, f"{name} must be {dtype}", describe(value), "Cast the projector with .to(dtype)."))
    if value.shape != index.shape or value.device != index.device:
        rule = f"{name} must be like its index, {tuple(index.shape)} on {index.device}"
        raise ValueError(message(who, rule, describe(value), BUILD))


def subspace_project_cuda(x: Tensor, index: Tensor, value: Tensor, starts: Tensor, order: Tensor) -> Tensor:
    """`_subspace_project` on a GPU."""
    who = "subspace_project"
    _check_matrix(who, "x", x)
    for name, each in (("starts", starts), ("order", order)):
        if each.dtype != torch.int32 or each.dim() != 1 or each.device != x.device:
            raise ValueError(message(who, f"{name} must be an int32 vector on {x.device}", describe(each), BUILD))
    if starts.shape[0] < 2:
        rule = "starts must have an element for each column and one more"
        raise ValueError(message(who, rule, describe(starts), BUILD))
    _check_index(who, "index", index, x.shape[0], x.device)
    _check_value(who, "value", value, index, twin.compute_dtype(x.dtype))
    if value.numel() >= 2**31:
        rule = "value must have fewer than 2^31 elements"
        raise ValueError(message(who, rule, describe(value), "Use a smaller r."))
    if not _triton_serves(x):
        return twin.subspace_project_reference(x, index, value, starts, order)
    from edgeops.triton_kernels.offload.subspace import subspace_project

    return subspace_project(x, value.contiguous(), starts.contiguous(), order.contiguous())


def subspace_expand_cuda(y: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """`_subspace_expand` on a GPU."""
    who = "subspace_expand"
    _check_matrix(who, "y", y)
    _check_index(who, "index", index, index.shape[0] if index.dim() else 0, y.device)
    _check_value(who, "value", value, index, twin.compute_dtype(y.dtype))
    if not _triton_serves(y):
        return twin.subspace_expand_reference(y, index, value)
    from edgeops.triton_kernels.offload.subspace import subspace_expand

    return subspace_expand(y, index.contiguous(), value.contiguous())


def subspace_value_grad_cuda(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """`_subspace_value_grad` on a GPU."""
    who = "subspace_value_grad"
    _check_matrix(who, "x", x)
    _check_matrix(who, "y", y)
    if y.dtype != x.dtype or y.shape[1] != x.shape[1] or y.device != x.device:
        rule = f"y must have the columns, dtype and device of x, {describe(x)}"
        advice = "One is projected, the other is the gradient of the result."
        raise ValueError(message(who, rule, describe(y), advice))
    _check_index(who, "index", index, x.shape[0], x.device)
    if not _triton_serves(x):
        return twin.subspace_value_grad_reference(x, y, index)
    from edgeops.triton_kernels.offload.subspace import subspace_value_grad

    return subspace_value_grad(x, y, index.contiguous())


def subspace_apply_cuda(
    weight: Tensor,
    delta: Tensor,
    p_index: Tensor,
    p_value: Tensor,
    q_index: Tensor,
    q_value: Tensor,
    alpha: float,
    keep: float = 1.0,
    stochastic: bool = False,
    seed: int = 0,
) -> None:
    """`_subspace_apply` on a GPU: `P delta`, then one launch that reads and writes the weight once."""
    who = "subspace_apply"
    _check_matrix(who, "weight", weight)
    m, n = weight.shape
    strides = f"strides {weight.stride()}"
    if n > 1 and weight.stride(1) != 1:
        raise ValueError(message(who, "weight must have dense rows", strides, "Make the parameter contiguous."))
    if m > 1 and weight.stride(0) < n:
        raise ValueError(message(who, "weight must not overlap itself", strides, "Make the parameter contiguous."))
    _check_matrix(who, "delta", delta)
    wide = twin.compute_dtype(weight.dtype)
    if delta.dtype != wide or delta.device != weight.device:
        rule = f"delta must be {wide} on {weight.device}"
        raise TypeError(message(who, rule, describe(delta), "It is what _subspace_adam leaves in the gradient."))
    if stochastic and weight.dtype != torch.bfloat16:
        rule = "stochastic rounding is for bfloat16 weights"
        raise TypeError(message(who, rule, describe(weight), "Use bfloat16 weights, or stochastic=False."))
    if not (math.isfinite(alpha) and math.isfinite(keep)):
        raise ValueError(message(who, "alpha and keep must be finite", f"{alpha}, {keep}", "Check the learning rate."))
    for side, rows, index, value in (("p", m, p_index, p_value), ("q", n, q_index, q_value)):
        _check_index(who, f"{side}_index", index, rows, weight.device)
        _check_value(who, f"{side}_value", value, index, wide)
    sides = (p_index.contiguous(), p_value.contiguous(), q_index.contiguous(), q_value.contiguous())
    if not _triton_serves(weight):
        twin.subspace_apply_reference(weight, delta, *sides, alpha, keep, stochastic, seed)
        return
    from edgeops.triton_kernels.offload.update import subspace_apply

    subspace_apply(weight, delta, *sides, alpha, keep, stochastic, seed)


def subspace_adam_cuda(
    grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: int, beta1: float, beta2: float, eps: float
) -> None:
    """`_subspace_adam` on a GPU."""
    who = "subspace_adam"
    if not grad.is_floating_point():
        raise TypeError(message(who, "grad must be floating point", describe(grad), "Cast it."))
    wide = twin.compute_dtype(grad.dtype)
    for name, x in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        if x.dtype != wide or x.numel() != grad.numel():
            rule = f"{name} must have as many elements as grad, {grad.numel()}, in {wide}"
            raise ValueError(message(who, rule, describe(x), "Start the state with zeros."))
    for name, x in (("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        if not x.is_contiguous() or x.device != grad.device:
            rule = f"{name} must be contiguous and on {grad.device}"
            raise ValueError(message(who, rule, describe(x), "It is updated in place."))
    if step < 1:
        raise ValueError(message(who, "step must count from 1", str(step), "Increase it before the call."))
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and eps >= 0):
        rule = "betas must lie in [0, 1), and eps must not be negative"
        raise ValueError(message(who, rule, f"{beta1}, {beta2}, {eps}", "Adam's are (0.9, 0.999)."))
    if not _triton_serves(grad):
        twin.subspace_adam_reference(grad, exp_avg, exp_avg_sq, step, beta1, beta2, eps)
        return
    from edgeops.triton_kernels.offload.update import subspace_adam

    subspace_adam(grad, exp_avg, exp_avg_sq, step, beta1, beta2, eps)


KERNELS: dict[str, Callable[..., Any]] = {
    "_subspace_project": subspace_project_cuda,
    "_subspace_expand": subspace_expand_cuda,
    "_subspace_value_grad": subspace_value_grad_cuda,
    "_subspace_apply": subspace_apply_cuda,
    "_subspace_adam": subspace_adam_cuda,
}


def register_cuda(library: torch.library.Library) -> list[str]:
    """Register the GPU kernels above; returns the names of the ops registered here."""
    for name, run in KERNELS.items():
        library.impl(name, run, "CUDA")
    return list(KERNELS)
