# SPDX-License-Identifier: Apache-2.0
"""What the GPU paths share: how one is picked, reasons of the machine, checks without a device-to-host copy."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeops._common import describe, message

HALF = (torch.float16, torch.bfloat16)
TRITON_DTYPES = (torch.float32, *HALF)


@dataclass(frozen=True)
class Path:
    """One way to run an op: `why_not(*args)` yields the reasons against it, `run(*args)` does the work."""

    name: str
    why_not: Callable[..., Iterator[str]]
    run: Callable[..., Any]


def pick(who: str, paths: Sequence[Path], *args: Any) -> Path:
    """The first path without a reason against it.

    Raises:
        NotImplementedError: every path has one; the message lists them all.
    """
    reasons: dict[str, list[str]] = {}
    for path in paths:
        reasons[path.name] = list(path.why_not(*args))
        if not reasons[path.name]:
            return path
    inputs = ", ".join(describe(a) for a in args if isinstance(a, Tensor))
    listed = "\n".join(f"  {name}: {'; '.join(found)}" for name, found in reasons.items())
    rule = "has no GPU path for these inputs"
    raise NotImplementedError(message(who, rule, inputs, f"Change what the reasons below name.\n{listed}"))


def why_not_triton_device(x: Tensor) -> Iterator[str]:
    """Reasons that concern the machine: no triton, or a GPU that it does not compile for."""
    if importlib.util.find_spec("triton") is None:
        yield "triton is not installed (pip install 'edgeops[triton]')"
    if x.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(x.device) < (7, 0):
        yield f"triton needs compute capability 7.0, this GPU has {torch.cuda.get_device_capability(x.device)}"


def why_not_triton_rows(x: Tensor, *_: Any) -> Iterator[str]:
    """Reasons against a Triton kernel that computes on the elements of x."""
    yield from why_not_triton_device(x)
    if x.dtype not in TRITON_DTYPES:
        yield f"needs float32, float16 or bfloat16, got {x.dtype}"


def why_not_reference(x: Tensor, *_: Any) -> Iterator[str]:
    """Reasons against the readable twin."""
    if not x.is_floating_point():
        yield f"needs a floating-point dtype, got {x.dtype}"


def check_offsets(who: str, offsets: Tensor, x: Tensor) -> None:
    """Dtype, shape and device of `[N + 1]` offsets; kernels clamp their values to the rows that exist."""
    if offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(message(who, "offsets must be int32 or int64", describe(offsets), "Use layout.offsets."))
    if offsets.dim() != 1 or offsets.shape[0] < 1 or offsets.device != x.device:
        rule = f"offsets must be [N + 1] on {x.device}"
        raise ValueError(message(who, rule, describe(offsets), "Use the layout of that device."))


def check_columns(who: str, x: Tensor, **vectors: Tensor | None) -> None:
    """x is `[T, C]`, every vector `[C]` beside it."""
    if x.dim() != 2:
        raise ValueError(message(who, "x must be [T, C]", describe(x), "Flatten the leading dimensions."))
    for name, vector in vectors.items():
        if vector is not None and (vector.shape != x.shape[1:] or vector.device != x.device):
            rule = f"{name} must have shape ({x.shape[1]},) on {x.device}"
            raise ValueError(message(who, rule, describe(vector), "It needs one value per column of x."))


def dense_rows(x: Tensor) -> Tensor:
    """`x` with last stride 1, copied only if it must be."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()
