# SPDX-License-Identifier: Apache-2.0
"""One weight's update, in the four stages of the pipeline: down, update, up, apply. LSP-Offload, algorithms 1 and 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops.offload._reference import compute_dtype
from edgeops.offload.sharded import any_process, is_sharded, local_rows
from edgeops.offload.targets import Target

_adam = _native.kernel("_subspace_adam", "subspace_adam")


class Update:
    """What becomes of one compressed gradient; a `links.Task`.

    Args:
        layer: the target's place in the order of the forward.
        target: the weight.
        group: its settings; `lr`, `betas`, `eps` and `weight_decay` are read now.
        state: its optimizer state, filled at the first update.
        small: the compressed gradient `[p, q]` on the weight's device. Where `host` is given it is taken over: the
            direction comes back into it.
        device: where the moments are.
        seed: of rounding by chance, before the step is known; `None` rounds to the nearest.
        host: a persistent buffer `[p, q]` that the link copies fast to and from, in the dtype of the wire; `None` where
            nothing is overlapped.
    """

    def __init__(
        self,
        layer: int,
        target: Target,
        group: dict[str, Any],
        state: dict[str, Any],
        small: Tensor,
        device: torch.device,
        seed: int | None,
        host: Tensor | None = None,
    ) -> None:
        self.layer, self.target, self.state = layer, target, state
        self._small, self._device, self._seed, self._host = small.detach(), device, seed, host
        self._lr, self._decay, self._eps = float(group["lr"]), float(group["weight_decay"]), group["eps"]
        self._betas, self._norm = group["betas"], group["max_norm"]
        self._wire = group["wire_dtype"] or compute_dtype(target.weight.dtype)
        self.down_bytes = self.up_bytes = self._small.numel() * self._wire.itemsize
        self._taken = host is not None
        self.skipped = False

    def down(self) -> None:
        """Copy the gradient to the moments' device."""
        if self._host is None:
            self._host = self._small.to(self._wire).to(self._device, copy=True).contiguous()
        else:
            self._host.copy_(self._small.to(self._wire), non_blocking=True)

    def update(self) -> None:
        """Adam, in place; nothing where the gradient is not finite."""
        assert self._host is not None
        grad = self._host.to(compute_dtype(self.target.weight.dtype))
        if not bool(torch.isfinite(grad).all()):
            self.skipped = True
            return
        if self._norm is not None:
            grad.mul_((self._norm / (torch.linalg.vector_norm(grad) + 1e-6)).clamp(max=1.0))
        state = self.state
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(grad), torch.zeros_like(grad)
        state["step"] += 1
        _adam(grad, state["exp_avg"], state["exp_avg_sq"], int(state["step"]), *self._betas, self._eps)
        if grad is not self._host:
            self._host.copy_(grad)

    def up(self) -> None:
        """Copy the direction to the weight's device."""
        assert self._host is not None
        if self._taken:
            self._small.copy_(self._host, non_blocking=True)
        else:
            self._small = self._host.to(self._small.device)

    def apply(self) -> None:
        """Bring the direction into the weight."""
        target = self.target
        if self.skipped:
            target.skipped += 1
            return
        t = int(self.state["step"])
        seed = None if self._seed is None else (self._seed * 4294967311 + t) & (2**63 - 1)
        delta = self._small.to(compute_dtype(target.weight.dtype))
        weight, first = local_rows(target.weight), 0 if target.rows is None else target.rows.first
        target.pair.apply_(weight, delta, -self._lr * target.pair.scale, 1 - self._lr * self._decay, seed, first)

    def run(self) -> None:
        """All four, here and now."""
        self.down()
        self.update()
        self.up()
        self.apply()


@contextmanager
def without_bad_gradients(parameters: Sequence[Tensor]) -> Iterator[int]:
    """Within, parameters whose gradients are not finite have none; gives their number."""
    grads = [(p, p.grad) for p in parameters if p.grad is not None and p.grad.numel()]
    bad: list[tuple[Tensor, Tensor]] = []
    if grads:  # one answer for all: each would be waited for on a GPU
        shards = [local_rows(g) for _, g in grads]
        flat = [g if g.numel() else g.new_zeros(1) for g in shards]
        largest = [torch.linalg.vector_norm(g, torch.inf).to(shards[0].device, torch.float32) for g in flat]
        odd = ~torch.stack(largest).isfinite()
        for mesh in {id(g.device_mesh): g.device_mesh for _, g in grads if is_sharded(g)}.values():  # type: ignore[attr-defined]
            odd = any_process(odd, mesh)
        bad = [each for each, is_bad in zip(grads, odd.tolist()) if is_bad]
    for p, _ in bad:
        p.grad = None
    try:
        yield len(bad)
    finally:
        for p, grad in bad:
            p.grad = grad


class Overlapped:
    """An update in a pipeline, which tells when it has been applied.

    Args:
        update: the update.
        through: called with it, in the thread that applied it.
    """

    def __init__(self, update: Update, through: Callable[[Update], None]) -> None:
        self.layer, self.down_bytes, self.up_bytes = update.layer, update.down_bytes, update.up_bytes
        self.down, self.update, self.up = update.down, update.update, update.up
        self._update, self._through = update, through

    def apply(self) -> None:
        """Bring the direction into the weight, and tell."""
        self._update.apply()
        self._through(self._update)
