# SPDX-License-Identifier: Apache-2.0
"""How data goes between device and host: within memory, over CUDA streams. A throttled one is in `emulate`.

A `Link` runs a task's copies and says when they are through; the pipeline calls it from its worker threads, so a link
may wait. Times are seconds of `time.perf_counter`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from edgeops._common import message


class Task(Protocol):
    """One layer's compressed gradient on its way to becoming an update.

    `down` copies it to the host, `update` turns it into the update there, `up` copies that back, and `apply` adds it to
    the weights. The pipeline calls each once and in this order: `down`, `update` and `up` in worker threads, `apply` in
    the thread that waits for the layer. Only `apply` may touch weights.

    Attributes:
        layer: 0 or more, in the order of the forward.
        down_bytes, up_bytes: what goes over the link.
    """

    layer: int
    down_bytes: int
    up_bytes: int

    def down(self) -> None: ...
    def update(self) -> None: ...
    def up(self) -> None: ...
    def apply(self) -> None: ...


class Link(Protocol):
    """What carries tasks. `ready` is when the task could have started; the results are when it was through."""

    def submitted(self, task: Task) -> None:
        """Called in the thread that made the gradient, as it is handed over."""

    def down(self, task: Task, ready: float) -> float:
        """Run `task.down` and return when it was through."""

    def up(self, task: Task, ready: float) -> float:
        """Run `task.up` and return when it was through."""

    def before_apply(self, task: Task) -> None:
        """Called before `task.apply`, in the same thread."""

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A persistent buffer on the host that this link copies fast to and from."""


class MemoryLink:
    """Device and host share memory: tasks run as they are."""

    def submitted(self, task: Task) -> None:
        """Nothing to prepare."""

    def down(self, task: Task, ready: float) -> float:
        """Run `task.down`."""
        task.down()
        return time.perf_counter()

    def up(self, task: Task, ready: float) -> float:
        """Run `task.up`."""
        task.up()
        return time.perf_counter()

    def before_apply(self, task: Task) -> None:
        """Nothing to wait for."""

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Plain memory, zeroed."""
        return torch.zeros(tuple(shape), dtype=dtype)


class CudaLink:
    """Two persistent side streams of a CUDA device, one for each direction, and pinned host buffers.

    A task's copies must be `non_blocking` and go to and from `host_buffer`s. The down stream waits for the compute
    stream's work at `submitted`; workers wait for the event after a copy, without the GIL; the compute stream waits for
    the event of the upload before `apply`. Streams are made once: new ones each step would grow the allocator's pools.

    Args:
        device: a CUDA device.

    Raises:
        RuntimeError: no CUDA device.
    """

    def __init__(self, device: torch.device | str = "cuda") -> None:
        if not torch.cuda.is_available():
            rule, advice = "needs a CUDA device", "Use MemoryLink or EmulatedLink."
            raise RuntimeError(message("CudaLink", rule, "none", advice))
        self.device = torch.device(device)
        self._down = torch.cuda.Stream(self.device)
        self._up = torch.cuda.Stream(self.device)
        self._ready: dict[int, Any] = {}
        self._through: dict[int, Any] = {}
        self._pageable = False

    def submitted(self, task: Task) -> None:
        """Note where the compute stream stands."""
        self._ready[id(task)] = torch.cuda.current_stream(self.device).record_event()

    def down(self, task: Task, ready: float) -> float:
        """Copy on the down stream and wait for the copy."""
        with torch.cuda.stream(self._down):
            self._down.wait_event(self._ready.pop(id(task)))
            task.down()
            done = self._down.record_event()
        done.synchronize()
        return time.perf_counter()

    def up(self, task: Task, ready: float) -> float:
        """Copy on the up stream and wait for the copy."""
        with torch.cuda.stream(self._up):
            task.up()
            done = self._up.record_event()
        self._through[id(task)] = done
        done.synchronize()
        return time.perf_counter()

    def before_apply(self, task: Task) -> None:
        """Order the apply after the upload on the compute stream."""
        torch.cuda.current_stream(self.device).wait_event(self._through.pop(id(task)))

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Pinned memory; pageable, with one warning, where no more can be pinned: its copies block."""
        try:
            return torch.zeros(tuple(shape), dtype=dtype, pin_memory=True)
        except RuntimeError as error:
            if not self._pageable:
                first = str(error).splitlines()[0]
                warnings.warn(
                    f"CudaLink: no more host memory can be pinned ({first}); copies of further buffers will not "
                    "overlap. Raise the limit of locked memory or use a smaller d.",
                    stacklevel=2,
                )
                self._pageable = True
            return torch.zeros(tuple(shape), dtype=dtype)
