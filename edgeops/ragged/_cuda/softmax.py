# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of `ragged_softmax`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from edgeops._common import describe, message
from edgeops.ragged import _reference_softmax as twin
from edgeops.ragged._cuda.paths import (
    Path,
    check_columns,
    check_offsets,
    dense_rows,
    pick,
    why_not_reference,
    why_not_triton_rows,
)


def _triton_fwd(x: Tensor, offsets: Tensor, log: bool) -> Tensor:
    from edgeops.triton_kernels.ragged.softmax import ragged_softmax_fwd

    return ragged_softmax_fwd(dense_rows(x), offsets, log)


def _triton_bwd(grad_out: Tensor, out: Tensor, offsets: Tensor, log: bool) -> Tensor:
    from edgeops.triton_kernels.ragged.softmax import ragged_softmax_bwd

    return ragged_softmax_bwd(dense_rows(grad_out), dense_rows(out), offsets, log)


FORWARD = (
    Path("triton", why_not_triton_rows, _triton_fwd),
    Path("reference", why_not_reference, twin.ragged_softmax_fwd_reference),
)
BACKWARD = (
    Path("triton", why_not_triton_rows, _triton_bwd),
    Path("reference", why_not_reference, twin.ragged_softmax_bwd_reference),
)


def ragged_softmax_fwd_cuda(x: Tensor, offsets: Tensor, log: bool) -> Tensor:
    """`_ragged_softmax_fwd` on a GPU."""
    check_columns("ragged_softmax", x)
    check_offsets("ragged_softmax", offsets, x)
    result: Tensor = pick("ragged_softmax", FORWARD, x, offsets).run(x, offsets, log)
    return result


def ragged_softmax_bwd_cuda(grad_out: Tensor, out: Tensor, offsets: Tensor, log: bool) -> Tensor:
    """`_ragged_softmax_bwd` on a GPU."""
    check_columns("ragged_softmax", out)
    check_offsets("ragged_softmax", offsets, out)
    if grad_out.shape != out.shape or grad_out.dtype != out.dtype or grad_out.device != out.device:
        rule = f"grad_out must be like out, {describe(out)}"
        raise ValueError(message("ragged_softmax", rule, describe(grad_out), "It is the gradient of the result."))
    result: Tensor = pick("ragged_softmax", BACKWARD, out, offsets).run(grad_out, out, offsets, log)
    return result


KERNELS: dict[str, Callable[..., Any]] = {
    "_ragged_softmax_fwd": ragged_softmax_fwd_cuda,
    "_ragged_softmax_bwd": ragged_softmax_bwd_cuda,
}
