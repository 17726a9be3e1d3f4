# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of pack, unpack and the row ops.

Every op has paths that say why they cannot take a call; the first one without a reason runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from edgeops._common import describe, message
from edgeops.ragged import _reference as twin
from edgeops.ragged._cuda.paths import (
    Path,
    check_columns,
    check_offsets,
    dense_rows,
    pick,
    why_not_reference,
    why_not_triton_device,
    why_not_triton_rows,
)

MAX_TRITON_NORM_WIDTH = 16384

# pack and unpack


def _why_not_triton_copy(x: Tensor, *_: Any) -> Iterator[str]:
    yield from why_not_triton_device(x)
    if x.element_size() > 8:
        yield f"moves elements of up to 8 bytes, got {x.dtype}"


def _never(*_: Any) -> Iterator[str]:
    return iter(())


def _triton_pack(padded: Tensor, offsets: Tensor, total: int) -> Tensor:
    from edgeops.triton_kernels.ragged.pack import ragged_pack

    out = padded.new_empty(total, *padded.shape[2:])
    ragged_pack(padded, offsets, out)
    return out


def _triton_unpack(values: Tensor, offsets: Tensor, length: int, padding_value: float) -> Tensor:
    from edgeops.triton_kernels.ragged.pack import ragged_unpack

    out = values.new_empty(offsets.shape[0] - 1, length, *values.shape[1:])
    ragged_unpack(values, offsets, padding_value, out)
    return out


PACK = (Path("triton", _why_not_triton_copy, _triton_pack), Path("reference", _never, twin.ragged_pack_reference))
UNPACK = (Path("triton", _why_not_triton_copy, _triton_unpack), Path("reference", _never, twin.ragged_unpack_reference))


def ragged_pack_cuda(padded: Tensor, offsets: Tensor, total: int) -> Tensor:
    """`_ragged_pack` on a GPU, where the compiled CUDA module is absent."""
    check_offsets("pack", offsets, padded)
    if padded.dim() < 2 or padded.shape[0] != offsets.shape[0] - 1:
        rule = f"padded must have shape [{offsets.shape[0] - 1}, L, ...]"
        raise ValueError(message("pack", rule, describe(padded), "Build the layout from this batch."))
    args = (padded, offsets.contiguous(), total)
    result: Tensor = pick("pack", PACK, *args).run(*args)
    return result


def ragged_unpack_cuda(values: Tensor, offsets: Tensor, length: int, padding_value: float) -> Tensor:
    """`_ragged_unpack` on a GPU, where the compiled CUDA module is absent."""
    check_offsets("unpack", offsets, values)
    args = (values, offsets.contiguous(), length, padding_value)
    result: Tensor = pick("unpack", UNPACK, *args).run(*args)
    return result


# rows


def _triton_pool(x: Tensor, offsets: Tensor, mode: int) -> Tensor:
    from edgeops.triton_kernels.ragged.pool import ragged_pool_fwd

    return ragged_pool_fwd(dense_rows(x), offsets.contiguous(), mode)


