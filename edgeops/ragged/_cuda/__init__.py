# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of the ragged ops, a file a topic, and their registration.

A topic module has a table `KERNELS`: kernel op -> function on GPU tensors. Nothing here imports triton before a call
needs it. Ragged spec, section 12.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edgeops import _native
from edgeops.ragged._cuda import attention, conv, gemm, norm, rows, softmax, triangular

TOPICS = (attention, rows, gemm, triangular, softmax, norm, conv)
KERNELS: dict[str, Callable[..., Any]] = {name: run for topic in TOPICS for name, run in topic.KERNELS.items()}

# what csrc/cuda/module_cuda.cpp registers
COMPILED = ("_ragged_pack", "_ragged_unpack")


def register_cuda(library: torch.library.Library, *, compiled: bool | None = None) -> list[str]:
    """Register the GPU kernels above; returns the names of the ops registered here.

    Args:
        library: of kind "IMPL" for the namespace `edgeops`; it must be kept alive.
        compiled: whether the CUDA module `_C_cuda` is loaded, which then serves the ops in `COMPILED` itself; `None`
            asks `edgeops._native`.
    """
    if compiled is None:
        compiled = not _native._WHY_NO_CUDA
    names = [name for name in KERNELS if not (compiled and name in COMPILED)]
    for name in names:
        library.impl(name, KERNELS[name], "CUDA")
    return names
