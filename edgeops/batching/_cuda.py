# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of the batching ops and their registration; the other ops run their twins there.

Nothing here imports triton before a call needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

KERNELS: dict[str, Callable[..., Any]] = {}


def register_cuda(library: torch.library.Library) -> list[str]:
    """Register the GPU kernels above; returns the names of the ops registered here."""
    for name, run in KERNELS.items():
        library.impl(name, run, "CUDA")
    return list(KERNELS)
