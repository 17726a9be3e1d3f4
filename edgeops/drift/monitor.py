# SPDX-License-Identifier: Apache-2.0
"""When to doubt a model and when to replace it: a state machine over losses. Drift spec, section 12."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeops._common import describe, message

KEEP = "keep"
"""The candidate that is the long-lived model."""


@dataclass(frozen=True)
class Decision:
    """What the owner of the models does after a batch.

    Args:
        event: "none"; "pending" (too few points so far, section 12.5); "enter", start a trial; "reenter", start it
            again with new candidates; "keep", the trial ended and the model stays; "switch", `winner` replaces it.
        winner: the candidate that won, where the event is "switch".
    """

    event: str = "none"
    winner: str | None = None


def _standard_error(mean: float, squares: float, count: int) -> float:
    """Of a mean of `count` numbers; as if one more had differed by 1, since a few that agree prove little."""
    variance = max(0.0, squares / count - mean * mean)
    return math.sqrt((variance + 1 / count) / count)


def _risk(losses: Tensor) -> tuple[float, float]:
    """Mean and standard error."""
    mean = float(losses.mean())
    return mean, _standard_error(mean, float(losses.square().sum()), len(losses))


@dataclass
class _Lead:
    """Running sums of what a candidate was better than the model, point by point."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, better: Tensor) -> None:
        self.count += len(better)
        self.total += float(better.sum())
        self.squares += float(better.square().sum())

    @property
    def mean(self) -> float:
        return self.total / max(1, self.count)

    @property
    def error(self) -> float:
        """The mean's standard error."""
        return math.inf if self.count < 2 else _standard_error(self.mean, self.squares, self.count)


