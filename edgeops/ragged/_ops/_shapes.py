# SPDX-License-Identifier: Apache-2.0
"""What the fake kernels of several topics share."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> torch.dtype:
    """The dtype of statistics: float32 for half precision, otherwise that of x."""
    return torch.promote_types(x.dtype, torch.float32)
