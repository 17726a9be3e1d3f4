# SPDX-License-Identifier: Apache-2.0
"""Thousands of independent DriftSurf learners stepped as one program. Drift spec, sections 12 and 14."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgeops._common import describe, message
from edgeops.drift.monitor import KEEP, DriftMonitor
from edgeops.drift.population._monitors import ENTER, EVENTS, KEPT, NONE, PENDING, REENTER, SWITCH, DriftMonitors
from edgeops.drift.population._slots import Slots
from edgeops.drift.population._stacked import SGD as SGD
from edgeops.drift.population._stacked import Adam as Adam
from edgeops.drift.population._stacked import Architecture, Elementwise, LossFn, Pass, Rows, chunks, draw

_WHO = "DriftSurfPopulation"


class DriftSurfPopulation:
    """Independent learners of one architecture, each with its own data, its own `DriftMonitor` and its own trials.

    Each learner does what `Trial` does with a bank of its own: it scores a batch, decides, and then takes one step on
    it and `replay` steps on batches of its window. All of them are stepped together: models are rows of a matrix,
    passes are batched, decisions are tensors, and no loop runs over learners. Only learners in a trial, or with models
    of the past, have rows beside their model; these are `memory()["slots"]`, and come and go.

    Args:
        module_factory: makes a model; called `inits` times. Models must be functions of their parameters: no running
            statistics, no random numbers.
        learners: how many.
        loss_fn: loss of each point, `(outputs [n, ...], y [n, ...]) -> [n]`.
        optimizer: `SGD` or `Adam` of this module, or another `Elementwise`.
        risk_fn: what the monitor compares, as `loss_fn`; the loss itself where there is none.
        monitor: its settings are every learner's.
        fresh, warm, archive: candidates, as of `Trial`.
        replay: steps a batch on stored batches of the window.
        window: batches that are stored for each learner.
        inits: different initial models. Which one a learner begins with, and which one is its fresh candidate of a
            trial, is drawn.
        seed: of initial models and draws.
        chunk: learners whose passes run at once; all of them where it is `None`, which GPUs want. A few hundred keep
            a CPU's caches warm.
        device: where everything lives.

    >>> from functools import partial
    >>> loss = partial(nn.functional.cross_entropy, reduction="none")
    >>> population = DriftSurfPopulation(lambda: nn.Linear(4, 2), 100, loss, optimizer=SGD(lr=0.5))
    >>> x = torch.randn(100, 32, 4)
    >>> for _ in range(20):
    ...     events = population.observe(x, (x[..., 0] > 0).long())
    >>> bool((population.predict(x).argmax(-1) == (x[..., 0] > 0)).float().mean() > 0.9)
    True
    """

    def __init__(
        self,
        module_factory: Callable[[], nn.Module],
        learners: int,
        loss_fn: LossFn,
        *,
        optimizer: Elementwise,
        risk_fn: LossFn | None = None,
        monitor: DriftMonitor | None = None,
        fresh: bool = True,
        warm: bool = True,
        archive: int = 1,
        replay: int = 0,
        window: int = 8,
        inits: int = 64,
        seed: int = 0,
        chunk: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if learners < 1 or inits < 1 or archive < 0 or replay < 0 or window < 1 or (chunk is not None and chunk < 1):
            rule = "learners, inits, window and chunk must be at least 1, archive and replay not negative"
            got = f"{learners}, {inits}, {window}, {chunk}, {archive}, {replay}"
            raise ValueError(message(_WHO, rule, got, "archive=0 keeps no models of the past."))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = [module_factory() for _ in range(inits)]
        self.learners, self.replay, self.window, self.seed, self.chunk = learners, replay, window, seed, chunk
        self.architecture = Architecture(made[0], optimizer, loss_fn)
        self.risk_fn = risk_fn
        self.columns = (KEEP, *["fresh"] * fresh, *["warm"] * warm, *(f"again {i}" for i in range(archive)))
        self.inits = torch.stack([self.architecture.flat(module) for module in made]).to(device)
        self.device = self.inits.device
        made[0].to(device)
        self.monitors = DriftMonitors(learners, len(self.columns), monitor, self.device)
        self._each = torch.arange(learners, device=self.device)
        self.home = Rows(self._initial(self._each), optimizer.states)
        self.slots = Slots(self.home, learners, len(self.columns), archive)
        self.count, self.start = torch.zeros_like(self._each), torch.zeros_like(self._each)
        self._stored: tuple[Tensor, Tensor] | None = None

    def __repr__(self) -> str:
        kind = type(self.architecture.module).__name__
        return f"{_WHO}({self.learners} x {kind}, {self.architecture.numbers} parameters, {', '.join(self.columns)})"

    @property
    def serve(self) -> Tensor:
        """Which candidate predicts, an index into `columns`, `[learners]`."""
        return self.monitors.serve

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Outputs `[learners, n, ...]` of the served models on each learner's own points `[learners, n, ...]`."""
        self._check(x)
        parts = [self.architecture.outputs(self.home.values[a:b], x[a:b]) for a, b in chunks(self.learners, self.chunk)]
        out = torch.cat(parts)
        serve = self.serve
        others = (serve > 0).nonzero()[:, 0]
        if len(others):
            models = self.slots.rows.values[self.slots.table[others, serve[others]]]
            out[others] = self.architecture.outputs(models, x[others])
        return out

    def model(self, learner: int) -> nn.Module:
        """A copy of the model that serves a learner."""
        column = int(self.serve[learner])
        slot = int(self.slots.table[learner, column])
        row = self.slots.rows.values[slot] if column else self.home.values[learner]
        return self.architecture.fill(copy.deepcopy(self.architecture.module), row)

    def observe(self, x: Tensor, y: Tensor, present: Tensor | None = None) -> Tensor:
        """Take in a batch of each learner, `[learners, m, ...]`, and train on it.

        Args:
            present: which learners have a batch, `[learners]` bool; what the others are given is not looked at.

        Returns:
            What happened to each, an index into `EVENTS`, `[learners]`.
        """
        self._check(x, y)
        if present is None:
            present = torch.ones_like(self.monitors.in_trial)
        if not x.shape[1] or not bool(present.any()):
            return torch.zeros_like(self._each)
        # every learner computes where most have a batch, otherwise only those that do
        rows = None if int(present.sum()) * 2 > self.learners else present.nonzero()[:, 0]
        home = self.home if rows is None else self.home.take(rows)
        mine, labels = (x, y) if rows is None else (x[rows], y[rows])
        bounds = list(chunks(len(home), self.chunk))
        passes = [self.architecture.forward(home.values[a:b], mine[a:b], labels[a:b]) for a, b in bounds]
        learner, column, slot = self.slots.find(present)
        tried = self.slots.rows.take(slot)
        tries = [(a, b, self._forward(tried, x, y, learner, a, b)) for a, b in self._parts(learner)]
        risks = torch.zeros(self.learners, len(self.columns), x.shape[1], device=self.device)
        seen = torch.cat([self._risk(p, labels[a:b]) for (a, b), p in zip(bounds, passes)]).to(risks.dtype)
        risks[:, 0].copy_(seen) if rows is None else risks[:, 0].index_copy_(0, rows, seen)
        for a, b, done in tries:
            risks[learner[a:b], column[a:b]] = self._risk(done, y[learner[a:b]]).to(risks.dtype)
        events, winners = self.monitors.observe(risks, present)
        entered = (events == ENTER) | (events == REENTER)
        trains = present & ~entered & (events != SWITCH)
        self._update(home, passes, bounds, trains if rows is None else trains[rows])
        if rows is not None:
            self.home.put(rows, home)
        goes_on = (events == NONE) | (events == PENDING)
        which = goes_on[learner] | (winners[learner] == column)
        self._update(tried, [done for *_, done in tries], [(a, b) for a, b, _ in tries], which)
        self.slots.rows.put(slot, tried)
        self._store(x, y, present)
        self._end((events == KEPT) | (events == SWITCH), winners)
        if bool(entered.any()):
            self._enter(entered.nonzero()[:, 0], x, y)
        for turn in range(self.replay):
            self._replay(turn, present, rows)
        self.slots.shrink()
        return events

    def _risk(self, done: Pass, y: Tensor) -> Tensor:
        if self.risk_fn is None:
            return done.loss.detach()
        return self.architecture.each(self.risk_fn, done.outputs, y)

    def _parts(self, rows: Tensor) -> list[tuple[int, int]]:
        return list(chunks(len(rows), self.chunk)) if len(rows) else []

    def _forward(self, rows: Rows, x: Tensor, y: Tensor, learner: Tensor, a: int, b: int) -> Pass:
        return self.architecture.forward(rows.values[a:b], x[learner[a:b]], y[learner[a:b]])

    def _update(self, rows: Rows, passes: list[Pass], bounds: list[tuple[int, int]], which: Tensor) -> None:
        """The steps of passes, of the rows in `which`; those in which no row takes part are not made."""
        for done, (a, b) in zip(passes, bounds, strict=True):
            mask = which[a:b]
            if bool(mask.any()):
                self.architecture.update(rows.part(a, b), done, None if bool(mask.all()) else mask)

    def _initial(self, learners: Tensor, trials: Tensor | None = None) -> Tensor:
        trials = torch.zeros_like(learners) if trials is None else trials
        return self.inits[draw(self.seed, learners, trials) % len(self.inits)]

    def _end(self, ended: Tensor, winners: Tensor) -> None:
        """Trials that are over: the winner is the model, what it replaced is shelved, the rest is forgotten."""
        won = (ended & (winners > 0)).nonzero()[:, 0]
        if len(won):
            column = winners[won]
            slot = self.slots.table[won, column]
            replaced = won[column != (self.columns.index("warm") if "warm" in self.columns else 0)]
            self.slots.shelve(replaced, self.home.take(replaced))
            self.home.put(won, self.slots.rows.take(slot))
            self.start[won] = self.slots.start[slot]
        if bool(ended.any()):
            self.slots.forget(ended.nonzero()[:, 0])

    def _enter(self, entered: Tensor, x: Tensor, y: Tensor) -> None:
        """New trials of the learners `[n]`: candidates train on half of the batch, and are scored on the other."""
        slots, monitors = self.slots, self.monitors
        slots.forget(entered)
        past = slots.past[entered]
        live = torch.cat([torch.ones_like(entered)[:, None].expand(-1, len(self.columns) - past.shape[1]), past + 1], 1)
        live = live > 0
        monitors.begin(entered, live)
        live[:, 0] = False
        row, column = live.nonzero(as_tuple=True)
        learner = entered[row]
        made = self.home.take(learner)
        for name in self.columns[1:]:
            here = (column == self.columns.index(name)).nonzero()[:, 0]
            if name == "fresh":
                new = Rows(self._initial(learner[here], monitors.trials[learner[here]]), len(made.states))
                made.put(here, new)
            elif name != "warm":
                made.put(here, slots.rows.take(slots.past[learner[here], int(name.split()[1])]))
        slot = slots.lend(len(learner))
        slots.table[learner, column] = slot
        slots.start[slot] = self.count[learner] - 1
        slots.rows.put(slot, made)
        half = x.shape[1] // 2
        if half:
            self._train(entered, x[:, :half], y[:, :half])
        x, y = x[:, half:], y[:, half:]
        risks = torch.zeros(len(entered), len(self.columns), x.shape[1], device=self.device)
        risks[:, 0] = self._judge(self.home.values[entered], x, y, entered).to(risks.dtype)
        if len(learner):
            risks[row, column] = self._judge(slots.rows.values[slot], x, y, learner).to(risks.dtype)
        events, won = monitors.head_start(entered, risks)
        winners = torch.full_like(self._each, -1)
        winners[entered] = won
        self._end(torch.zeros_like(self.monitors.in_trial).index_fill_(0, entered[events == SWITCH], True), winners)
        self._train(entered, x, y)

    def _judge(self, values: Tensor, x: Tensor, y: Tensor, learner: Tensor) -> Tensor:
        fn = self.risk_fn or self.architecture.loss_fn
        parts = []
        for a, b in self._parts(learner):
            out = self.architecture.outputs(values[a:b], x[learner[a:b]])
            parts.append(self.architecture.each(fn, out, y[learner[a:b]]))
        return torch.cat(parts)

    def _train(self, learners: Tensor, x: Tensor, y: Tensor) -> None:
        """One step of all models of the learners `[n]` on their points of `x[learners]`."""
        mask = torch.zeros_like(self.monitors.in_trial).index_fill_(0, learners, True)
        learner, _, slot = self.slots.find(mask)
        for rows, index, own in ((self.home, learners, learners), (self.slots.rows, slot, learner)):
            models = rows.take(index)
            for a, b in self._parts(index):
                self.architecture.fit(models.part(a, b), x[own[a:b]], y[own[a:b]])
            rows.put(index, models)

    def _store(self, x: Tensor, y: Tensor, present: Tensor) -> None:
        if self.replay:
            if self._stored is None:
                self._stored = tuple(t.new_zeros(t.shape[0], self.window, *t.shape[1:]) for t in (x, y))  # type: ignore[assignment]
            assert self._stored is not None
            rows = present.nonzero()[:, 0]
            for buffer, new in zip(self._stored, (x, y)):
                buffer[rows, self.count[rows] % self.window] = new[rows]
        self.count += present

    def _replay(self, turn: int, present: Tensor, rows: Tensor | None) -> None:
        """One step of every model on a stored batch of its window."""
        assert self._stored is not None
        each = present.nonzero()[:, 0] if rows is None else rows
        learner, _, slot = self.slots.find(present)
        everyone = rows is None and len(each) == self.learners
        for store, index, own, start in (
            (self.home, each, each, self.start[each]),
            (self.slots.rows, slot, learner, self.slots.start[slot]),
        ):
            first = torch.maximum(start, self.count[own] - self.window)
            drawn = draw(self.seed, own, self.count[own], torch.full_like(own, turn))
            at = (first + drawn % (self.count[own] - first)) % self.window
            whole = everyone and store is self.home
            models = store if whole else store.take(index)
            for a, b in self._parts(index):
                x, y = (buffer[own[a:b], at[a:b]] for buffer in self._stored)
                self.architecture.fit(models.part(a, b), x, y)
            if not whole:
                store.put(index, models)

    def _check(self, x: Tensor, y: Tensor | None = None) -> None:
        if x.dim() < 2 or x.shape[0] != self.learners:
            rule = f"x must be [{self.learners}, n, ...], one batch for each learner"
            raise ValueError(message(_WHO, rule, describe(x), "Leave learners out by `present`."))
        if y is not None and y.shape[:2] != x.shape[:2]:
            rule = f"y must be [{self.learners}, {x.shape[1]}, ...], one entry for each point"
            raise ValueError(message(_WHO, rule, describe(y), "Pass as many as in x."))
        for buffer, new in zip(self._stored or (), (x, y)):
            if y is not None and new is not None and x.shape[1] and buffer.shape[2:] != new.shape[1:]:
                rule = f"batches must have the shape {tuple(buffer.shape[2:])} of those that are stored"
                raise ValueError(message(_WHO, rule, describe(new), "Use replay=0 where sizes differ."))

    def memory(self) -> dict[str, int]:
        """Bytes: one row for each learner and each slot, models and optimizer state, and what replay stores.

        "models" is `(learners + slots) * bytes of a row`; "slots" counts the rows beside the learners' own.
        """
        stored = sum(t.numel() * t.element_size() for t in self._stored or ())
        models = self.home.bytes + self.slots.rows.bytes
        return {"models": models, "slots": len(self.slots), "stored": stored}

    def report(self) -> dict[str, int]:
        """How many trials and switches there were, and how many learners are in one."""
        totals = {name: int(getattr(self.monitors, name).sum()) for name in ("trials", "switches", "in_trial")}
        return {**totals, "slots in use": int(self.slots.used.sum())}

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, also in the middle of trials."""
        return {
            "monitors": self.monitors.state_dict(),
            "slots": self.slots.state_dict(),
            "home": [t.clone() for t in self.home.tensors],
            "inits": self.inits.clone(),
            "count": self.count.clone(),
            "start": self.start.clone(),
            "stored": None if self._stored is None else [t.clone() for t in self._stored],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back; what follows is bit-identical.

        Raises:
            ValueError: the state is of other sizes.
        """
        if state["home"][0].shape != self.home.values.shape:
            rule = f"needs the state of {self.learners} models of {self.architecture.numbers} numbers"
            got = " and ".join(map(str, state["home"][0].shape))
            raise ValueError(message(f"{_WHO}.load_state_dict", rule, got, "Build it with the same arguments."))
        self.monitors.load_state_dict(state["monitors"])
        self.slots.load_state_dict(state["slots"])
        self.home = Rows.of([t.to(self.device, copy=True) for t in state["home"]])
        self.inits, self.count, self.start = (state[n].to(self.device, copy=True) for n in ("inits", "count", "start"))
        stored = state["stored"]
        self._stored = None if stored is None else tuple(t.to(self.device, copy=True) for t in stored)


__all__ = ["EVENTS", "SGD", "Adam", "DriftSurfPopulation"]
