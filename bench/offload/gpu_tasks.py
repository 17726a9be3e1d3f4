# SPDX-License-Identifier: Apache-2.0
"""Trainers of a stack of layers that differ in where the optimizer is: on the GPU, behind a link, behind it compressed.

All take a step as `trainer.step(run)`, `run` being forward and backward of all layers, and end with `finish`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from edgeops.offload import Pair, SparseProjector, SubspaceLinear
from edgeops.offload.links import CudaLink, MemoryLink
from edgeops.offload.pipeline import Pipeline

CHUNK = 4 * 2**20  # bytes between two waits of a throttled copy


class Throttle:
    """Copies at a rate: parts of 4 MiB, each followed by a wait of the stream.

    Args:
        rate: bytes a second; at or above what the link does, copies run as they are.
        device: the GPU. On a CPU copies run as they are.
    """

    def __init__(self, rate: float, device: torch.device) -> None:
        self.rate, self.on_gpu = rate, device.type == "cuda"
        if not self.on_gpu:
            return
        self.cycles = self._measure(lambda: torch.cuda._sleep(10_000_000), 10_000_000)
        host = torch.zeros(CHUNK, dtype=torch.uint8, pin_memory=True)
        there = torch.zeros(CHUNK, dtype=torch.uint8, device=device)
        self.own = {
            "cpu": self._measure(lambda: host.copy_(there, non_blocking=True), CHUNK),
            "cuda": self._measure(lambda: there.copy_(host, non_blocking=True), CHUNK),
        }

    @staticmethod
    def _measure(run: Callable[[], Any], amount: int) -> float:
        """Amount a second on the current stream, the best of some runs."""
        best = float("inf")
        for _ in range(5):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end) / 1e3)
        return amount / best

    def copy(self, to: Tensor, source: Tensor) -> None:
        """Copy dense tensors of one dtype on the current stream, at the rate."""
        to, source = to.view(-1), source.reshape(-1)
        if not self.on_gpu:
            to.copy_(source)
            return
        part = CHUNK // source.element_size()
        for first in range(0, source.numel(), part):
            piece = source[first : first + part]
            to[first : first + part].copy_(piece, non_blocking=True)
            nbytes = piece.numel() * piece.element_size()
            wait = nbytes / self.rate - nbytes / self.own[to.device.type]
            if wait > 0:
                torch.cuda._sleep(int(wait * self.cycles))


class Native:
    """Everything on the device: torch's fused AdamW."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.optimizer = torch.optim.AdamW(blocks.parameters(), lr=1e-5, fused=True)

    def step(self, run: Callable[[], None]) -> None:
        run()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def finish(self) -> None:
        """Nothing is under way."""

    def __enter__(self) -> Native:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()


def _pipeline(count: int, policy: str, device: torch.device) -> tuple[Any, Any]:
    link = CudaLink(device) if device.type == "cuda" else MemoryLink()
    return Pipeline(count, policy, link=link), link


class _Offloaded:
    """A pipeline over layers: a layer's task goes off when the last of its gradients is there."""

    def __init__(self, blocks: nn.ModuleList, policy: str, rate: float, device: torch.device) -> None:
        self.pipeline, self.link = _pipeline(len(blocks), policy, device)
        self.throttle, self.tasks = Throttle(rate, device), [self.task(i, block) for i, block in enumerate(blocks)]
        for task, block in zip(self.tasks, blocks, strict=True):
            block.register_forward_pre_hook(lambda *_, layer=task.layer: self._before(layer))
            for p in task.leaves:
                p.register_post_accumulate_grad_hook(lambda _, task=task: self._arrived(task))

    def task(self, layer: int, block: nn.Module) -> _Task:
        raise NotImplementedError

    def _before(self, layer: int) -> None:
        if layer in self.pipeline.pending:
            self.pipeline.wait(layer)

    def _arrived(self, task: _Task) -> None:
        task.missing -= 1
        if task.missing == 0:
            task.missing = len(task.leaves)
            self.pipeline.submit(task)

    def step(self, run: Callable[[], None]) -> None:
        run()

    def finish(self) -> None:
        self.pipeline.finish()

    def __enter__(self) -> _Offloaded:
        self.pipeline.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pipeline.__exit__(kind, error, trace)


