# SPDX-License-Identifier: Apache-2.0
"""Adapting to unlabeled data at test time, and a trial that takes it back when it fails. Drift spec, sections 12, 14.

Entropy minimisation makes a model surer of what it says, batch by batch, by the scales and shifts of its normalisation
layers. It repairs much of what blur or noise break, and nothing stops it: run long, or on batches of few classes, it
ends by saying one thing of everything. `GuardedAdapter` runs it as the "warm" candidate of a trial against "keep".
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeops._common import describe, message
from edgeops.drift.monitor import KEEP, DriftMonitor

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
WARM = "warm"


@contextmanager
def _evaluation(module: nn.Module, batch_statistics: bool) -> Iterator[None]:
    """A module in evaluation, batch norms by the batch's own statistics where asked; afterwards it is as it was."""
    before = [(part, part.training) for part in module.modules()]
    tracked = [(part, part.track_running_stats) for part in module.modules() if isinstance(part, _BatchNorm)]
    module.eval()
    try:
        if batch_statistics:
            for norm, _ in tracked:
                # without tracking, training mode neither reads nor writes the running statistics
                norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for part, training in before:
            part.training = training
        for norm, tracks in tracked:
            norm.track_running_stats = tracks


class EntropyAdapter:
    """One step of entropy minimisation on each unlabeled batch, of a classifier's normalisation layers alone.

    The mean entropy of the predictions of a batch is made smaller by the layers' weights and biases; batch norms use
    the batch's own statistics, here and in `predict`. Modes, running statistics and other gradients of the module stay
    as they are. Calling it is the hook for unlabeled batches, `(x) -> None`.

    Args:
        module: gives logits `[n, classes]`; is adapted in place.
        optimizer_factory: makes the optimizer of the layers' parameters.

    Raises:
        ValueError: no normalisation layer of the module has weights.

    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <...>
    >>> module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> adapt = EntropyAdapter(module, lambda p: torch.optim.SGD(p, lr=0.1))
    >>> x = torch.randn(32, 4)
    >>> before = float(entropy(adapt.predict(x)).mean())
    >>> for _ in range(10):
    ...     adapt(x)
    >>> float(entropy(adapt.predict(x)).mean()) < before
    True
    """

    def __init__(self, module: nn.Module, optimizer_factory: OptimizerFactory) -> None:
        norms = (part for part in module.modules() if isinstance(part, NORMS))
        self.params = [p for norm in norms for p in norm.parameters(recurse=False)]
        if not self.params:
            rule, advice = "needs normalisation layers with weights", "Use affine=True."
            raise ValueError(message("EntropyAdapter", rule, type(module).__name__, advice))
        self.module = module
        self.optimizer = optimizer_factory(self.params)

    def __call__(self, x: Tensor) -> None:
        """A step on a batch `[n, ...]`; an empty one changes nothing."""
        self.adapt(x)

    def adapt(self, x: Tensor) -> Tensor:
        """The logits of a batch as they were before the step that it leads to, `[n, classes]`."""
        if not len(x):
            return self.predict(x)
        needs = [p.requires_grad for p in self.params]
        held = [p.grad for p in self.params]
        with _evaluation(self.module, True), torch.enable_grad():
            for p in self.params:
                p.requires_grad_(True)
            logits = _logits("EntropyAdapter", self.module(x), x)
            grads = torch.autograd.grad(entropy(logits).mean(), self.params)
            for p, grad in zip(self.params, grads, strict=True):
                p.grad = grad
            self.optimizer.step()
        for p, grad_before, need in zip(self.params, held, needs, strict=True):
            p.grad = grad_before
            p.requires_grad_(need)
        return logits.detach()

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Logits `[n, classes]`, by the batch's own statistics."""
        with _evaluation(self.module, bool(len(x))):
            return _logits("EntropyAdapter", self.module(x), x)

    @property
    def finite(self) -> bool:
        """Whether all adapted parameters are numbers."""
        return all(bool(p.isfinite().all()) for p in self.params)

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy({"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


@dataclass(frozen=True)
class Signals:
    """What can be said of an adapted model without labels, beside the one it came from, on the same points.

    Args:
        finite: whether its outputs are numbers.
        one_class: whether it says one class of all points, and the other model does not say the same of them.
        diversity: effective number of classes, the exponential of the mean prediction's entropy, over the other's.
        disagreement: share of the points of which the other is confident where it says another class; 0 without any.
    """

    finite: bool
    one_class: bool
    diversity: float
    disagreement: float


class GuardedAdapter:
    """Entropy minimisation as a trial: `keep`, the last good model, against `warm`, a copy that adapts.

    Every unlabeled batch adapts `warm`, and is answered by it unless something speaks against it:

    * without labels, on the batch at hand: outputs that are no numbers; one class for all points where `keep` says
      otherwise; a diversity below `diversity`, or a disagreement above `disagreement`. Then `keep` answers this batch.
      Where running means of the last two over about `memory` batches say so, or parameters are no numbers, `warm` is
      made anew from `keep`;
    * with labels, which may be few and late: `observe` compares both by the rules of `DriftMonitor`. A win of `warm`
      makes it the new `keep`; a trial that ends without one, and in which it was the worse, makes it anew from `keep`;
      in between, who was better on the labels answers.

    Without labels `keep` stays the source. It too answers by the batch's own statistics, unless told otherwise: so the
    two differ by what was learned, and not by how they normalise. A source that errs confidently cannot be told from an
    adapted model that does: then only labels help.

    Args:
        module: the source, gives logits `[n, classes]`; it is copied, and stays as it is.
        optimizer_factory: as of `EntropyAdapter`.
        batch_statistics: whether `keep` normalises by the batch's own statistics; where not, by the running ones until
            labels promote `warm`. Batches of few classes are better off without, corrupted ones much worse.
        monitor: decides by labels; as set here a trial begins with every labelled segment that finds none.
        diversity: least effective number of classes, as a share of `keep`'s, in [0, 1].
        disagreement: largest share of confident points on which both may differ, in [0, 1].
        confident: least probability of a class for which `keep` counts as confident.
        memory: batches of the running means.

    >>> module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    >>> guard = GuardedAdapter(module, lambda p: torch.optim.SGD(p, lr=math.inf))
    >>> for _ in range(3):
    ...     outputs = guard.adapt(torch.randn(32, 4))
    >>> bool(outputs.isfinite().all()), guard.returns["parameters are no numbers"]
    (True, 3)
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer_factory: OptimizerFactory,
        *,
        batch_statistics: bool = True,
        monitor: DriftMonitor | None = None,
        diversity: float = 0.6,
        disagreement: float = 0.2,
        confident: float = 0.9,
        memory: int = 10,
    ) -> None:
        if not (0 <= diversity <= 1 and 0 <= disagreement <= 1 and 0 <= confident <= 1 and memory >= 1):
            rule = "diversity, disagreement, confident must be in [0, 1], memory at least 1"
            got = f"{diversity}, {disagreement}, {confident}, {memory}"
            raise ValueError(message("GuardedAdapter", rule, got, "diversity=0, disagreement=1 switch both off."))
        self.keep, self.keep_adapted = copy.deepcopy(module), batch_statistics
        self.optimizer_factory = optimizer_factory
        self.monitor = monitor or DriftMonitor(delta=math.inf, challenge=1, r=2, longest=4, margin_z=2, early_z=4)
        self.diversity, self.disagreement, self.confident, self.memory = diversity, disagreement, confident, memory
        self.returns: Counter[str] = Counter()
        self.promotions = 0
        self.serve = KEEP
        self._running: tuple[Tensor, Tensor, float] | None = None
        self._lead = 0.0
        self._restart()

    def __call__(self, x: Tensor) -> None:
        """The hook for unlabeled batches: adapt, and forget the answer.

        For `DriftSurf` it is `on_unlabeled=lambda drift, x: guard(x)`.
        """
        self.adapt(x)

    def adapt(self, x: Tensor) -> Tensor:
        """The answer to a batch, logits `[n, classes]`; `warm` takes its step on it afterwards."""
        keep = self._keep(x)
        if not len(x):
            return keep
        warm = self.warm.adapt(x)
        signals = self._signals(keep, warm)
        self._choose(signals)
        out = warm if self.serve == WARM else keep
        reason = self._failed(keep, warm, signals)
        if reason:
            self.returns[reason] += 1
            self._restart()
        return out

    def predict(self, x: Tensor) -> Tensor:
        """The answer to a batch, logits `[n, classes]`, without adapting."""
        keep = self._keep(x)
        if not len(x):
            return keep
        warm = self.warm.predict(x)
        self._choose(self._signals(keep, warm))
        return warm if self.serve == WARM else keep

    def observe(self, x: Tensor, y: Tensor) -> str:
        """Labels `[n]` of points that came before, however few or late; the event that they led to.

        Raises:
            ValueError: there are not as many labels as points.
        """
        if y.shape != x.shape[:1]:
            rule, advice = f"y must be [{len(x)}], one class a point", "Pass the labelled points alone."
            raise ValueError(message("GuardedAdapter.observe", rule, describe(y), advice))
        if not len(x):
            return "none"
        losses = {KEEP: _wrong(self._keep(x), y), WARM: _wrong(self.warm.predict(x), y)}
        self._lead += float((losses[KEEP] - losses[WARM]).sum())
        decision = self.monitor.observe(losses)
        if decision.event in ("enter", "reenter"):
            self.monitor.begin([WARM])
            # neither was trained on these labels: the segment that starts the trial counts
            head = self.monitor.head_start(losses)
            decision = head if head.event != "none" else decision
        if decision.event == "switch":
            self.keep, self.keep_adapted = copy.deepcopy(self.warm.module), True
            self.promotions += 1
            self._running = None
        elif decision.event == "keep" and not self._lead >= 0:
            self.returns["labels"] += 1
            self._restart()
        if decision.event in ("switch", "keep"):
            self._lead = 0.0
        return decision.event

    @torch.no_grad()
    def _keep(self, x: Tensor) -> Tensor:
        with _evaluation(self.keep, self.keep_adapted and bool(len(x))):
            return _logits("GuardedAdapter", self.keep(x), x)

    def _restart(self) -> None:
        self.warm = EntropyAdapter(copy.deepcopy(self.keep), self.optimizer_factory)
        self._running = None

    def _signals(self, keep: Tensor, warm: Tensor) -> Signals:
        said, other = warm.argmax(1), keep.argmax(1)
        alone = bool((said == said[0]).all()) and not torch.equal(said, other)
        diversity = _effective(warm.softmax(1).mean(0)) / _effective(keep.softmax(1).mean(0))
        sure = keep.softmax(1).amax(1) >= self.confident
        disagreement = float((said != other)[sure].double().mean()) if bool(sure.any()) else 0.0
        return Signals(bool(warm.isfinite().all()), alone, diversity, disagreement)

    def _choose(self, seen: Signals) -> None:
        """Who answers this batch."""
        by_labels = self.monitor.in_trial and self.monitor.serve == KEEP
        poor = seen.diversity < self.diversity or seen.disagreement > self.disagreement
        self.serve = KEEP if by_labels or poor or seen.one_class or not seen.finite else WARM

    def _failed(self, keep: Tensor, warm: Tensor, seen: Signals) -> str | None:
        """Why `warm` must begin anew, if it must."""
        if not self.warm.finite or not seen.finite:
            return "parameters are no numbers"
        now = (keep.softmax(1).mean(0), warm.softmax(1).mean(0), seen.disagreement)
        if self._running is None:
            self._running = now
            return None
        rate = 1 / self.memory
        before = self._running
        mean = (before[0].lerp(now[0], rate), before[1].lerp(now[1], rate), before[2] + rate * (now[2] - before[2]))
        self._running = mean
        if _effective(mean[1]) < self.diversity * _effective(mean[0]):
            return "diversity"
        return "disagreement" if mean[2] > self.disagreement else None

    def state_dict(self) -> dict[str, Any]:
        """Everything but the settings."""
        state = {
            "keep": self.keep.state_dict(),
            "keep_adapted": self.keep_adapted,
            "warm": self.warm.state_dict(),
            "monitor": self.monitor.state_dict(),
            "running": self._running,
            "lead": self._lead,
            "returns": dict(self.returns),
            "promotions": self.promotions,
            "serve": self.serve,
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""
        state = copy.deepcopy(state)
        self.keep.load_state_dict(state["keep"])
        self.keep_adapted = state["keep_adapted"]
        self._restart()
        self.warm.load_state_dict(state["warm"])
        self.monitor.load_state_dict(state["monitor"])
        self._running, self.serve, self.promotions = state["running"], state["serve"], state["promotions"]
        self._lead = state["lead"]
        self.returns = Counter(state["returns"])


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each prediction in nats, `[n]`.

    >>> entropy(torch.zeros(2, 4)).exp().tolist()
    [4.0, 4.0]
    """
    log = logits.log_softmax(1)
    return -(log.exp() * log).sum(1)


def _effective(mean: Tensor) -> float:
    return float(torch.special.entr(mean).sum().exp())


def _wrong(logits: Tensor, y: Tensor) -> Tensor:
    loss = (logits.argmax(1) != y).double()
    # a model whose outputs are no numbers has no class either
    return torch.where(logits.isfinite().all(1), loss, math.nan)


def _logits(who: str, out: Any, x: Tensor) -> Tensor:
    if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != len(x):
        rule = "the module must give logits [n, classes], a row for each point"
        raise ValueError(message(who, rule, describe(out), "Wrap it."))
    return out
