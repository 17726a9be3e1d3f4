# SPDX-License-Identifier: Apache-2.0
"""Runs the launches of plans: as they are, or as one CUDA graph for each plan and size of batch.

A graph's kernels read where their record stands from a cell of their own stream; the last one moves the cell on to the
next record. So a batch is one replay, and batches in a row need nothing in between.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeops.batching._cuda import precision
from edgeops.batching._gpu_plan import Launch, Plan
from edgeops.batching._gpu_upload import counts

_ROWS = 64  # tiles of products are those for so many rows, where they must not depend on the number
_CELLS: dict[Any, Tensor] = {}  # by device and stream


@functools.cache
def kernel(name: str) -> Any:
    """A Triton kernel `module:name`."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"edgeops.triton_kernels.batching.{module}"), attribute)


def bind(
    launch: Launch, size: int, aligned: bool, precision: str, invariant: bool
) -> tuple[Any, tuple[int, ...], dict[str, Any]]:
    """A launch for batches of up to `size` rows: a kernel on its grid, arguments and constants."""
    from edgeops.triton_kernels.batching.cells import KINDS
    from edgeops.triton_kernels.batching.rows_linear import rows_linear_config

    constants = {name: KINDS[x] if isinstance(x, torch.dtype) else x for name, x in launch.constants.items()}
    if "COUNT" not in constants:  # zeros are written number by number
        constants["ALIGN"] = 16 if aligned else 1
    if launch.rows:
        grid = -(-size // launch.rows), -(-launch.width // launch.columns)
    else:
        config = rows_linear_config(launch.constants["KIND"], _ROWS if invariant else size)
        constants |= {"PRECISION": precision, "num_warps": config.num_warps, "num_stages": config.num_stages}
        if launch.kernel.endswith("_wgrad_kernel"):  # tiles of the weight, whatever the number of rows
            wide = 64 if launch.constants["KIND"] != torch.float32 else 32
            constants |= {"BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_M": wide, "num_warps": 4, "num_stages": 2}
            grid = -(-launch.columns // 64), -(-launch.width // 64)
        else:
            constants |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
            grid = -(-size // config.block_m), -(-launch.width // config.block_n)
    return kernel(launch.kernel)[grid], launch.arguments, constants


def has_graphs(device: torch.device) -> bool:
    """Whether a device runs CUDA graphs."""
    return device.type == "cuda"


def capture(device: torch.device, run: Callable[[], None]) -> Any:
    """What `run` launches as a graph, which has a method `replay`; nothing runs yet."""
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            run()
        finally:
            graph.capture_end()
    return graph


class Launcher:
    """Runs batches on the current stream of a device.

    Args:
        device: of all tensors.
        graphs: "auto" (from the second batch of a size on), `True` (from the first on) or `False`.
        invariant: tiles of products do not depend on the number of rows, so neither do the bits of a row.
    """

    def __init__(self, device: torch.device, graphs: bool | str, invariant: bool) -> None:
        self._device = device
        self._stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        self._graphs = graphs if has_graphs(device) else False
        self._how = precision(), invariant
        self._next = -1  # the record that the cell stands at

    def launch(self, plan: Plan, size: int, aligned: bool, cell: Tensor, skipped: bool = False) -> None:
        """Run a batch whose record's address stands in `cell`, kernel by kernel."""
        key = size, aligned, *self._how, skipped
        bound = plan.bound.get(key)
        if bound is None:
            launches = plan.skipped if skipped else plan.launches
            bound = plan.bound[key] = [bind(each, size, aligned, *self._how) for each in launches if each.width > 0]
        for run, arguments, constants in bound:
            run(cell, *arguments, **constants)
        counts["launches"] += len(bound)

    def run(self, plan: Plan, size: int, aligned: bool, cells: Tensor, at: int) -> None:
        """Run the batch of record `at`, by a graph where there is one or should be."""
        if not self._graphs:
            self.launch(plan, size, aligned, cells[at : at + 1])
            return
        key = size, aligned, *self._how, self._stream
        graph: Any = plan.graphs.get(key)
        if graph is None:
            first = key not in plan.seen
            if first:  # compiles the kernels, which a capture must not
                plan.seen.add(key)
                self.launch(plan, size, aligned, cells[at : at + 1])
            if not first or self._graphs is True:
                graph = plan.graphs[key] = self._captured(plan, size, aligned)
            if first:
                return
        if self._next != at:
            self._cell().copy_(cells[at : at + 1])
        graph.replay()
        counts["replays"] += 1
        self._next = at + 1

    def _cell(self) -> Tensor:
        key = self._device, self._stream
        cell = _CELLS.get(key)
        if cell is None:
            cell = _CELLS[key] = torch.zeros(1, dtype=torch.int64, device=self._device)
            kernel("segments:_advance_kernel")[(1,)](cell, 0)  # compiled outside of a capture
        return cell

    def _captured(self, plan: Plan, size: int, aligned: bool) -> Any:
        """A graph of a batch's launches, and of the step to the next record."""
        cell, advance = self._cell(), kernel("segments:_advance_kernel")

        def run() -> None:
            self.launch(plan, size, aligned, cell)
            advance[(1,)](cell, plan.length)

        counts["captures"] += 1
        return capture(self._device, run)