def _triton_gelu(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    from edgeops.triton_kernels.ragged.fused import bias_gelu_fwd

    return bias_gelu_fwd(dense_rows(x), bias.contiguous(), tanh)


def _triton_norm(
    x: Tensor, x_bias: Tensor | None, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    from edgeops.triton_kernels.ragged.fused import add_layer_norm_fwd

    x_bias = None if x_bias is None else x_bias.contiguous()
    return add_layer_norm_fwd(dense_rows(x), x_bias, dense_rows(residual), weight.contiguous(), bias.contiguous(), eps)


def _why_not_triton_norm(x: Tensor, *_: Any) -> Iterator[str]:
    yield from why_not_triton_rows(x)
    if x.shape[1] > MAX_TRITON_NORM_WIDTH:
        yield f"takes rows up to {MAX_TRITON_NORM_WIDTH} wide, got {x.shape[1]}"


POOL = (
    Path("triton", why_not_triton_rows, _triton_pool),
    Path("reference", why_not_reference, twin.ragged_pool_fwd_reference),
)
GELU = (
    Path("triton", why_not_triton_rows, _triton_gelu),
    Path("reference", why_not_reference, twin.bias_gelu_fwd_reference),
)
NORM = (
    Path("triton", _why_not_triton_norm, _triton_norm),
    Path("reference", why_not_reference, twin.add_layer_norm_fwd_reference),
)


def ragged_pool_fwd_cuda(x: Tensor, offsets: Tensor, mode: int) -> Tensor:
    """`_ragged_pool_fwd` on a GPU."""
    check_columns("ragged_pool", x)
    check_offsets("ragged_pool", offsets, x)
    result: Tensor = pick("ragged_pool", POOL, x, offsets, mode).run(x, offsets, mode)
    return result


def bias_gelu_fwd_cuda(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    """`_bias_gelu_fwd` on a GPU."""
    check_columns("bias_gelu", x, bias=bias)
    result: Tensor = pick("bias_gelu", GELU, x, bias, tanh).run(x, bias, tanh)
    return result


def add_layer_norm_fwd_cuda(
    x: Tensor, x_bias: Tensor | None, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`_add_layer_norm_fwd` on a GPU."""
    check_columns("add_layer_norm", x, x_bias=x_bias, weight=weight, bias=bias)
    if residual.shape != x.shape or residual.device != x.device or residual.dtype != x.dtype:
        rule = f"residual must be like x, {describe(x)}"
        raise ValueError(message("add_layer_norm", rule, describe(residual), "Both are [T, C] of one dtype."))
    args = (x, x_bias, residual, weight, bias, eps)
    result: tuple[Tensor, Tensor, Tensor] = pick("add_layer_norm", NORM, *args).run(*args)
    return result


# backward


def _triton_pool_bwd(grad_out: Tensor, x: Tensor, out: Tensor, offsets: Tensor, mode: int) -> Tensor:
    from edgeops.triton_kernels.ragged.pool import ragged_pool_bwd

    return ragged_pool_bwd(dense_rows(grad_out), dense_rows(x), dense_rows(out), offsets.contiguous(), mode)


def _triton_gelu_bwd(grad_out: Tensor, x: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    from edgeops.triton_kernels.ragged.fused_bwd import bias_gelu_bwd

    return bias_gelu_bwd(dense_rows(grad_out), dense_rows(x), bias.contiguous(), tanh)


def _triton_norm_bwd(
    grad_out: Tensor, x: Tensor, x_bias: Tensor | None, residual: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, ...]:
    from edgeops.triton_kernels.ragged.fused_bwd import add_layer_norm_bwd

    x_bias = None if x_bias is None else x_bias.contiguous()
    rows = (dense_rows(residual), mean.contiguous(), rstd.contiguous())
    return add_layer_norm_bwd(dense_rows(grad_out), dense_rows(x), x_bias, *rows, weight.contiguous())


def _of_second(why_not: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
    return lambda grad_out, x, *rest: why_not(x, *rest)


def _why_not_triton_pool_bwd(grad_out: Tensor, x: Tensor, out: Tensor, offsets: Tensor, mode: int) -> Iterator[str]:
    yield from why_not_triton_rows(x)
    if mode == 4:
        yield "has no gradient of logsumexp"


POOL_BWD = (
    Path("triton", _why_not_triton_pool_bwd, _triton_pool_bwd),
    Path("reference", _of_second(why_not_reference), twin.ragged_pool_bwd_reference),
)
GELU_BWD = (
    Path("triton", _of_second(why_not_triton_rows), _triton_gelu_bwd),
    Path("reference", _of_second(why_not_reference), twin.bias_gelu_bwd_reference),
)
NORM_BWD = (
    Path("triton", _of_second(_why_not_triton_norm), _triton_norm_bwd),
    Path("reference", _of_second(why_not_reference), twin.add_layer_norm_bwd_reference),
)


def _check_like(who: str, name: str, y: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if y.shape != shape or y.device != x.device or y.dtype != x.dtype:
        rule = f"{name} must have shape {shape} and the dtype and device of x, {describe(x)}"
        raise ValueError(message(who, rule, describe(y), "Pass what belongs to the forward call."))


def ragged_pool_bwd_cuda(grad_out: Tensor, x: Tensor, out: Tensor, offsets: Tensor, mode: int) -> Tensor:
    """`_ragged_pool_bwd` on a GPU."""
    check_columns("ragged_pool", x)
    check_offsets("ragged_pool", offsets, x)
    for name, y in (("grad_out", grad_out), ("out", out)):
        _check_like("ragged_pool", name, y, (offsets.shape[0] - 1, x.shape[1]), x)
    args = (grad_out, x, out, offsets, mode)
    result: Tensor = pick("ragged_pool", POOL_BWD, *args).run(*args)
    return result


def bias_gelu_bwd_cuda(grad_out: Tensor, x: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """`_bias_gelu_bwd` on a GPU."""
    check_columns("bias_gelu", x, bias=bias)
    _check_like("bias_gelu", "grad_out", grad_out, tuple(x.shape), x)
    args = (grad_out, x, bias, tanh)
    result: tuple[Tensor, Tensor] = pick("bias_gelu", GELU_BWD, *args).run(*args)
    return result


def add_layer_norm_bwd_cuda(
    grad_out: Tensor, x: Tensor, x_bias: Tensor | None, residual: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_add_layer_norm_bwd` on a GPU."""
    check_columns("add_layer_norm", x, x_bias=x_bias, weight=weight)
    for name, y in (("grad_out", grad_out), ("residual", residual)):
        _check_like("add_layer_norm", name, y, tuple(x.shape), x)
    for name, y in (("mean", mean), ("rstd", rstd)):
        if y.shape != x.shape[:1] or y.device != x.device:
            rule = f"{name} must have shape ({x.shape[0]},) on {x.device}"
            raise ValueError(message("add_layer_norm", rule, describe(y), "Pass what the forward op returned."))
    args = (grad_out, x, x_bias, residual, mean, rstd, weight)
    result: tuple[Tensor, Tensor, Tensor, Tensor] = pick("add_layer_norm", NORM_BWD, *args).run(*args)
    return result


KERNELS: dict[str, Callable[..., Any]] = {
    "_ragged_pack": ragged_pack_cuda,
    "_ragged_unpack": ragged_unpack_cuda,
    "_ragged_pool_fwd": ragged_pool_fwd_cuda,
    "_bias_gelu_fwd": bias_gelu_fwd_cuda,
    "_add_layer_norm_fwd": add_layer_norm_fwd_cuda,
    "_ragged_pool_bwd": ragged_pool_bwd_cuda,
    "_bias_gelu_bwd": bias_gelu_bwd_cuda,
    "_add_layer_norm_bwd": add_layer_norm_bwd_cuda,
}
