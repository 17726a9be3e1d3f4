# SPDX-License-Identifier: Apache-2.0
"""DriftSurf around any `nn.Module`: predicts, learns, and replaces its model when the data asks for it. Section 12."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeops._common import describe, message
from edgeops.drift.modules._bank import ModuleBank
from edgeops.drift.modules._candidate import Factory, OptimizerFactory, Recipe, Reinitialised, cloned, device_of
from edgeops.drift.modules._scores import PerSample, Score
from edgeops.drift.modules.buffer import ReplayBuffer
from edgeops.drift.monitor import KEEP, DriftMonitor
from edgeops.drift.trial import Trial


@dataclass(frozen=True)
class DriftReport:
    """What a step led to: plain numbers and words, to be logged or sent.

    Args:
        step: batches observed so far.
        points: labelled points of this batch.
        risk: mean score on it of the model served before, measured before training.
        reference: what the risk was compared with, the best of the last batches; `None` at first.
        standard_error: of the risk.
        test: which test fired: "entry", "challenge", "diverged", "re-entry", "exit", or `None`.
        scores: mean scores of all candidates on it.
        event: as in `Decision`; "switch" also where a trial was entered and decided within this batch.
        served: the candidate that predicts next: "keep", "fresh", "warm", "again ...".
        in_trial: whether a trial goes on.
        skipped: optimizer steps left out so far, for a loss or gradient that was not finite.
    """

    step: int = 0
    points: int = 0
    risk: float = math.nan
    reference: float | None = None
    standard_error: float = math.nan
    test: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    event: str = "none"
    served: str = KEEP
    in_trial: bool = False
    skipped: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As a plain dict.

        >>> DriftReport(step=3, risk=0.25).as_dict()["risk"]
        0.25
        """
        return dataclasses.asdict(self)


