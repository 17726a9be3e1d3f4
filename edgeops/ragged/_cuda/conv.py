# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of `ragged_conv1d`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from edgeops._common import describe, message
from edgeops.ragged import _reference_conv as twin
from edgeops.ragged._cuda.paths import (
    Path,
    check_columns,
    check_offsets,
    pick,
    why_not_reference,
    why_not_triton_rows,
)


def _triton_fwd(x: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor | None, *options: int) -> Tensor:
    from edgeops.triton_kernels.ragged.conv import ragged_conv1d_fwd

    return ragged_conv1d_fwd(x, offsets, weight, bias, *options)


def _triton_bwd_weight(grad_out: Tensor, x: Tensor, offsets: Tensor, taps: int, *options: int) -> Tensor:
    from edgeops.triton_kernels.ragged.conv import ragged_conv1d_bwd_weight

    return ragged_conv1d_bwd_weight(grad_out, x, offsets, taps, *options)


FORWARD = (
    Path("triton", why_not_triton_rows, _triton_fwd),
    Path("reference", why_not_reference, twin.ragged_conv1d_fwd_reference),
)
WEIGHT = (
    Path("triton", why_not_triton_rows, _triton_bwd_weight),
    Path("reference", why_not_reference, twin.ragged_conv1d_bwd_weight_reference),
)
_WHO = "ragged_conv1d"


def ragged_conv1d_fwd_cuda(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pad_left: int,
    pad_right: int,
    dilation: int,
    groups: int,
) -> Tensor:
    """`_ragged_conv1d_fwd` on a GPU. Sequences shorter than the kernel are not found here: their rows are undefined."""
    check_columns(_WHO, x)
    check_offsets(_WHO, offsets, x)
    fits = weight.dim() == 3 and weight.shape[1] * groups == x.shape[1] and weight.shape[0] % groups == 0
    if not fits or weight.dtype != x.dtype or weight.device != x.device or weight.shape[2] < 1 or dilation < 1:
        rule = f"weight must be [C_out, {x.shape[1]} over {groups}, K] like x, dilation at least 1"
        raise ValueError(message(_WHO, rule, describe(weight), "As in torch.nn.functional.conv1d."))
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype or bias.device != x.device):
        rule = f"bias must have shape ({weight.shape[0]},) like weight"
        raise ValueError(message(_WHO, rule, describe(bias), "Pass None for none."))
    args = (x, offsets, weight, bias, pad_left, pad_right, dilation, groups)
    result: Tensor = pick(_WHO, FORWARD, *args).run(*args)
    return result


def ragged_conv1d_bwd_weight_cuda(
    grad_out: Tensor, x: Tensor, offsets: Tensor, taps: int, pad_left: int, pad_right: int, dilation: int, groups: int
) -> Tensor:
    """`_ragged_conv1d_bwd_weight` on a GPU."""
    check_columns(_WHO, x)
    check_offsets(_WHO, offsets, x)
    rows = x.shape[0] + (offsets.shape[0] - 1) * (pad_left + pad_right - dilation * (taps - 1))
    if grad_out.dim() != 2 or grad_out.shape[0] != rows or grad_out.dtype != x.dtype or grad_out.device != x.device:
        rule = f"grad_out must be [{rows}, C_out] like x"
        raise ValueError(message(_WHO, rule, describe(grad_out), "It is the gradient of the result."))
    pathless = (x, grad_out)
    result: Tensor = pick(_WHO, WEIGHT, *pathless).run(
        grad_out, x, offsets, taps, pad_left, pad_right, dilation, groups
    )
    return result


KERNELS: dict[str, Callable[..., Any]] = {
    "_ragged_conv1d_fwd": ragged_conv1d_fwd_cuda,
    "_ragged_conv1d_bwd_weight": ragged_conv1d_bwd_weight_cuda,
}