class _Task:
    """One layer's gradients on their way down, its updates on their way up; buffers are made once."""

    def __init__(self, layer: int, leaves: Sequence[Tensor], owner: _Offloaded) -> None:
        self.layer, self.leaves, self.owner, self.missing = layer, list(leaves), owner, len(leaves)
        self.host = [owner.link.host_buffer(p.shape, p.dtype) for p in leaves]
        self.delta = [torch.empty_like(p, requires_grad=False) for p in leaves]
        self.down_bytes = self.up_bytes = sum(p.numel() * p.element_size() for p in leaves)
        self.count = 0

    @torch.no_grad()
    def down(self) -> None:
        for to, p in zip(self.host, self.leaves, strict=True):
            assert p.grad is not None
            self.owner.throttle.copy(to, p.grad)

    def update(self) -> None:
        with torch.no_grad(), torch.profiler.record_function("update"):
            self.count += 1
            self.work()

    def work(self) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def up(self) -> None:
        for to, source in zip(self.delta, self.host, strict=True):
            self.owner.throttle.copy(to, source)

    def clear(self) -> None:
        for p in self.leaves:
            p.grad = None

    def apply(self) -> None:
        raise NotImplementedError


class _LspTask(_Task):
    def __init__(self, layer: int, modules: Sequence[SubspaceLinear], owner: _Offloaded) -> None:
        super().__init__(layer, [x.subspace for x in modules], owner)
        self.modules = modules
        self.scales = [x.pair.scale for x in modules]
        self.moments = [torch.zeros(2, *x.shape) for x in self.host]

    def work(self) -> None:
        for g, (m, v) in zip(self.host, self.moments, strict=True):
            torch.ops.edgeops._subspace_adam(g, m, v, self.count, 0.9, 0.999, 1e-8)

    @torch.no_grad()
    def apply(self) -> None:
        for module, delta, scale in zip(self.modules, self.delta, self.scales, strict=True):
            module.pair.apply_(module.weight, delta, -1e-5 * scale, 1.0, 1000 * self.count + self.layer)
        self.clear()


class Lsp(_Offloaded):
    """Compressed gradients down, directions up, `W -= lr P Delta Q^T` with rounding by chance; vectors stay frozen."""

    def __init__(self, blocks: nn.ModuleList, d: int, r: int, rate: float, device: torch.device) -> None:
        self.d, self.r, self.device = d, r, device
        super().__init__(blocks, "auto" if device.type == "cuda" else "fcfs", rate, device)

    def task(self, layer: int, block: nn.Module) -> _Task:
        block.requires_grad_(False)
        modules = [SubspaceLinear.adopt(x, self._pair(x)) for x in block.modules() if type(x) is nn.Linear]
        return _LspTask(layer, modules, self)

    def _pair(self, linear: nn.Linear) -> Pair:
        generator = torch.Generator().manual_seed(0)
        sides = [SparseProjector.draw(n, self.d, self.r, generator=generator) for n in linear.weight.shape]
        return Pair(*sides).to(self.device)


class _ZeroTask(_Task):
    def __init__(self, layer: int, leaves: Sequence[Tensor], owner: _Offloaded) -> None:
        super().__init__(layer, leaves, owner)
        self.masters = [nn.Parameter(p.detach().to("cpu", torch.float32)) for p in leaves]
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-5, fused=True)

    def work(self) -> None:
        for master, g in zip(self.masters, self.host, strict=True):
            master.grad = g.float()
        self.optimizer.step()
        for master, g in zip(self.masters, self.host, strict=True):
            g.copy_(master)

    @torch.no_grad()
    def apply(self) -> None:
        for p, fresh in zip(self.leaves, self.delta, strict=True):
            p.copy_(fresh)
        self.clear()


class Zero(_Offloaded):
    """ZeRO-Offload, fair: bfloat16 both ways, torch's fused AdamW on float32 masters, a layer at a time as ours."""

    def __init__(self, blocks: nn.ModuleList, rate: float, device: torch.device) -> None:
        super().__init__(blocks, "zero", rate, device)

    def task(self, layer: int, block: nn.Module) -> _Task:
        return _ZeroTask(layer, list(block.parameters()), self)