class DriftSurf(nn.Module):
    """A model that is trained on a stream and survives changes of it.

    It trains its model on each labelled batch. When the error rises, it starts a trial: a new model and a copy of the
    old one with a short memory learn beside it, the best serves meanwhile, and one that is better beyond doubt stays.
    A false alarm costs some computing, not the model (spec, sections 3 and 12).

    Args:
        module: the first model, which is trained in place and of which new ones are made by its layers'
            `reset_parameters`; or a function that builds one.
        optimizer: makes an optimizer of parameters, as `lambda p: torch.optim.Adam(p, lr=1e-3)`.
        loss_fn: per-sample loss of outputs and labels (`reduction="none"`), trained.
        monitor: decides; of this learner alone.
        score: what the monitor compares: "error", the wrong share, of logits `[n, classes]` or signs `[n]`, `[n, 1]`;
            "residual", the absolute residual in units of its running median; a function of outputs and labels that
            returns `[n]`; `None`, errors for labels that are whole numbers, else residuals.
        fresh: whether a new model is a candidate.
        warm: whether a copy with a new window is one.
        archive: models that were replaced and are tried again.
        buffer: points to train on again; 64 MiB by default.
        rate: points trained on for each new one: itself, and `rate - 1` from the model's window.
        minibatch: points of an optimizer step, about.
        seed: of first values, the order of points and dropout. The global generators are left as they are.
        batched: whether the candidates of a trial run as one call over stacked parameters: `True`, `False`, or "auto",
            where the module allows it; `execution` tells.
        compile: whether the step is compiled, or a backend of `torch.compile`: one graph for one model, one for many.
        scheduler: makes a schedule of an optimizer; steps once a batch.
        scaler: makes a gradient scaler, as `torch.amp.GradScaler`.
        autocast: makes a context for the models' forward passes, as `lambda: torch.autocast("cpu", torch.bfloat16)`.
        on_unlabeled: called with this learner and a batch given to `unlabeled`.
        waiting: predictions that may wait for labels.

    Memory: the buffer's `max_bytes`, and models with their optimizers: 1 + archive outside a trial, 1 + fresh + warm +
    2 * archive in one (what was archived, and the copies that are tried), and where something is archived one more at
    the moment of a switch. Batches that wait for labels come on top.

    Raises:
        ValueError: a layer cannot make new values; a setting out of range.

    >>> model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> drift = DriftSurf(model, lambda p: torch.optim.Adam(p, lr=0.02), nn.CrossEntropyLoss(reduction="none"))
    >>> generator = torch.Generator().manual_seed(0)
    >>> for step in range(16):
    ...     x = torch.randn(200, 2, generator=generator)
    ...     y = (x.sum(1) > 0).long() if step < 8 else (x.sum(1) < 0).long()
    ...     outputs = drift.predict(x)
    ...     report = drift.observe(x, y)
    >>> report.step, report.risk < 0.1, drift.monitor.switches
    (16, True, 1)
    """

    def __init__(
        self,
        module: nn.Module | Factory,
        optimizer: OptimizerFactory,
        loss_fn: PerSample,
        *,
        monitor: DriftMonitor | None = None,
        score: str | PerSample | None = None,
        fresh: bool = True,
        warm: bool = True,
        archive: int = 1,
        buffer: ReplayBuffer | None = None,
        rate: float = 2.0,
        minibatch: int = 64,
        seed: int = 0,
        batched: bool | str = "auto",
        compile: object = False,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        scaler: Callable[[], Any] | None = None,
        autocast: Callable[[], Any] | None = None,
        on_unlabeled: Callable[[DriftSurf, Tensor], Any] | None = None,
        waiting: int = 64,
    ) -> None:
        super().__init__()
        if not (rate >= 1 and minibatch >= 1 and archive >= 0 and waiting >= 0 and batched in (True, False, "auto")):
            rule = "rate and minibatch must be at least 1, archive and waiting not negative, batched a bool or 'auto'"
            got = f"{rate}, {minibatch}, {archive}, {waiting}, {batched!r}"
            raise ValueError(message("DriftSurf", rule, got, "rate=2, minibatch=64 are usual."))
        first = module if isinstance(module, nn.Module) else None
        factory: Factory | None = module if first is None else Reinitialised(first) if fresh else None
        recipe = Recipe(factory, optimizer, scheduler, scaler, seed)
        if first is not None:
            recipe.device = device_of(first)
        else:
            recipe.device = torch.get_default_device()
        self._bank = ModuleBank(
            recipe,
            first,
            loss_fn,
            Score(score),
            ReplayBuffer(seed=seed) if buffer is None else buffer,
            rate=rate,
            minibatch=minibatch,
            batched=batched,
            compiled=compile,
            widest=1 + fresh + warm + archive,
            autocast=autocast,
        )
        self.monitor = DriftMonitor() if monitor is None else monitor
        self._trial = Trial(self._bank, self.monitor, fresh=fresh, warm=warm, archive=archive)
        self._bank.diverged = self._out
        self._on_unlabeled, self._waiting = on_unlabeled, waiting
        self._late: dict[int, tuple[Tensor, Tensor, int]] = {}
        self._ids = 0
        self._step = 0
        self._diverged = False
        self._last: tuple[weakref.ref[Tensor], int, int, int, Tensor] | None = None
        self._report = DriftReport()

    # asked by users

    @property
    def serve(self) -> str:
        """The name of the candidate that predicts."""
        return self._trial.serve

    @property
    def module(self) -> nn.Module:
        """The model that predicts now; after a switch it is another one."""
        return self._bank.candidates[self.serve].module

    @property
    def execution(self) -> str:
        """How a trial's candidates run: "batched", or why one by one."""
        return "batched" if self._bank.alone is None else f"one by one: {self._bank.alone}"

    @property
    def nbytes(self) -> int:
        """Bytes held now: models with optimizers, the buffer, and what waits for labels."""
        late = sum(t.numel() * t.element_size() for x, outputs, _ in self._late.values() for t in (x, outputs))
        return self._bank.nbytes + late

    def forward(self, x: Tensor) -> Tensor:
        """The served model's outputs, as `predict`."""
        return self.predict(x)

    def predict(self, x: Tensor) -> Tensor:
        """Outputs of the served model, in evaluation mode and without gradients, of points `[n, ...]`.

        A model whose outputs for finite points are not finite is not served: another one answers.

        Raises:
            ValueError: points of another shape than those trained on.
        """
        self._bank.buffer.check(x)
        bank = self._bank
        outputs = bank.outputs(self.serve, x)
        if not bool(outputs.isfinite().all()) and bool(x.isfinite().all()):
            outputs = self._another(x, outputs)
        if not x.is_inference():
            self._last = (weakref.ref(x), x._version, bank.candidates[self.serve].uid, bank.version, outputs)
        return outputs

    def _another(self, x: Tensor, outputs: Tensor) -> Tensor:
        """The answer of a model that gives a finite one; `outputs` where none does."""
        tried = set()
        while self.monitor.in_trial and self.serve not in tried:
            tried.add(self.serve)
            self._out(self.serve)
            other = self._bank.outputs(self.serve, x)
            if bool(other.isfinite().all()):
                return other
        other_or_none = self._bank.replace(x)
        if other_or_none is None:
            return outputs
        self._out(KEEP)
        return other_or_none

    def predict_later(self, x: Tensor) -> tuple[Tensor, int]:
        """As `predict`, for a batch whose labels come later: the outputs, and a number to give to `observe` then.

        Raises:
            ValueError: too many predictions wait for labels.
        """
        if len(self._late) >= self._waiting:
            rule, got = f"at most {self._waiting} predictions may wait for labels", str(len(self._late))
            raise ValueError(
                message("DriftSurf.predict_later", rule, got, "Raise waiting=, or `forget` those without.")
            )
        outputs = self.predict(x)
        self._ids += 1
        self._late[self._ids] = (x.detach().clone(), outputs.clone(), self._bank.candidates[self.serve].uid)
        return outputs, self._ids

    def forget(self, prediction: int) -> None:
        """No labels will come for this prediction."""
        self._take(prediction, "DriftSurf.forget")

    def _take(self, prediction: int, who: str) -> tuple[Tensor, Tensor, int]:
        if prediction not in self._late:
            known = 1 <= prediction <= self._ids
            rule = "a prediction is given its labels once" if known else "the prediction must be one of predict_later"
            got = f"{prediction} again" if known else str(prediction)
            raise ValueError(message(who, rule, got, f"{len(self._late)} wait for labels."))
        return self._late.pop(prediction)

    def observe(self, x: Tensor | int, y: Tensor) -> DriftReport:
        """Score the model on a labelled batch, then train on it; decide whether a trial begins or ends.

        Args:
            x: points `[n, ...]`, or the number that `predict_later` gave for them: then the risk is that of the
                model which served at that time.
            y: labels or targets, one for each point.

        Returns:
            The step's report; an empty batch changes nothing.

        Raises:
            ValueError: shapes that do not fit, a NaN or infinite value, labels beyond the outputs' classes, a loss that
                is not per sample, an unknown prediction or one that had its labels. Nothing is changed then.
        """
        if not isinstance(x, Tensor):
            waiting = self._take(x, "DriftSurf.observe")
            try:
                return self._observe(waiting[0], y, {waiting[2]: waiting[1]}, waiting[1])
            except (ValueError, TypeError):
                self._late[x] = waiting
                raise
        known: dict[int, Tensor] = {}
        if self._last is not None:
            given, changed, uid, version, outputs = self._last
            if given() is x and (changed, version) == (x._version, self._bank.version):
                known = {uid: outputs}
        return self._observe(x.detach(), y, known, None)

    def _check(self, x: Tensor, y: Tensor) -> None:
        if not isinstance(y, Tensor):
            raise TypeError(message("DriftSurf.observe", "y must be a tensor", describe(y), "torch.as_tensor helps."))
        self._bank.buffer.check(x, y)
        for name, values in (("x", x), ("y", y)):
            if values.is_floating_point() and not bool(values.isfinite().all()):
                rule, advice = f"{name} must be finite", "Fill or drop such points."
                raise ValueError(message("DriftSurf.observe", rule, "NaN or infinite values", advice))
        if not self._step and len(x):
            self._bank.try_loss(x, y)

    def _observe(self, x: Tensor, y: Tensor, known: dict[int, Tensor], then: Tensor | None) -> DriftReport:
        self._check(x, y)
        if not len(x):
            return self._report
        bank, monitor, y = self._bank, self.monitor, y.detach()
        names, reference, serving = monitor.candidates, monitor.reference, self.serve
        bank.known = known if len(names) == 1 else {}
        bank.seen = None
        event = self._trial.observe(x, y)
        losses = bank.seen
        assert losses is not None
        self._step += 1
        mine = losses[names.index(serving)] if then is None else bank.score(then, y)
        if bank.score.kind == "residual" and event in ("none", "pending") and len(names) == 1:
            monitor.rescale(bank.score.learn(losses[0] * bank.score.unit))
        risk, test = float(mine.mean()), {"reenter": "re-entry", "keep": "exit", "switch": "exit"}.get(event)
        if event == "enter":
            rise = reference is not None and float(losses[0].mean()) > reference
            test = "entry" if rise else "challenge"
            if self._diverged or not bool(losses[0].isfinite().all()):
                test, self._diverged = "diverged", False
        if event in ("enter", "reenter") and not monitor.in_trial:
            event = "switch"
        self._report = DriftReport(
            step=self._step,
            points=len(x),
            risk=risk,
            reference=reference,
            standard_error=float(mine.std(unbiased=False)) / math.sqrt(len(x)),
            test=test,
            scores=dict(zip(names, losses.mean(1).tolist(), strict=True)),
            event=event,
            served=self.serve,
            in_trial=monitor.in_trial,
            skipped=bank.skipped,
        )
        return self._report

    def step_report(self) -> DriftReport:
        """The report of the last batch that was observed."""
        return self._report

    def unlabeled(self, x: Tensor) -> Any:
        """A batch that will never have labels: no test, no training; what `on_unlabeled` returns for it."""
        self._bank.buffer.check(x)
        return None if self._on_unlabeled is None else self._on_unlabeled(self, x)

    def _out(self, name: str) -> None:
        """A candidate diverged."""
        self.monitor.disqualify(name)
        self._diverged = self._diverged or name == KEEP

    # saved and moved

    def get_extra_state(self) -> dict[str, Any]:
        """Everything, in the middle of a trial as well: tensors, numbers and words alone. `state_dict` holds it."""
        late = {number: (x.clone(), outputs.clone(), uid) for number, (x, outputs, uid) in self._late.items()}
        numbers = {"step": self._step, "ids": self._ids, "diverged": self._diverged}
        state = {"bank": self._bank.state_dict(), "trial": cloned(self._trial.state_dict()), "late": late}
        return {**state, **numbers, "report": self._report.as_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put everything back; what follows is then the same to the bit, with as many threads for batch norms."""
        self._bank.load_state_dict(state["bank"])
        self._trial.load_state_dict(cloned(state["trial"]))
        self._late = {number: (x.clone(), outputs.clone(), uid) for number, (x, outputs, uid) in state["late"].items()}
        self._step, self._ids, self._diverged = state["step"], state["ids"], state["diverged"]
        self._report, self._last = DriftReport(**state["report"]), None
        self._bank.restack(self.monitor.candidates)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DriftSurf:
        super()._apply(fn, recurse)
        self._bank.apply(fn)
        self._last = None
        return self
