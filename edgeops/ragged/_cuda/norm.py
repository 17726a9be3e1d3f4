# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of `ragged_instance_norm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from edgeops._common import describe, message
from edgeops.ragged import _reference_norm as twin
from edgeops.ragged._cuda.paths import (
    Path,
    check_columns,
    check_offsets,
    dense_rows,
    pick,
    why_not_reference,
    why_not_triton_rows,
)

_WHO = "ragged_instance_norm"


def _triton_fwd(
    x: Tensor, offsets: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    from edgeops.triton_kernels.ragged.norm import ragged_instance_norm_fwd

    return ragged_instance_norm_fwd(dense_rows(x), offsets, weight, bias, eps)


def _triton_bwd(
    grad_out: Tensor, x: Tensor, offsets: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    from edgeops.triton_kernels.ragged.norm import ragged_instance_norm_bwd

    return ragged_instance_norm_bwd(dense_rows(grad_out), dense_rows(x), offsets, mean, rstd, weight)


FORWARD = (
    Path("triton", why_not_triton_rows, _triton_fwd),
    Path("reference", why_not_reference, twin.ragged_instance_norm_fwd_reference),
)
BACKWARD = (
    Path("triton", why_not_triton_rows, _triton_bwd),
    Path("reference", why_not_reference, twin.ragged_instance_norm_bwd_reference),
)


def ragged_instance_norm_fwd_cuda(
    x: Tensor, offsets: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`_ragged_instance_norm_fwd` on a GPU."""
    check_columns(_WHO, x, weight=weight, bias=bias)
    check_offsets(_WHO, offsets, x)
    args = (x, offsets, weight, bias, eps)
    result: tuple[Tensor, Tensor, Tensor] = pick(_WHO, FORWARD, *args).run(*args)
    return result


def ragged_instance_norm_bwd_cuda(
    grad_out: Tensor, x: Tensor, offsets: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`_ragged_instance_norm_bwd` on a GPU."""
    check_columns(_WHO, x, weight=weight)
    check_offsets(_WHO, offsets, x)
    if grad_out.shape != x.shape or grad_out.dtype != x.dtype or grad_out.device != x.device:
        rule = f"grad_out must be like x, {describe(x)}"
        raise ValueError(message(_WHO, rule, describe(grad_out), "It is the gradient of the result."))
    result: tuple[Tensor, Tensor, Tensor] = pick(_WHO, BACKWARD, x, offsets).run(
        grad_out, x, offsets, mean, rstd, weight
    )
    return result


KERNELS: dict[str, Callable[..., Any]] = {
    "_ragged_instance_norm_fwd": ragged_instance_norm_fwd_cuda,
    "_ragged_instance_norm_bwd": ragged_instance_norm_bwd_cuda,
}
