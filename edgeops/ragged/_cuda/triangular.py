# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of the triangular ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from edgeops._common import describe, message
from edgeops.ragged import _reference_triangular as twin
from edgeops.ragged._cuda.paths import Path, pick, why_not_reference, why_not_triton_rows


def _triton_product(l: Tensor, b: Tensor, upper: bool, transpose: bool, alpha: float) -> Tensor:  # noqa: E741
    from edgeops.triton_kernels.ragged.triangular import trmm_fwd

    return trmm_fwd(l, b, upper, transpose, alpha)


def _triton_outer(grad_out: Tensor, b: Tensor, upper: bool, alpha: float) -> Tensor:
    from edgeops.triton_kernels.ragged.triangular import trmm_bwd_l

    return trmm_bwd_l(grad_out, b, upper, alpha)


def _triton_binary(l1: Tensor, l2: Tensor, multiply: bool, upper: bool) -> Tensor:
    from edgeops.triton_kernels.ragged.triangular import tri_binary

    return tri_binary(l1, l2, multiply, upper)


PRODUCT = (
    Path("triton", why_not_triton_rows, _triton_product),
    Path("reference", why_not_reference, twin.trmm_fwd_reference),
)
OUTER = (
    Path("triton", why_not_triton_rows, _triton_outer),
    Path("reference", why_not_reference, twin.trmm_bwd_l_reference),
)
BINARY = (
    Path("triton", why_not_triton_rows, _triton_binary),
    Path("reference", why_not_reference, twin.tri_binary_reference),
)


def _check_alike(who: str, x: Tensor, name: str, like: Tensor) -> None:
    if x.dtype != like.dtype:
        raise TypeError(message(who, f"{name} must be {like.dtype} like the other", describe(x), "Cast one of them."))
    if x.device != like.device:
        raise ValueError(message(who, f"{name} must be on {like.device}", describe(x), "Move it."))


def _check_square(who: str, x: Tensor, name: str) -> None:
    if x.dim() != 2 or x.shape[0] != x.shape[1]:
        raise ValueError(message(who, f"{name} must be square, [M, M]", describe(x), "Pass the whole matrix."))


def trmm_fwd_cuda(l: Tensor, b: Tensor, upper: bool, transpose: bool, alpha: float) -> Tensor:  # noqa: E741
    """`_trmm_fwd` on a GPU."""
    _check_square("trmm", l, "l")
    _check_alike("trmm", b, "b", l)
    if b.dim() != 2 or b.shape[0] != l.shape[0]:
        rule = f"b must have shape [M, N] with M = {l.shape[0]}"
        raise ValueError(message("trmm", rule, describe(b), "It needs a row per column of l."))
    result: Tensor = pick("trmm", PRODUCT, l, b).run(l, b, upper, transpose, alpha)
    return result


def trmm_bwd_l_cuda(grad_out: Tensor, b: Tensor, upper: bool, alpha: float) -> Tensor:
    """`_trmm_bwd_l` on a GPU."""
    _check_alike("trmm", b, "b", grad_out)
    if b.dim() != 2 or b.shape != grad_out.shape:
        raise ValueError(message("trmm", "grad_out and b must both be [M, N]", describe(b), "Pass both alike."))
    result: Tensor = pick("trmm", OUTER, grad_out, b).run(grad_out, b, upper, alpha)
    return result


def tri_binary_cuda(l1: Tensor, l2: Tensor, multiply: bool, upper: bool) -> Tensor:
    """`_tri_binary` on a GPU."""
    who = "trmul" if multiply else "tradd"
    _check_square(who, l1, "l1")
    _check_alike(who, l2, "l2", l1)
    if l1.shape != l2.shape:
        raise ValueError(message(who, "l1 and l2 must have one shape", describe(l2), "Nothing is broadcast here."))
    result: Tensor = pick(who, BINARY, l1, l2).run(l1, l2, multiply, upper)
    return result


KERNELS: dict[str, Callable[..., Any]] = {
    "_trmm_fwd": trmm_fwd_cuda,
    "_trmm_bwd_l": trmm_bwd_l_cuda,
    "_tri_binary": tri_binary_cuda,
}
