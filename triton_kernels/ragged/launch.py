# SPDX-License-Identifier: Apache-2.0
"""What every launcher here needs: the device guard, the switch of the tuner, and cost reports for profilers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch


def on_device(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """A guard that makes the GPU of `x` current. Triton launches on the current device, not on the tensors' one."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


# stands for "no limit" in the size of a broadcast dimension of the bias
UNLIMITED = 2**31 - 1


def bias_arguments(bias: torch.Tensor | None) -> tuple[tuple[int, ...], int, int]:
    """Strides, rows and columns of a bias as kernels take them: a broadcast dimension must not advance nor end."""
    if bias is None:
        return (0, 0, 0, 0), 0, 0
    strides = tuple(0 if n == 1 else s for n, s in zip(bias.shape, bias.stride(), strict=True))
    rows, cols = (n if n > 1 else UNLIMITED for n in bias.shape[2:])
    return strides, rows, cols


def tuning_wanted(x: torch.Tensor) -> bool:
    """Whether a launch on `x` may time several configurations: only with `EDGEOPS_TRITON_AUTOTUNE=1`.

    Off by default: compiling the candidates takes seconds for each new kind of call, and a fixed configuration gives
    every sequence the same bits in any batch. Timing synchronises, so it never happens inside a CUDA graph capture.
    """
    if not x.is_cuda or os.environ.get("EDGEOPS_TRITON_AUTOTUNE", "0") != "1":
        return False
    return not torch.cuda.is_current_stream_capturing()


def traffic(name: str, *tensors: str) -> Callable[[Any, Any, dict[str, Any]], dict[str, Any]]:
    """A launch-metadata hook that reports the bytes of the named tensor arguments, each moved once."""

    def hook(grid: Any, kernel: Any, args: dict[str, Any]) -> dict[str, Any]:
        moved = sum(args[t].numel() * args[t].element_size() for t in tensors if args[t] is not None)
        return {"name": name, "bytes": moved}

    return hook
