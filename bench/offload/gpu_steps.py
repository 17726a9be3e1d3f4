# SPDX-License-Identifier: Apache-2.0
"""Whole steps on a GPU: what fits, what the link carries, how long a step takes, what overlaps (spec section 14).

Items 18, 19, 22 and 23. DeepSpeed's ZeRO-Offload is no part of 22: it wants a process group and a build of its own.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.offload.decoder import Block, decoder, layers
from bench.offload.gpu_tasks import Lsp, Native, Throttle, Zero
from edgeops import perf
from edgeops.offload import LSPAdamW

Figures = dict[str, float]
GIB = 2**30
# model, device memory, sequences and their length: those of the paper
FITS = (("1.3B", 4, 1, 384), ("7B", 24, 4, 1024))
RATE = 12e9  # bytes a second of the throttled link
D, R = 512, 4
LAYERS, STEPS = 8, 5
CORES = os.cpu_count() or 1  # the CPU's part of a step has all of them


@contextmanager
def memory_cap(nbytes: int, device: torch.device) -> Iterator[None]:
    """At most so much memory for torch's allocator."""
    _empty()
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / whole), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        _empty()


def _empty() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def steps_of(name: str, batch: int, length: int, device: torch.device, subspace: bool, steps: int = 2) -> int:
    """How many of the steps a decoder takes before memory runs out: through subspaces, or with AdamW as it is."""
    done = 0
    try:
        model = decoder(name, device)
        optimizer: torch.optim.Optimizer
        if subspace:
            width = min(D, min(model.blocks[0].q.weight.shape) // 2)
            optimizer = LSPAdamW(model, d=width, r=R, targets=["blocks.*"], fit_steps=2)
        else:
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
        tokens = torch.randint(0, model.head.out_features, (batch, length), device=device)
        for _ in range(steps):
            model(tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        pass
    return done


def memory(device: torch.device) -> Figures:
    """OG18: steps under a cap of memory, through subspaces and with full AdamW."""
    figures: Figures = {}
    for name, size, batch, length in FITS:
        for subspace, what in ((True, "LSPAdamW"), (False, "full AdamW")):
            with memory_cap(size * GIB, device):
                figures[f"{name} in {size} GiB: steps of {what}"] = steps_of(name, batch, length, device, subspace)
    return figures


def seconds_of(run: Callable[[], Any], repeats: int = 7) -> float:
    """Median elapsed time on the current stream."""
    run()
    seen = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        seen.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(seen)


def link(device: torch.device) -> Figures:
    """OG19: pinned copies of 256 MiB as they are, in GB/s, and how far a throttled copy is from its rate."""
    size = 256 * 2**20
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
    there = torch.zeros(size, dtype=torch.uint8, device=device)
    throttle = Throttle(RATE, device)
    pairs = {"down": (host, there), "up": (there, host)}
    figures: Figures = {}
    off = 0.0
    for name, (to, source) in pairs.items():
        figures[f"pinned copies {name}"] = size / seconds_of(partial(to.copy_, source, non_blocking=True)) / 1e9
        off = max(off, abs(seconds_of(partial(throttle.copy, to, source)) * RATE / size - 1))
    return figures | {"throttled copies, deviation from 12 GB/s": off}


def step(blocks: Sequence[nn.Module], x: Tensor, target: Tensor) -> None:
    """Forward and backward of a stack of layers."""
    out = x
    for block in blocks:
        out = block(out)
    nn.functional.mse_loss(out.float(), target).backward()


def _run_of(make: Callable[[nn.ModuleList], Any], device: torch.device, name: str, count: int, tokens: int) -> Any:
    """A trainer over fresh layers, and a step of it."""
    blocks = layers(name, count, device)
    trainer = make(blocks)
    first = blocks[0]
    assert isinstance(first, Block)
    x = torch.randn(1, tokens, first.q.in_features, device=device, dtype=torch.bfloat16)
    target = torch.randn(x.shape, device=device)
    return trainer, lambda: trainer.step(lambda: step(blocks, x, target))


def step_times(device: torch.device, name: str = "7B", count: int = LAYERS, tokens: int = 4096) -> Figures:
    """OG22: eight layers of 7B, elapsed time of a step at a throttled link over that of a GPU that holds everything."""
    makers: dict[str, Callable[[nn.ModuleList], Any]] = {
        "native": Native,
        "lsp": lambda blocks: Lsp(blocks, D if name != "tiny" else 16, R, RATE, device),
        "zero": lambda blocks: Zero(blocks, RATE, device),
    }
    seconds = {}
    for what, make in makers.items():
        _empty()
        trainer, run = _run_of(make, device, name, count, tokens)
        with perf.thread_count(CORES), trainer:
            for _ in range(3):
                run()
            trainer.finish()
            # one span over several steps: what is still under way at the end of a step belongs to the next
            seconds[what] = timed_steps(run, trainer.finish, device)
        del trainer, run
    return {
        "step over native, d = 512": seconds["lsp"] / seconds["native"],
        "over ZeRO-Offload": seconds["zero"] / seconds["lsp"],
    }


def timed_steps(run: Callable[[], Any], finish: Callable[[], Any], device: torch.device, steps: int = STEPS) -> float:
    """Elapsed seconds a step, from nothing under way to nothing under way."""
    begin = time.perf_counter()
    for _ in range(steps):
        run()
    finish()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps


def gaps_of(events: Sequence[dict[str, Any]]) -> Figures:
    """From a profiler's events: the longest gap between kernels of the busiest stream, and what ran beside them.

    Spans named "update" are the CPU's Adam of one layer. A kernel that only spins belongs to the throttled link.
    """
    spans = [e for e in events if e.get("ph") == "X"]
    kernels = [e for e in spans if e.get("cat") == "kernel" and "spin" not in e["name"]]
    updates = [e for e in spans if e["name"] == "update" and e.get("cat") == "user_annotation"]
    if not kernels or not updates:
        return {}
    streams: dict[Any, list[dict[str, Any]]] = {}
    for e in kernels:
        streams.setdefault(e["args"]["stream"], []).append(e)
    busiest = max(streams.values(), key=lambda found: sum(e["dur"] for e in found))
    busiest.sort(key=lambda e: e["ts"])
    longest, through = 0.0, busiest[0]["ts"]
    for e in busiest:
        longest = max(longest, e["ts"] - through)
        through = max(through, e["ts"] + e["dur"])
    beside = {
        "down": [e for e in spans if e.get("cat") == "gpu_memcpy" and "DtoH" in e["name"]],
        "CPU": updates,
        "up": [e for e in spans if e.get("cat") == "gpu_memcpy" and "HtoD" in e["name"]],
    }

    def overlaps(e: dict[str, Any]) -> bool:
        return any(k["ts"] < e["ts"] + e["dur"] and e["ts"] < k["ts"] + k["dur"] for k in busiest)

    never = sum(not any(overlaps(e) for e in found) for found in beside.values())
    return {
        "longest gap of compute over the longest update of a layer": longest / max(e["dur"] for e in updates),
        "stages that never run beside compute": float(never),
    }


def timeline(device: torch.device, name: str = "7B", count: int = LAYERS, tokens: int = 4096) -> Figures:
    """OG23: what the profiler saw in two steps."""
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity, profile

    width = D if name != "tiny" else 16
    trainer, run = _run_of(lambda blocks: Lsp(blocks, width, R, RATE, device), device, name, count, tokens)
    with perf.thread_count(CORES), trainer, tempfile.TemporaryDirectory() as folder:
        for _ in range(3):
            run()
        # the updates run in a thread of the pipeline, which a profiler leaves out unless told
        config = _ExperimentalConfig(profile_all_threads=True)
        wanted = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=wanted, experimental_config=config) as seen:
            for _ in range(2):
                run()
            trainer.finish()
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return gaps_of(events)
