# SPDX-License-Identifier: Apache-2.0
"""Timing several candidates against each other on a machine that others use at the same time.

One run, every candidate once a round, the order rotated (and turned round after each cycle), so that a slow spell of
the machine hits all candidates of a round alike and no candidate always follows the same one.
"""

from __future__ import annotations

import math
import time
import timeit
from collections.abc import Callable, Mapping

from .stats import Samples

CLOCKS = ("process", "wall", "cuda")
_MAX_CALLS = 1_000_000
_STALL_S = 2.0


def _cuda_seconds() -> float:
    """Wall time once all work queued on the current CUDA device is done."""
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def _reader(clock: str) -> Callable[[], float]:
    readers = {"process": time.process_time, "wall": time.perf_counter, "cuda": _cuda_seconds}
    if clock not in readers:
        raise ValueError(
            f"interleave: clock must be one of {', '.join(CLOCKS)}; got {clock!r}. "
            "Use 'process' on a shared machine, 'wall' for several threads, 'cuda' for GPU work."
        )
    return readers[clock]


def _block_seconds(run: Callable[[], object], calls: int, read: Callable[[], float]) -> float:
    return timeit.Timer(run, timer=read).timeit(calls)


def _calls_per_block(name: str, run: Callable[[], object], read: Callable[[], float], min_block_s: float) -> int:
    """Grow the block until the clock sees at least `min_block_s`; a single long call is a block of one."""
    calls, wall = 1, time.perf_counter()
    while True:
        seen = _block_seconds(run, calls, read)
        if seen >= min_block_s or calls >= _MAX_CALLS:
            break
        if seen <= 0 and time.perf_counter() - wall > _STALL_S:
            raise ValueError(
                f"interleave: the chosen clock must advance while a candidate runs; got 0 s for {calls} calls of "
                f"{name!r} in {time.perf_counter() - wall:.1f} s of wall time. Use clock='wall' for work that waits."
            )
        wanted = calls * min_block_s / seen if seen > 0 else math.inf
        calls = min(_MAX_CALLS, max(calls + 1, math.ceil(min(wanted * 1.1, calls * 10))))
    if seen <= 0:
        raise ValueError(
            f"interleave: the chosen clock must advance while a candidate runs; got 0 s for {calls} calls of {name!r}. "
            "Use clock='wall' for work that waits."
        )
    return calls


def _order(count: int, round_index: int) -> list[int]:
    """Rotated order of one round; every second full cycle runs backwards."""
    cycle, shift = divmod(round_index, count)
    order = [(shift + i) % count for i in range(count)]
    return order[::-1] if cycle % 2 else order


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 9,
    warmup: int = 2,
    clock: str = "process",
    min_block_s: float | None = 0.02,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Samples]:
    """Time all candidates in one interleaved run.

    Args:
        candidates: name -> callable without arguments; its result is dropped.
        rounds: samples per candidate (>= 1).
        warmup: calls of each candidate before anything is timed (>= 0).
        clock: `"process"` = CPU seconds of this process, all its threads added up (other programs do not count);
            `"wall"` = elapsed seconds; `"cuda"` = elapsed seconds with the device drained at both ends of a block.
        min_block_s: seconds a timed block lasts at least, on the chosen clock (> 0). Shorter calls are repeated.
            `None`: a block is one call, and nothing runs but what is timed, for work that moves on with every call.
        progress: called as `progress(done, total)` after each timed block.

    Returns:
        name -> `Samples`, one sample a round, in the order of `candidates`.

    Raises:
        ValueError: no candidate, a bad number, an unknown clock, or a clock that stands still while a candidate runs.

    >>> seen = interleave({"sum": lambda: sum(range(99)), "len": lambda: len("ab")}, rounds=3, min_block_s=1e-4)
    >>> list(seen), len(seen["sum"].seconds)
    (['sum', 'len'], 3)
    """
    if not candidates:
        raise ValueError("interleave: at least one candidate is needed; got none. Pass a dict of name -> callable.")
    if rounds < 1 or warmup < 0 or not (min_block_s is None or min_block_s > 0):
        raise ValueError(
            "interleave: rounds >= 1, warmup >= 0 and min_block_s > 0 are required; "
            f"got rounds={rounds}, warmup={warmup}, min_block_s={min_block_s}. Use the defaults if in doubt."
        )
    read = _reader(clock)
    names = list(candidates)
    for name in names:
        for _ in range(warmup):
            candidates[name]()
    calls = {
        name: 1 if min_block_s is None else _calls_per_block(name, candidates[name], read, min_block_s)
        for name in names
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    total = rounds * len(names)
    for index in range(rounds):
        for place, which in enumerate(_order(len(names), index)):
            name = names[which]
            seconds[name].append(_block_seconds(candidates[name], calls[name], read) / calls[name])
            if progress is not None:
                progress(index * len(names) + place + 1, total)
    return {name: Samples(tuple(seconds[name]), calls=calls[name], clock=clock) for name in names}
