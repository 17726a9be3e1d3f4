# SPDX-License-Identifier: Apache-2.0
"""The points a stream's models may train on again: a ring of tensors, in which windows are suffixes. Spec, 12.4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeops._common import describe, message


class ReplayBuffer:
    """The last points of a stream, in tensors of a size that never changes.

    Points have numbers in the order of arrival, and a model's window is all points from a number on, so that one buffer
    serves any number of models. The first `append` takes the memory: as many points as `max_bytes` allows, or
    `max_points` where that is less. When it is full, each new point takes the place of the oldest one, and windows
    that began there begin with the oldest that is left. With `reservoir`, that share of the places holds a uniform
    sample of the points that left the rest, for windows longer than the buffer.

    Args:
        max_bytes: most bytes of stored points.
        max_points: most points stored; `None`, as many as fit.
        reservoir: share of the places for older points, in [0, 1).
        seed: decides which points the reservoir holds.

    >>> buffer = ReplayBuffer(max_points=4)
    >>> buffer.append(torch.arange(6.0)[:, None], torch.zeros(6))
    >>> len(buffer), buffer.window(0), buffer.window(5)
    (4, (2, 6), (5, 6))
    >>> x, y = buffer.gather(torch.tensor([2, 5]))
    >>> x.flatten().tolist()
    [2.0, 5.0]
    """

    def __init__(
        self, *, max_bytes: int = 64 * 2**20, max_points: int | None = None, reservoir: float = 0.0, seed: int = 0
    ) -> None:
        if max_bytes < 1 or (max_points is not None and max_points < 1) or not 0 <= reservoir < 1:
            rule = "max_bytes and max_points must be positive, reservoir in [0, 1)"
            raise ValueError(message("ReplayBuffer", rule, f"{max_bytes}, {max_points}, {reservoir}", "0 is usual."))
        self.max_bytes, self.max_points, self.reservoir = max_bytes, max_points, reservoir
        self.generator = torch.Generator().manual_seed(seed)
        self.count = 0
        """Points seen so far: the number of the next one."""
        self._x: Tensor | None = None
        self._y: Tensor | None = None
        self._ring = 0
        # of the places behind the ring: which point they hold (-1: none), and the key that it was drawn with
        self._held = torch.zeros(0, dtype=torch.int64)
        self._keys = torch.zeros(0, dtype=torch.float64)
        self._bar = 0.0

    def __len__(self) -> int:
        return min(self.count, self._ring) + int((self._held >= 0).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of the stored points' tensors; never above `max_bytes`."""
        return sum(part.numel() * part.element_size() for part in (self._x, self._y) if part is not None)

    def check(self, x: Tensor, y: Tensor | None = None) -> None:
        """Refuse points that do not fit those stored.

        Raises:
            ValueError: another shape of a point, or not one label for each.
        """
        if x.dim() < 1 or (y is not None and (y.dim() < 1 or len(y) != len(x))):
            rule, got = "x and y must hold one row a point", f"{describe(x)} and {describe(y)}"
            raise ValueError(message("observe", rule, got, "Stack the points along dim 0."))
        for name, given, stored in (("x", x, self._x), ("y", y, self._y)):
            if given is not None and stored is not None and given.shape[1:] != stored.shape[1:]:
                rule = f"{name} must have rows of shape {tuple(stored.shape[1:])}, like the points before"
                raise ValueError(message("observe", rule, describe(given), "A changed shape needs a new DriftSurf."))

    def append(self, x: Tensor, y: Tensor) -> None:
        """Take points `x` `[n, ...]` in, with `y` `[n, ...]`; they get the next numbers."""
        self.check(x, y)
        n = len(x)
        if n == 0:
            return
        if self._x is None or self._y is None:
            self._allocate(x, y)
        assert self._x is not None
        assert self._y is not None
        numbers = torch.arange(self.count, self.count + n)
        if len(self._held):
            leaving = torch.arange(max(0, self.count - self._ring), max(0, self.count + n - self._ring))
            self._keep_some(leaving, x, y)
        last = numbers[-self._ring :]
        first, room = int(last[0]) % self._ring, self._ring
        head = min(len(last), room - first)
        x, y = x[n - len(last) :], y[n - len(last) :]
        self._x[first : first + head], self._y[first : first + head] = x[:head], y[:head]
        if head < len(last):
            self._x[: len(last) - head], self._y[: len(last) - head] = x[head:], y[head:]
        self.count += n

    def _allocate(self, x: Tensor, y: Tensor) -> None:
        row = sum(part[0].numel() * part.element_size() for part in (x, y))
        places = self.max_bytes // max(1, row)
        if places < 1:
            rule = f"one point takes {row} bytes, which must fit max_bytes"
            raise ValueError(message("ReplayBuffer", rule, str(self.max_bytes), f"Allow at least {row}."))
        places = min(places, self.max_points or places)
        older = min(int(places * self.reservoir), places - 1)
        self._ring = places - older
        self._x = torch.zeros((places, *x.shape[1:]), dtype=x.dtype, device=x.device)
        self._y = torch.zeros((places, *y.shape[1:]), dtype=y.dtype, device=y.device)
        self._held = torch.full((older,), -1)
        self._keys = torch.zeros(older, dtype=torch.float64)

    def _keep_some(self, leaving: Tensor, x: Tensor, y: Tensor) -> None:
        """Offer the points that leave the ring to the reservoir: it keeps those of the highest keys."""
        if not len(leaving):
            return
        assert self._x is not None
        assert self._y is not None
        keys = torch.rand(len(leaving), dtype=torch.float64, generator=self.generator)
        all_keys = torch.cat([torch.where(self._held >= 0, self._keys, -1.0), keys])
        best = all_keys.topk(min(len(self._held), len(all_keys))).indices
        kept = torch.zeros(len(all_keys), dtype=torch.bool)
        kept[best] = True
        kept[len(self._held) :] &= keys > self._bar
        kept[: len(self._held)] &= self._held >= 0
        dropped = all_keys[~kept]
        self._bar = max(self._bar, float(dropped.max()) if len(dropped) else 0.0)
        old, new = kept[: len(self._held)], kept[len(self._held) :].nonzero().flatten()
        places = (~old).nonzero().flatten()
        self._held[places] = -1
        places = places[: len(new)]
        stored = leaving[new] < self.count
        for store, given in ((self._x, x), (self._y, y)):
            rows = torch.empty((len(new), *store.shape[1:]), dtype=store.dtype, device=store.device)
            rows[stored] = store[leaving[new][stored] % self._ring]
            rows[~stored] = given[leaving[new][~stored] - self.count].to(store.dtype)
            store[self._ring + places] = rows
        self._held[places], self._keys[places] = leaving[new], keys[new]

    def release(self, first: int) -> None:
        """No window begins before this number any more: older points leave the reservoir."""
        self._held[self._held < first] = -1
        if not bool((self._held >= 0).any()):
            self._bar = 0.0

    def window(self, start: int) -> tuple[int, int]:
        """First and one past the last number of a window, as far as the ring still holds it."""
        return max(start, self.count - self._ring, 0), self.count

    def draw(self, start: int, n: int, generator: torch.Generator) -> Tensor:
        """Numbers `[n]` of random points of the window that begins at `start`, each as likely as any other.

        Points that only the reservoir's sample stands for are drawn from that sample, as often as they are many.

        Raises:
            ValueError: the window holds no point.
        """
        first, end = self.window(start)
        if first >= end:
            raise ValueError(
                message("ReplayBuffer.draw", "the window must hold points", f"[{start}, {end})", "Append.")
            )
        if not len(self._held):
            return _random(first, end, n, generator)
        older = self._held[self._held >= start]
        begin = start if len(older) else first
        drawn = _random(begin, end, n, generator)
        beyond = drawn < first
        picks = _random(0, max(1, len(older)), n, generator)
        return torch.where(beyond, older[picks], drawn) if len(older) else drawn

    def gather(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The points of these numbers, which the buffer must hold: `x` `[n, ...]` and `y` `[n, ...]`."""
        assert self._x is not None
        assert self._y is not None
        places = numbers % max(1, self._ring)
        if len(self._held):
            old = numbers < self.count - self._ring
            order = self._held.argsort()
            found = torch.searchsorted(self._held[order], numbers[old])
            places[old] = self._ring + order[found]
        places = places.to(self._x.device)
        return self._x[places], self._y[places]

    def to(self, device: torch.device) -> None:
        """Move the points to a device."""
        if self._x is not None and self._y is not None:
            self._x, self._y = self._x.to(device), self._y.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Everything, the points included; places that were never used are left out."""
        names = ("count", "_ring", "_bar", "max_bytes", "max_points", "reservoir")
        state: dict[str, Any] = {name: getattr(self, name) for name in names}
        state |= {"held": self._held.clone(), "keys": self._keys.clone(), "generator": self.generator.get_state()}
        used = min(self.count, self._ring)
        for name, store in (("x", self._x), ("y", self._y)):
            state[name] = None if store is None else store[:used].clone()
            state[f"{name}_old"] = None if store is None else store[self._ring :].clone()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back, on the device where the points are now, or those that are given."""
        for name in ("count", "_ring", "_bar", "max_bytes", "max_points", "reservoir"):
            setattr(self, name, state[name])
        self.generator.set_state(state["generator"])
        self._held, self._keys = state["held"].clone(), state["keys"].clone()
        device = None if self._x is None else self._x.device
        self._x, self._y = (self._restored(state[name], state[f"{name}_old"], device) for name in ("x", "y"))

    def _restored(self, ring: Tensor | None, old: Tensor | None, device: torch.device | None) -> Tensor | None:
        if ring is None or old is None:
            return None
        device = ring.device if device is None else device
        store = torch.zeros((self._ring + len(old), *ring.shape[1:]), dtype=ring.dtype, device=device)
        store[: len(ring)], store[self._ring :] = ring, old
        return store


def _random(first: int, end: int, n: int, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(n, dtype=torch.float64, generator=generator)
    return first + (drawn * (end - first)).long().clamp(max=end - first - 1)