class DriftMonitor:
    """Form D: a rise of the loss starts a trial of candidates against the model; paired differences decide it.

    Outside a trial, `observe` takes the model's losses of a batch, each measured before the batch is trained on. Where
    they lie above the best of the last batches by more than chance, it answers "enter": the owner makes candidates and
    tells their names by `begin`. Within a trial `observe` takes the losses of all of them, and answers "switch" once
    one is better than the model beyond doubt, "keep" where none is by the end. `serve` names who predicts next.

    Args:
        delta: least rise that starts a trial, in units of the loss; 0 and infinity are allowed.
        z: least rise in standard errors.
        z_again: rise in standard errors of every candidate above the trial's best that starts the trial anew: the data
            changed within it.
        r: batches of a trial after which a candidate that leads by `margin` and `margin_z` wins.
        longest: batches after which a trial ends undecided, for the model.
        margin: least lead that wins.
        margin_z: least lead in standard errors.
        early_z: lead in standard errors that ends a trial before `r`.
        memory: batches whose best is the reference.
        challenge: batches without a trial after which one starts of itself, so that a slow drift is not missed;
            `None`, never.
        discount: weight of the batch before in the losses that choose who serves in a trial.
        min_n: points below which batches are taken together before they are judged.

    A loss that is not finite disqualifies a candidate for the trial; where it is the model's, a trial starts and any
    candidate that is finite serves and wins.

    >>> monitor = DriftMonitor()
    >>> right, wrong = torch.zeros(100), torch.ones(100)
    >>> monitor.observe({"keep": right}).event, monitor.observe({"keep": wrong}).event
    ('none', 'enter')
    >>> monitor.begin(["fresh", "warm"])
    >>> monitor.observe({"keep": wrong, "fresh": right, "warm": wrong})
    Decision(event='switch', winner='fresh')
    """

    def __init__(
        self,
        *,
        delta: float = 0.02,
        z: float = 3.0,
        z_again: float = 4.0,
        r: int = 4,
        longest: int = 8,
        margin: float = 0.005,
        margin_z: float = 3.5,
        early_z: float = 5.0,
        memory: int = 20,
        challenge: int | None = None,
        discount: float = 0.0,
        min_n: int = 1,
    ) -> None:
        who = "DriftMonitor"
        given = {"delta": delta, "z": z, "z_again": z_again, "margin": margin, "margin_z": margin_z, "early_z": early_z}
        for name, value in given.items():
            if not value >= 0:
                raise ValueError(message(who, f"{name} must not be negative", str(value), "0 is the least."))
        if not 0 <= discount <= 1:
            raise ValueError(message(who, "discount must be in [0, 1]", str(discount), "The default is 0."))
        if not (1 <= r <= longest and memory >= 1 and min_n >= 1 and (challenge is None or challenge >= 1)):
            rule = "r must be in [1, longest], memory, min_n and challenge at least 1"
            raise ValueError(message(who, rule, f"{r}, {longest}, {memory}, {min_n}, {challenge}", "r=4 is usual."))
        self.delta, self.z, self.z_again, self.r, self.longest = delta, z, z_again, r, longest
        self.margin, self.margin_z, self.early_z = margin, margin_z, early_z
        self.memory, self.challenge, self.discount, self.min_n = memory, challenge, discount, min_n
        self.k = self.trials = self.switches = self.quiet = 0
        self._history: list[tuple[float, float]] = []
        self._leads: dict[str, _Lead] = {}
        self._recent: dict[str, list[tuple[float, float]]] = {}
        self._scores: dict[str, float] = {}
        self._out: set[str] = set()
        self._floor: tuple[float, float] | None = None
        self._pending: list[dict[str, Tensor]] = []
        self.in_trial = False

    @property
    def candidates(self) -> tuple[str, ...]:
        """The names whose losses `observe` needs."""
        return (KEEP, *self._leads)

    @property
    def serve(self) -> str:
        """The candidate that predicts the next batch."""
        alive = {name: score for name, score in self._scores.items() if name not in self._out}
        if not self.in_trial or not alive:
            return KEEP
        best = min(alive.values())
        return KEEP if alive.get(KEEP, math.inf) <= best else next(n for n, score in alive.items() if score == best)

    @property
    def reference(self) -> float | None:
        """The best mean loss of the last batches."""
        return min((mean for mean, _ in self._history), default=None)

    def begin(self, names: Sequence[str]) -> None:
        """The names of the candidates beside the model, after "enter" or "reenter".

        Raises:
            ValueError: no trial was asked for, or a name is taken.
        """
        if not self.in_trial or self.k:
            raise ValueError(message("DriftMonitor.begin", "a trial must have been entered", "none", "Observe first."))
        if KEEP in names or len(set(names)) != len(names):
            raise ValueError(message("DriftMonitor.begin", "names must differ, none 'keep'", str(names), "Rename."))
        self._leads = {name: _Lead() for name in names}
        self._recent = {name: [] for name in (KEEP, *names)}

    def observe(self, losses: Mapping[str, Tensor]) -> Decision:
        """Take in losses `[n]` of each candidate on a batch, measured before it is trained on.

        An empty batch changes nothing.

        Raises:
            ValueError: a candidate's losses are missing, or they are not one number a point.
        """
        batch = self._checked(losses)
        if not len(batch[KEEP]):
            return Decision()
        self._pending.append(batch)
        if sum(len(part[KEEP]) for part in self._pending) < self.min_n:
            return Decision("pending")
        if len(self._pending) > 1:
            batch = {name: torch.cat([part[name] for part in self._pending]) for name in self.candidates}
        self._pending = []
        return self._trial(batch) if self.in_trial else self._stable(batch[KEEP])

    def head_start(self, losses: Mapping[str, Tensor]) -> Decision:
        """Losses on the rest of the batch that entered the trial, after the candidates trained on its beginning."""
        batch = self._checked(losses)
        self._score(batch, {name: _risk(values) for name, values in batch.items()})
        return self._early()

    def rescale(self, factor: float) -> None:
        """The unit of losses changed outside a trial: put what is remembered of earlier batches into the new one."""
        self._history = [(mean * factor, error * factor) for mean, error in self._history]
        self._pending = [{name: losses * factor for name, losses in part.items()} for part in self._pending]

    def disqualify(self, name: str) -> None:
        """Say that a candidate diverged: it is not served, and cannot win."""
        self._out.add(name)

    def _checked(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batch = {}
        for name in self.candidates:
            values = losses.get(name)
            if values is None:
                got, advice = ", ".join(losses) or "none", "Pass one tensor of losses for each candidate."
                raise ValueError(message("DriftMonitor.observe", f"needs the losses of {name!r}", got, advice))
            if values.dim() != 1 or len(values) != len(losses[KEEP]):
                rule = "losses must be one number a point, as many for each candidate"
                raise ValueError(message("DriftMonitor.observe", rule, describe(values), "Use reduction='none'."))
            batch[name] = values.detach().to("cpu", torch.float64)
        return batch

    def _stable(self, losses: Tensor) -> Decision:
        mean, error = _risk(losses)
        finite = math.isfinite(mean) and KEEP not in self._out
        self.quiet += 1
        fires = not finite or self._fires(mean, error)
        if finite:
            self._history = [*self._history, (mean, error)][-self.memory :]
        if not fires and not (self.challenge and self.quiet >= self.challenge):
            return Decision()
        self.trials += 1
        self._open()
        if finite:
            self._scores[KEEP] = mean
        else:
            self._out.add(KEEP)
        return Decision("enter")

    def _open(self) -> None:
        self.in_trial, self.k, self.quiet, self._floor = True, 0, 0, None
        self._leads, self._recent, self._scores, self._out = {}, {}, {}, set()

    def _fires(self, mean: float, error: float) -> bool:
        if not self._history:
            return False
        best, spread = min(self._history)
        return mean > best + max(self.delta, self.z * math.hypot(error, spread)) or self.delta == 0

    def _lost(self, risks: Mapping[str, tuple[float, float]]) -> bool:
        """Whether every candidate is worse than the trial's best by more than chance: a drift within the trial."""
        shown = [risk for name, risk in risks.items() if name not in self._out and math.isfinite(risk[0])]
        if not shown or self._floor is None:
            return False
        mean, error = min(shown)
        best, spread = self._floor
        return mean > best + max(self.delta, self.z_again * math.hypot(error, spread))

    def _score(self, batch: Mapping[str, Tensor], risks: Mapping[str, tuple[float, float]]) -> None:
        keep = batch[KEEP]
        for name, losses in batch.items():
            risk = risks[name]
            if not math.isfinite(risk[0]):
                self._out.add(name)
                continue
            shown = self._recent[name]
            share = self.discount if shown else 0.0
            self._scores[name] = share * self._scores.get(name, 0.0) + (1 - share) * risk[0]
            shown.append(risk)
            self._floor = risk if self._floor is None else min(self._floor, risk)
            if name != KEEP and KEEP not in self._out:
                self._leads[name].add(keep - losses)

    def _best(self) -> str | None:
        """The candidate that leads, by the mean of its lead."""
        alive = [name for name in self._leads if name not in self._out and self._leads[name].count]
        return max(alive, key=lambda name: self._leads[name].mean, default=None)

    def _early(self) -> Decision:
        if KEEP in self._out:
            alive = {name: score for name, score in self._scores.items() if name not in self._out}
            return self._switch(min(alive, key=lambda name: alive[name])) if alive else Decision()
        name = self._best()
        if name is None:
            return Decision()
        lead = self._leads[name]
        if lead.mean > max(self.margin, self.early_z * lead.error):
            return self._switch(name)
        return Decision()

    def _trial(self, batch: Mapping[str, Tensor]) -> Decision:
        risks = {name: _risk(values) for name, values in batch.items()}
        if self._lost(risks):
            self.trials += 1
            self._open()
            shown = risks[KEEP][0]
            if math.isfinite(shown):
                self._scores[KEEP] = shown
            else:
                self._out.add(KEEP)
            return Decision("reenter")
        self.k += 1
        self._score(batch, risks)
        decision = self._early()
        if decision.event != "none":
            return decision
        name = self._best()
        lead = None if name is None else self._leads[name]
        if name is not None and lead is not None and self.k >= self.r:
            if lead.mean > max(self.margin, self.margin_z * lead.error):
                return self._switch(name)
            if lead.mean <= 0 or self.k >= self.longest:
                return self._end(KEEP)
        if name is None and self.k >= self.r:
            return self._end(KEEP)
        return Decision()

    def _switch(self, name: str) -> Decision:
        self.switches += 1
        return self._end(name)

    def _end(self, name: str) -> Decision:
        self._history = self._recent.get(name, [])[-self.memory :]
        self.in_trial, self.k, self.quiet = False, 0, 0
        self._leads, self._recent, self._scores, self._out = {}, {}, {}, set()
        return Decision("keep") if name == KEEP else Decision("switch", name)

    def state_dict(self) -> dict[str, Any]:
        """Everything, settings included."""
        state = copy.deepcopy({name: value for name, value in vars(self).items() if name not in ("_leads", "_out")})
        state["_leads"] = {name: vars(lead).copy() for name, lead in self._leads.items()}
        return {**state, "_out": sorted(self._out)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""
        vars(self).update(copy.deepcopy(state))
        self._leads = {name: _Lead(**lead) for name, lead in state["_leads"].items()}
        self._out = set(state["_out"])
