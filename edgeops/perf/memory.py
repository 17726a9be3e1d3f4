# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one call.

On the host the peak is that of torch's own allocator, read from the profiler's allocation events: it is exact and
repeatable, where the resident set of a warm process mostly shows what earlier calls left in the heap. Memory that a
library takes with plain `malloc` is not in it; `method="resident"` covers that where Linux lets a process reset its own
high-water mark.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_LOG_LEVEL = "KINETO_LOG_LEVEL"


@dataclass(frozen=True)
class PeakMemory:
    """Bytes above the level before the call, at the worst moment; `method` says how they were counted."""

    bytes: int
    method: str


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep the profiler's start and stop lines off stderr; it reads this variable at its first start."""
    if _LOG_LEVEL in os.environ:
        yield
        return
    os.environ[_LOG_LEVEL] = "99"
    try:
        yield
    finally:
        del os.environ[_LOG_LEVEL]


def _allocator_peak(run: Callable[[], object]) -> int:
    from torch.autograd.profiler import profile

    with _quiet_profiler(), profile(profile_memory=True, use_kineto=False) as seen:
        result = run()
        del result
    level = peak = 0
    for event in sorted(seen.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]" and event.device_type() == torch.profiler.DeviceType.CPU:
            level += event.nbytes()
            peak = max(peak, level)
    return peak


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise NotImplementedError(
        f"peak_memory: method='resident' needs {field} in {_STATUS}; got none. Use method='allocator'."
    )


def _resident_peak(run: Callable[[], object]) -> int:
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError as error:
        raise NotImplementedError(
            f"peak_memory: method='resident' needs Linux and a writable {_CLEAR_REFS}; got {error}. "
            "Use method='allocator'."
        ) from error
    before = _status_bytes("VmRSS")
    result = run()
    after = _status_bytes("VmHWM")
    del result
    return max(0, after - before)


def _cuda_peak(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return max(0, peak)


def peak_memory(run: Callable[[], object], *, method: str = "allocator") -> PeakMemory:
    """Run a callable once and report how much memory it took at its worst moment, results included.

    Args:
        run: callable without arguments; its result is dropped.
        method: `"allocator"` = bytes asked from torch's host allocator; `"resident"` = growth of the process's resident
            set (Linux); `"cuda"` = bytes asked from torch's CUDA allocator on the current device.

    Raises:
        ValueError: unknown method.
        NotImplementedError: the machine cannot measure that way.

    >>> import torch
    >>> peak_memory(lambda: torch.ones(1000) + torch.ones(1000)).bytes
    12000
    """
    methods = {"allocator": _allocator_peak, "resident": _resident_peak, "cuda": _cuda_peak}
    if method not in methods:
        raise ValueError(f"peak_memory: method must be one of {', '.join(methods)}; got {method!r}. Use 'allocator'.")
    if method == "cuda" and not torch.cuda.is_available():
        raise NotImplementedError("peak_memory: method='cuda' needs a CUDA device; got none. Use method='allocator'.")
    gc.collect()
    return PeakMemory(bytes=methods[method](run), method=method)
