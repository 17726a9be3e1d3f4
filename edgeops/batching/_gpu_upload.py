# SPDX-License-Identifier: Apache-2.0
"""Index lists and launch records of a flush: one staging buffer, one copy to the GPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]
_ALIGN = 16
counts: Counter[str] = Counter()  # "uploads", "launches", "captures", "replays" of this process; tests read it


class Upload:
    """Arrays that travel together. `add` or `reserve` all, then ask for addresses, then `send`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: list[tuple[int, Array]] = []
        self._size = 0
        self._there: Tensor | None = None

    def reserve(self, nbytes: int) -> int:
        """Room for so many bytes. Returns their offset."""
        offset = self._size
        self._size += -(-nbytes // _ALIGN) * _ALIGN
        return offset

    def add(self, array: Array) -> int:
        """An array to be sent. Returns its offset in bytes."""
        offset = self.reserve(array.nbytes)
        self.put(offset, array)
        return offset

    def put(self, offset: int, array: Array) -> None:
        """An array for room that was reserved."""
        if array.nbytes:
            self._parts.append((offset, array))

    def address(self, offset: int) -> int:
        """Where something will lie on the GPU; the room is taken with the first question."""
        if self._there is None:
            self._there = torch.empty(max(self._size, _ALIGN), dtype=torch.uint8, device=self._device)
        return self._there.data_ptr() + offset

    def send(self) -> None:
        """Copy all parts, at once."""
        self.address(0)
        assert self._there is not None
        pinned = self._device.type == "cuda"
        # PyTorch keeps pinned memory and gives it out again only after the copy that reads it
        staging = torch.empty(self._there.shape, dtype=torch.uint8, pin_memory=pinned, device="cpu")
        to = staging.numpy()
        for offset, array in self._parts:
            to[offset : offset + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        self._there.copy_(staging, non_blocking=True)
        self._parts.clear()
        counts["uploads"] += 1

    def view(self, offset: int, count: int, dtype: torch.dtype) -> Tensor:
        """Some of what was sent as a tensor."""
        assert self._there is not None
        return self._there[offset : offset + count * dtype.itemsize].view(dtype)
