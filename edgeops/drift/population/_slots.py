# SPDX-License-Identifier: Apache-2.0
"""Room for the models that only learners in a trial need: rows that are lent and given back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeops.drift.population._stacked import Rows

LEAST = 16
"""Rows that are never given back."""


class Slots:
    """Rows of models with the learner's names for them; as many as are needed, and at most about twice as many.

    Args:
        like: where rows come from: their size, dtype, device and state.
        learners: how many learners there are.
        columns: names a learner has for its candidates; the first, the model itself, is not kept here.
        archive: models of the past that each learner may keep.
    """

    def __init__(self, like: Rows, learners: int, columns: int, archive: int) -> None:
        device = like.values.device
        self.rows = like.part(0, 0).resized(LEAST)
        self.used = torch.zeros(LEAST, dtype=torch.bool, device=device)
        self.start = torch.zeros(LEAST, dtype=torch.int64, device=device)
        self.table = torch.full((learners, columns), -1, dtype=torch.int64, device=device)
        self.past = torch.full((learners, archive), -1, dtype=torch.int64, device=device)

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Learner, column and slot of the candidates of the learners in `mask`, `[n]` each."""
        learner, column = ((self.table >= 0) & mask[:, None]).nonzero(as_tuple=True)
        return learner, column, self.table[learner, column]

    def lend(self, count: int) -> Tensor:
        """Slots that are free, which are now in use, `[count]`."""
        free = (~self.used).nonzero()[:, 0]
        if len(free) < count:
            self._resize(len(self) + max(len(self), count - len(free)))
            free = (~self.used).nonzero()[:, 0]
        taken = free[:count]
        self.used[taken] = True
        return taken

    def release(self, slots: Tensor) -> None:
        """Give slots back; entries of -1 are none."""
        self.used[slots[slots >= 0]] = False

    def forget(self, learners: Tensor) -> None:
        """Give back all candidates of the learners `[n]`."""
        self.release(self.table[learners])
        self.table[learners] = -1

    def shelve(self, learners: Tensor, models: Rows) -> None:
        """Keep a model of each of the learners `[n]` as one of its past; where there is no room the oldest goes."""
        if not len(learners) or not self.past.shape[1]:
            return
        mine = self.past[learners]
        full = mine[:, -1] >= 0
        self.release(mine[full, 0])
        mine[full] = torch.cat([mine[full, 1:], torch.full_like(mine[full, :1], -1)], 1)
        slots = self.lend(len(learners))
        mine.scatter_(1, (mine >= 0).sum(1, keepdim=True), slots[:, None])
        self.past[learners] = mine
        self.rows.put(slots, models)

    def shrink(self) -> None:
        """Give memory back where less than a quarter is in use."""
        needed = int(self.used.sum())
        if len(self) > LEAST and 4 * needed < len(self):
            order = torch.cat([self.used.nonzero()[:, 0], (~self.used).nonzero()[:, 0]])
            place = torch.empty_like(order)
            place[order] = torch.arange(len(order), device=order.device)
            for names in (self.table, self.past):
                names.copy_(torch.where(names >= 0, place[names], -1))
            kept = order[:needed]
            self.rows, self.used, self.start = self.rows.take(kept), self.used[kept], self.start[kept]
            self._resize(max(LEAST, 2 * needed))

    def _resize(self, rows: int) -> None:
        new = rows - len(self)
        self.rows = self.rows.resized(rows)
        self.used = torch.cat([self.used, self.used.new_zeros(new)])
        self.start = torch.cat([self.start, self.start.new_zeros(new)])

    def state_dict(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name).clone() for name in ("used", "start", "table", "past")}
        return {**tensors, "rows": [t.clone() for t in self.rows.tensors]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.used.device
        for name in ("used", "start", "table", "past"):
            setattr(self, name, state[name].to(device, copy=True))
        self.rows = Rows.of([t.to(device, copy=True) for t in state["rows"]])
