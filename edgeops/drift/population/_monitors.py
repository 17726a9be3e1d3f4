# SPDX-License-Identifier: Apache-2.0
"""`DriftMonitor` for many learners at once: the same rules on tensors over learners, no loop over them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgeops._common import describe, message
from edgeops.drift.monitor import DriftMonitor

EVENTS = ("none", "pending", "enter", "reenter", "keep", "switch")
"""What the numbers in a result of `observe` stand for."""
NONE, PENDING, ENTER, REENTER, KEPT, SWITCH = range(len(EVENTS))
SETTINGS = (
    *("delta", "z", "z_again", "r", "longest", "margin", "margin_z", "early_z"),
    *("memory", "challenge", "discount", "min_n"),
)


class DriftMonitors:
    """Form D's decisions for `learners` learners, each with up to `columns` candidates; column 0 is the model, "keep".

    Every tensor of state begins with the learners. A learner that `active` leaves out keeps its state. The scalar class
    is the specification: `tests/properties/test_drift_monitors.py` compares the two, decision by decision.

    Args:
        learners: how many.
        columns: most candidates of a learner, the model included.
        like: a monitor whose settings are taken.
        device: where the state lives.
    """

    def __init__(
        self, learners: int, columns: int, like: DriftMonitor | None = None, device: torch.device | str | None = None
    ) -> None:
        if learners < 1 or columns < 1:
            rule = "learners and columns must be at least 1"
            raise ValueError(message("DriftMonitors", rule, f"{learners}, {columns}", "Column 0 is the model."))
        like = like or DriftMonitor()
        self.learners, self.columns = learners, columns
        self.settings: dict[str, Any] = {name: getattr(like, name) for name in SETTINGS}
        # a trial scores at most once a batch, and once more at its beginning
        self._kept = min(like.memory, like.longest + 1)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(learners, *shape, dtype=dtype, device=device)

        self.k, self.trials, self.switches, self.quiet = zeros(), zeros(), zeros(), zeros()
        self.in_trial = zeros(dtype=torch.bool)
        self.floor = zeros(2, dtype=torch.float64) + math.inf
        self.live, self.out = zeros(columns, dtype=torch.bool), zeros(columns, dtype=torch.bool)
        self.live[:, 0] = True
        self.history = zeros(like.memory, 2, dtype=torch.float64) + math.inf
        self.seen = zeros()
        self.lead_count = zeros(columns)
        self.lead_total, self.lead_squares = zeros(columns, dtype=torch.float64), zeros(columns, dtype=torch.float64)
        self.recent = zeros(columns, self._kept, 2, dtype=torch.float64)
        self.shown = zeros(columns)
        self.scores, self.scored = zeros(columns, dtype=torch.float64), zeros(columns, dtype=torch.bool)
        self.waiting, self.points = zeros(), 0
        self.pending: Tensor | None = None

    @property
    def serve(self) -> Tensor:
        """The column that predicts each learner's next batch, `[learners]`."""
        alive = self.scored & ~self.out & self.in_trial[:, None]
        # the first of several that are least: the model where it is among them
        return torch.where(alive, self.scores, math.inf).nan_to_num(nan=math.inf).argmin(1) * alive.any(1)

    @property
    def reference(self) -> Tensor:
        """The best mean loss of the last batches, infinite where there is none, `[learners]`."""
        return self.history[..., 0].amin(1)

    def begin(self, learners: Tensor, live: Tensor) -> None:
        """The columns `[n, columns]` that are candidates of the learners `[n]` whose event was "enter" or "reenter"."""
        if not bool((self.in_trial[learners] & (self.k[learners] == 0)).all()):
            raise ValueError(message("DriftMonitors.begin", "a trial must have been entered", "none", "Observe first."))
        live = live.clone()
        live[:, 0] = True
        self.live[learners] = live

    def observe(self, losses: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take in losses `[learners, columns, n]`, of which those of columns that are no candidates are not looked at.

        Returns:
            The event `[learners]`, an index into `EVENTS`, and the winner's column, -1 where none won.
        """
        losses, active = self._checked(losses, active)
        events = torch.full_like(self.k, NONE)
        winners = torch.full_like(self.k, -1)
        if not losses.shape[2]:
            return events, winners
        if self.settings["min_n"] > losses.shape[2]:
            losses, ready = self._await(losses, active)
            events[active & ~ready] = PENDING
            active = ready
        risk = _risk(losses)
        self._stable(active & ~self.in_trial, risk[:, 0], events)
        self._trial(active & self.in_trial & (events == NONE), losses, risk, events, winners)
        return events, winners

    def head_start(self, learners: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Losses `[n, columns, points]` on the rest of the batch with which the learners `[n]` entered their trials."""
        active = torch.zeros_like(self.in_trial)
        active[learners] = True
        whole = losses.new_zeros(self.learners, *losses.shape[1:])
        whole[learners] = losses
        losses, active = self._checked(whole, active)
        events, winners = torch.full_like(self.k, NONE), torch.full_like(self.k, -1)
        self._score(active, losses, _risk(losses))
        self._early(active, events, winners)
        return events[learners], winners[learners]

    def disqualify(self, learners: Tensor, columns: Tensor) -> None:
        """Say that candidates diverged: they are not served, and cannot win."""
        self.out[learners, columns] = True

    def _checked(self, losses: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor]:
        if losses.dim() != 3 or losses.shape[:2] != (self.learners, self.columns):
            rule = f"losses must be [{self.learners}, {self.columns}, n]"
            raise ValueError(message("DriftMonitors.observe", rule, describe(losses), "One number a point."))
        if active is None:
            active = torch.ones_like(self.in_trial)
        return losses.detach().to(torch.float64), active

    def _await(self, losses: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Batches taken together until there are `min_n` points, and which learners are there."""
        n = losses.shape[2]
        parts = -(-self.settings["min_n"] // n)
        if self.pending is None:
            self.pending = losses.new_zeros(self.learners, self.columns, parts * n)
            self.points = n
        if self.points != n:
            rule = "batches must have the same number of points while some are taken together"
            raise ValueError(message("DriftMonitors.observe", rule, str(n), "Or pass min_n=1."))
        at = torch.arange(parts * n, device=losses.device) // n == self.waiting[:, None]
        here = (at & active[:, None])[:, None]
        self.pending = torch.where(here, losses.repeat(1, 1, parts), self.pending)
        self.waiting += active
        ready = active & (self.waiting == parts)
        self.waiting[ready] = 0
        return self.pending, ready

    def _fires(self, risk: Tensor) -> Tensor:
        rises = _rises(risk, _least(self.history, 1), self.settings["delta"], self.settings["z"])
        return (self.seen > 0) & (rises | (self.settings["delta"] == 0))

    def _lost(self, risk: Tensor) -> Tensor:
        """Whether every candidate is worse than the trial's best by more than chance: a drift within the trial."""
        shown = self.live & ~self.out & risk[..., 0].isfinite()
        best = _least(torch.where(shown[..., None], risk, math.inf), 1)
        return shown.any(1) & _rises(best, self.floor, self.settings["delta"], self.settings["z_again"])

    def _stable(self, active: Tensor, risk: Tensor, events: Tensor) -> None:
        finite = risk[:, 0].isfinite() & ~self.out[:, 0]
        self.quiet += active
        fires = ~finite | self._fires(risk)
        add = active & finite
        memory = self.history.shape[1]
        at = torch.arange(memory, device=risk.device) == (self.seen % memory)[:, None]
        self.history = torch.where((at & add[:, None])[..., None], risk[:, None], self.history)
        self.seen += add
        if self.settings["challenge"]:
            fires = fires | (self.quiet >= self.settings["challenge"])
        enter = active & fires
        self.trials += enter
        self._open(enter)
        self._set_score(enter & finite, risk)
        self.out[:, 0] |= enter & ~finite
        events[enter] = ENTER

    def _open(self, which: Tensor) -> None:
        self.in_trial = self.in_trial | which
        self.floor = torch.where(which[:, None], math.inf, self.floor)
        self._forget(which)

    def _forget(self, which: Tensor) -> None:
        stay = ~which
        self.k, self.quiet = self.k * stay, self.quiet * stay
        each = stay[:, None]
        self.live, self.out, self.scored = self.live & each, self.out & each, self.scored & each
        self.live[:, 0] = True
        self.shown, self.lead_count = self.shown * each, self.lead_count * each
        self.lead_total = torch.where(each, self.lead_total, 0.0)
        self.lead_squares = torch.where(each, self.lead_squares, 0.0)

    def _set_score(self, which: Tensor, risk: Tensor) -> None:
        self.scores[:, 0] = torch.where(which, risk[:, 0], self.scores[:, 0])
        self.scored[:, 0] |= which

    def _score(self, active: Tensor, losses: Tensor, risk: Tensor) -> None:
        here = self.live & active[:, None]
        finite = risk[..., 0].isfinite()
        self.out = self.out | (here & ~finite)
        here = here & finite
        weight = self.settings["discount"]
        mixed = weight * self.scores + (1 - weight) * risk[..., 0]
        fresh = torch.where(self.shown > 0, mixed, risk[..., 0])
        self.scores, self.scored = torch.where(here, fresh, self.scores), self.scored | here
        at = torch.arange(self._kept, device=risk.device) == (self.shown % self._kept)[..., None]
        self.recent = torch.where((at & here[..., None])[..., None], risk[:, :, None], self.recent)
        self.shown = self.shown + here
        seen = torch.where(here[..., None], risk, math.inf)
        self.floor = _least(torch.cat([self.floor[:, None], seen], 1), 1)
        leads = here & ~self.out[:, :1]
        leads[:, 0] = False
        better = torch.where(leads[..., None], losses[:, :1] - losses, 0.0)
        self.lead_count = self.lead_count + leads * losses.shape[2]
        self.lead_total = self.lead_total + better.sum(2)
        self.lead_squares = self.lead_squares + better.square().sum(2)

    def _leader(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The candidate that leads by the mean of its lead: whether there is one, its column, lead, standard error."""
        alive = self.live & ~self.out & (self.lead_count > 0)
        alive[:, 0] = False
        count = self.lead_count.clamp(min=1)
        mean = self.lead_total / count
        error = torch.where(self.lead_count < 2, math.inf, _standard_error(mean, self.lead_squares, count))
        column = torch.where(alive, mean, -math.inf).argmax(1, keepdim=True)
        return alive.any(1), column[:, 0], mean.gather(1, column)[:, 0], error.gather(1, column)[:, 0]

    def _early(self, active: Tensor, events: Tensor, winners: Tensor) -> None:
        lost = active & self.out[:, 0]
        alive = self.scored & ~self.out
        least = torch.where(alive, self.scores, math.inf).argmin(1)
        self._end(lost & alive.any(1), least, events, winners)
        there, column, lead, error = self._leader()
        ahead = there & (lead > _level(self.settings["margin"], self.settings["early_z"], error))
        self._end(active & ~lost & ahead, column, events, winners)

    def _trial(self, active: Tensor, losses: Tensor, risk: Tensor, events: Tensor, winners: Tensor) -> None:
        again = active & self._lost(risk)
        self.trials += again
        self._open(again)
        finite = risk[:, 0, 0].isfinite()
        self._set_score(again & finite, risk[:, 0])
        self.out[:, 0] |= again & ~finite
        events[again] = REENTER
        active = active & ~again
        self.k = self.k + active
        self._score(active, losses, risk)
        self._early(active, events, winners)
        active = active & (events == NONE) & (self.k >= self.settings["r"])
        there, column, lead, spread = self._leader()
        wins = there & (lead > _level(self.settings["margin"], self.settings["margin_z"], spread))
        ends = ~there | (lead <= 0) | (self.k >= self.settings["longest"])
        self._end(active & wins, column, events, winners)
        self._end(active & ~wins & ends, torch.zeros_like(column), events, winners)

    def _end(self, which: Tensor, column: Tensor, events: Tensor, winners: Tensor) -> None:
        shown = self.shown.gather(1, column[:, None])[:, 0]
        recent = self.recent.gather(1, column[:, None, None, None].expand(-1, 1, self._kept, 2))[:, 0]
        valid = torch.arange(self._kept, device=recent.device) < shown[:, None]
        history = torch.full_like(self.history, math.inf)
        history[:, : self._kept] = torch.where(valid[..., None], recent, math.inf)
        self.history = torch.where(which[:, None, None], history, self.history)
        self.seen = torch.where(which, shown, self.seen)
        won = which & (column > 0)
        self.switches += won
        events[which] = KEPT
        events[won] = SWITCH
        winners[won] = column[won]
        self.in_trial = self.in_trial & ~which
        self._forget(which)

    def state_dict(self) -> dict[str, Any]:
        """Everything, settings included."""
        state = {name: v.clone() if isinstance(v, Tensor) else v for name, v in vars(self).items()}
        return {**state, "settings": dict(self.settings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back.

        Raises:
            ValueError: the state is of another number of learners or candidates.
        """
        if (state["learners"], state["columns"]) != (self.learners, self.columns):
            rule = f"needs the state of {self.learners} learners with {self.columns} candidates"
            got = f"{state['learners']} and {state['columns']}"
            raise ValueError(message("DriftMonitors.load_state_dict", rule, got, "Build it with the same sizes."))
        device = self.k.device
        vars(self).update({n: v.to(device, copy=True) if isinstance(v, Tensor) else v for n, v in state.items()})
        self.settings = dict(state["settings"])


def _level(margin: float, z: float, error: Tensor) -> Tensor:
    """What a lead must exceed. Zero times an infinite error asks for nothing beyond the margin."""
    level = z * error
    return torch.where(level > margin, level, margin)


def _standard_error(mean: Tensor, squares: Tensor, count: Tensor | int) -> Tensor:
    variance = squares / count - mean.square()
    variance = torch.where(variance > 0, variance, 0.0)
    return ((variance + 1 / count) / count).sqrt()


def _risk(losses: Tensor) -> Tensor:
    """Mean and standard error of losses `[..., n]`, `[..., 2]`."""
    mean = losses.mean(-1)
    return torch.stack([mean, _standard_error(mean, losses.square().sum(-1), losses.shape[-1])], -1)


def _least(risks: Tensor, dim: int) -> Tensor:
    """The risk whose mean is the least, and of several such that whose standard error is."""
    mean = risks[..., 0].amin(dim)
    error = torch.where(risks[..., 0] == mean.unsqueeze(dim), risks[..., 1], math.inf).amin(dim)
    return torch.stack([mean, error], -1)


def _rises(risk: Tensor, best: Tensor, delta: float, z: float) -> Tensor:
    """Whether a risk is above another by more than chance; where there is no other, it is not."""
    return risk[:, 0] > best[:, 0] + _level(delta, z, torch.hypot(risk[:, 1], best[:, 1]))
