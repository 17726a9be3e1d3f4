# SPDX-License-Identifier: Apache-2.0
"""DriftSurf's decisions as a state machine over risks: no model inside. Drift spec, section 3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

from edgeops._common import message

FORMS = ("A", "B", "C", "standard")


@dataclass(frozen=True)
class PublishedDecision:
    """What the owner of the models does after a batch, in this order.

    Args:
        freeze: copy the model to the frozen one (form B: a new best risk).
        replace: replace the model by a new one whose window begins with this batch (form "standard").
        enter: start a reactive model whose window begins with this batch; then call `entered` with its risk.
        clear: empty the trial's sample.
        extend: add this batch to the trial's sample.
        train: the models to train on the batch.
        freeze_reactive: after training, copy the reactive model to the frozen reactive one (form B, half-way).
        compare: after training, the two models whose risks on the trial's sample go to `conclude`, or `None`.
    """

    freeze: bool = False
    replace: bool = False
    enter: bool = False
    clear: bool = False
    extend: bool = False
    train: tuple[str, ...] = ("model",)
    freeze_reactive: bool = False
    compare: tuple[str, str] | None = None


def _worst(risk: float) -> float:
    """A risk that is not a number is worse than any."""
    return math.inf if math.isnan(risk) else float(risk)


class PublishedMonitor:
    """Stable and reactive states of DriftSurf.

    After each batch: `observe` the risks that the models showed on it before training, do what the `PublishedDecision`
    says, and where it asks, `conclude` the trial. `serve` names the model that predicts the next batch.

    Args:
        form: "A", two tests (a stable model beside the model); "B", the frozen model's test; "C", as B, but a trial is
            given up as soon as the test no longer fires; "standard", which has no trial and replaces the model at once.
        delta: rise of the risk that starts a trial; 0 and infinity are allowed.
        r: length of a trial in batches.
        greedy: serve the reactive model within a trial where it was better on the last batch.
        as_published: the quirks of the authors' programs: form A keeps the sample of a trial that kept the model, and
            takes a best risk of exactly 0 for none.

    A risk that is not a number counts as worse than any: it starts a trial whatever `delta` is, and its model is not
    served while another one has a risk.

    >>> monitor = PublishedMonitor(r=1)
    >>> monitor.observe(0.1).train, monitor.serve
    (('model',), 'model')
    >>> decision = monitor.observe(0.5)
    >>> decision.enter, decision.train, decision.compare
    (True, ('model', 'reactive'), ('model', 'reactive'))
    >>> monitor.entered(0.7)
    >>> monitor.conclude(0.4, 0.2), monitor.has_stable
    (True, True)
    """

    def __init__(
        self, form: str = "A", *, delta: float = 0.1, r: int = 4, greedy: bool = True, as_published: bool = False
    ) -> None:
        if form not in FORMS:
            raise ValueError(
                message("PublishedMonitor", f"form must be one of {', '.join(FORMS)}", repr(form), "Use 'A'.")
            )
        if not delta >= 0:
            raise ValueError(
                message("PublishedMonitor", "delta must not be negative", str(delta), "The default is 0.1.")
            )
        if not (isinstance(r, int) and r >= 1):
            raise ValueError(
                message("PublishedMonitor", "r must be a whole number from 1", str(r), "The default is 4.")
            )
        self.form, self.delta, self.r, self.greedy, self.as_published = form, delta, r, greedy, as_published
        self.reactive_mode = self.has_stable = False
        self.k = self.switches = self.trials = 0
        self._again = False
        self._best: float | None = None
        self._now = self._now_reactive = math.inf
        self._reactive_best: float | None = None

    @property
    def serve(self) -> str:
        """The model that predicts the next batch, "model" or "reactive"."""
        if not self.reactive_mode:
            return "model"
        lost = math.isinf(self._now) and not math.isinf(self._now_reactive)
        return "reactive" if lost or (self.greedy and self._now_reactive < self._now) else "model"

    @property
    def best(self) -> float | None:
        """The least risk that the model has shown on a batch."""
        return self._best

    def _lowered(self, best: float | None, risk: float) -> float:
        unset = best is None or (self.as_published and best == 0.0)
        return risk if unset or best is None else min(best, risk)

    def observe(
        self,
        model: float,
        *,
        stable: float | None = None,
        reactive: float | None = None,
        frozen: float | None = None,
    ) -> PublishedDecision:
        """Take in the risks on a batch, before anything trains on it.

        Args:
            model: of the model.
            stable: of the stable model, where `has_stable` and no trial runs.
            reactive: of the reactive model, within a trial.
            frozen: of the frozen model (forms B, C, "standard"); not needed while there is none.

        Raises:
            ValueError: a risk is missing that the state needs.
        """
        self._now = _worst(model)
        if self.reactive_mode:
            if reactive is None:
                self._missing("reactive", "a trial runs")
            else:
                self._now_reactive = _worst(reactive)
                self._reactive_best = self._lowered(self._reactive_best, self._now_reactive)
        return self._observe_a(stable) if self.form == "A" else self._observe_frozen(frozen)

    def entered(self, risk: float) -> None:
        """The untrained reactive model's risk on the batch that started the trial."""
        self._now_reactive = self._reactive_best = _worst(risk)

    def conclude(self, first: float, second: float) -> bool:
        """The trial's end, by the risks of `PublishedDecision.compare`'s models on its sample: whether one is replaced.

        Where it is, the reactive model becomes the model, with its window. In form A a new stable model starts behind
        this batch; in form B the frozen model is a copy of the new one.
        """
        margin = 0.0 if self.form == "A" else self.delta / 2
        first, second = _worst(first), _worst(second)
        switch = first > second if math.isinf(first) else first - margin > second
        self.reactive_mode = False
        if switch:
            self.switches += 1
            self._now = self._now_reactive
            self.has_stable = self.form == "A"
            self._best = self._reactive_best if self.form == "A" else None
        return switch

    def _missing(self, name: str, state: str) -> NoReturn:
        rule, advice = f"needs the risk of the {name} model", f"Pass it: {state}."
        raise ValueError(message("PublishedMonitor.observe", rule, "None", advice))

    def _fires(self, risk: float, best: float | None) -> bool:
        if math.isinf(risk):
            return True
        return best is not None and risk > best + self.delta

    def _observe_a(self, stable: float | None) -> PublishedDecision:
        self._best = self._lowered(self._best, self._now)
        enter = False
        if not self.reactive_mode:
            if self.has_stable and stable is None:
                self._missing("stable", "there is one")
            younger = stable is not None and self._now > _worst(stable) + self.delta / 2
            enter = self._fires(self._now, self._best) or younger
            if not enter:
                return PublishedDecision(train=("model", "stable") if self.has_stable else ("model",))
            self._begin()
        self.k += 1
        return PublishedDecision(
            enter=enter,
            clear=enter and not self.as_published,
            extend=True,
            train=("model", "reactive"),
            compare=("model", "reactive") if self.k == self.r else None,
        )

    def _observe_frozen(self, frozen: float | None) -> PublishedDecision:
        known = self._best is not None
        freeze = not self.reactive_mode and (not known or self._now < (self._best or 0.0))
        if freeze:
            self._best, risk = self._now, self._now
        elif frozen is None:
            self._missing("frozen", "there is one")
        else:
            risk = _worst(frozen)
        fire = self._fires(risk, self._best)
        if self.form == "C" and self.reactive_mode and not fire:
            self.reactive_mode = False
            freeze = self._now < (self._best or 0.0)
            self._best = self._now if freeze else self._best
            return PublishedDecision(freeze=freeze)
        if self.form == "standard":
            if fire:
                self.switches += 1
                self._best = None
            return PublishedDecision(freeze=freeze, replace=fire)
        enter = fire and (not self.reactive_mode or self._again)
        if not self.reactive_mode and not fire:
            return PublishedDecision(freeze=freeze)
        if enter:
            self._begin()
        if not fire:
            self._again = True
        self.k += 1
        return PublishedDecision(
            freeze=freeze,
            enter=enter,
            clear=enter,
            extend=self.r / 2 < self.k <= self.r,
            train=("model", "reactive"),
            freeze_reactive=self.k == max(1, self.r // 2) and self.r > 1,
            compare=None if self.k < self.r else ("frozen", "frozen_reactive" if self.r > 1 else "reactive"),
        )

    def _begin(self) -> None:
        self.reactive_mode, self.k, self._again = True, 0, False
        self.trials += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything, settings included."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""
        vars(self).update(state)
