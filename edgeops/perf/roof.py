# SPDX-License-Identifier: Apache-2.0
"""The two roofs of a machine, measured now: float32 matrix multiplication and memory copy.

Quoted peak figures are of no use on a shared virtual machine. `sgemm_work` and `copy_work` give the roof as one more
candidate for `edgeops.perf.interleave`, which is how benchmarks compare a kernel with the roof of the same seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .clock import interleave


@dataclass(frozen=True)
class Roof:
    """Measured roofs: `sgemm_gflops` in 1e9 FLOP/s (a multiply and an add count as two), `copy_gbps` in 1e9 bytes/s."""

    sgemm_gflops: float
    copy_gbps: float


@contextmanager
def thread_count(threads: int | None) -> Iterator[int]:
    """Run a block with `threads` intra-op threads and restore the count afterwards; `None` leaves it alone.

    Raises:
        ValueError: `threads < 1`.
    """
    before = torch.get_num_threads()
    if threads is None:
        yield before
        return
    if threads < 1:
        raise ValueError(f"thread_count: threads must be 1 or more; got {threads}. Pass None to keep {before}.")
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)


def sgemm_work(
    size: int = 1024, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], object], float]:
    """One `[size, size] x [size, size]` product into a ready buffer, and its FLOP count `2 * size**3`.

    1024 fills a processor core; a large GPU wants 8192. Another dtype than float32 gives the roof of that dtype.

    Raises:
        ValueError: `size < 1`.

    >>> run, flops = sgemm_work(8)
    >>> run().shape, flops
    (torch.Size([8, 8]), 1024.0)
    """
    if size < 1:
        raise ValueError(f"sgemm_work: size must be 1 or more; got {size}. 1024 is large enough for one core.")
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(size, size, generator=generator).to(device, dtype)
    right = torch.randn(size, size, generator=generator).to(device, dtype)
    out = torch.empty(size, size, device=device, dtype=dtype)
    return (lambda: torch.mm(left, right, out=out)), 2.0 * size**3


def copy_work(moved: int = 128 << 20, device: str | torch.device = "cpu") -> tuple[Callable[[], object], float]:
    """One float32 copy that moves about `moved` bytes, read plus write, and the exact number of bytes.

    Several times the last cache level makes it the roof of memory (the default); the bytes of a kernel make it the roof
    of the level of the cache that the kernel works in.

    Raises:
        ValueError: `moved < 8`.

    >>> run, moved = copy_work(1 << 20)
    >>> run() is not None, moved
    (True, 1048576.0)
    """
    if moved < 8:
        raise ValueError(f"copy_work: moved must be 8 bytes or more; got {moved}. The default is {128 << 20}.")
    source = torch.zeros(moved // 8, device=device)
    target = torch.ones_like(source)
    return (lambda: target.copy_(source)), 2.0 * source.numel() * source.element_size()


def default_clock(threads: int) -> str:
    """`"process"` for one thread, where it ignores other programs; `"wall"` for several, whose CPU seconds add up.

    >>> default_clock(1), default_clock(2)
    ('process', 'wall')
    """
    return "process" if threads == 1 else "wall"


def _rate(work: tuple[Callable[[], object], float], threads: int | None, rounds: int, clock: str | None) -> float:
    run, amount = work
    with thread_count(threads) as count:
        seen = interleave({"roof": run}, rounds=rounds, clock=clock or default_clock(count))
    return amount / seen["roof"].median / 1e9


def sgemm_roof(threads: int | None = None, size: int = 1024, *, rounds: int = 5, clock: str | None = None) -> float:
    """Float32 matrix-multiplication rate, GFLOP/s: the median of `rounds` blocks.

    Args:
        threads: intra-op threads, `None` = as set now.
        size: edge of the square matrices.
        rounds: timed blocks.
        clock: as `interleave`; `None` = `default_clock(threads)`. With `"process"` and several threads the rate is per
            CPU second, not per second.

    >>> sgemm_roof(1, 64, rounds=1) > 0
    True
    """
    return _rate(sgemm_work(size), threads, rounds, clock)


def copy_roof(
    threads: int | None = None, moved: int = 128 << 20, *, rounds: int = 5, clock: str | None = None
) -> float:
    """Memory-copy rate, GB/s with read and write both counted: the median of `rounds` blocks.

    >>> copy_roof(1, 1 << 20, rounds=1) > 0
    True
    """
    return _rate(copy_work(moved), threads, rounds, clock)


def measure_roof(threads: int | None = None, *, rounds: int = 5, clock: str | None = None) -> Roof:
    """Both roofs, one after the other (about half a second)."""
    return Roof(
        sgemm_gflops=sgemm_roof(threads, rounds=rounds, clock=clock),
        copy_gbps=copy_roof(threads, rounds=rounds, clock=clock),
    )
