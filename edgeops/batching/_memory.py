# SPDX-License-Identifier: Apache-2.0
"""Buffers of the executor, kept between flushes: fresh memory costs more to touch than small batches to compute."""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import torch
from torch import Tensor

_MOST = 64 << 20  # bytes kept that nobody uses


class Pool(threading.local):
    """Memory by dtype and device; what nobody refers to any more is given out again."""

    def __init__(self) -> None:
        self._blocks: dict[Any, list[tuple[Tensor, weakref.ref[Tensor]]]] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor without content. It must not be handed to anybody who could keep a view of it."""
        size = math.prod(shape)
        key = (dtype, device)
        blocks = self._blocks.setdefault(key, [])
        best = -1
        for i, (block, user) in enumerate(blocks):
            fits = size <= block.numel() <= 2 * size + 1024
            if fits and user() is None and (best < 0 or block.numel() < blocks[best][0].numel()):
                best = i
        if best < 0:
            self._drop()
            block = torch.empty(size, dtype=dtype, device=device)
            tensor = block[:size].view(shape)
            self._blocks[key].append((block, weakref.ref(tensor)))
        else:
            block = blocks[best][0]
            tensor = block[:size].view(shape)
            blocks[best] = (block, weakref.ref(tensor))
        return tensor

    def _drop(self) -> None:
        """Forget unused blocks, the oldest first, until no more than `_MOST` bytes of them are left."""
        unused = sum(b.nbytes for blocks in self._blocks.values() for b, user in blocks if user() is None)
        for key, blocks in self._blocks.items():
            left = []
            for block, user in blocks:
                if unused > _MOST and user() is None:
                    unused -= block.nbytes
                else:
                    left.append((block, user))
            self._blocks[key] = left


POOL = Pool()
