# SPDX-License-Identifier: Apache-2.0
"""One learner on one stream, batch by batch, with everything that a report tells. Drift spec, section 8."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from edgeops._common import message
from edgeops.drift.evaluation.prequential import Learner
from edgeops.drift.streams import Delayed, DriftStream


@dataclass(frozen=True)
class Run:
    """What a learner did on a stream.

    Args:
        method: its name.
        seed: of its draws.
        errors: share of wrong predictions in each batch.
        counts: predictions 1 and right, 1 and wrong, -1 and wrong, -1 and right.
        trials: batches whose labels started a trial.
        testing: batches whose labels were taken in within a trial, the first one included.
        switches: batches whose labels had the model replaced.
        dated: the same, each dated back to where its winner began to serve, where the authors do so (form B).
        seconds: CPU time of predicting and learning.
        bytes: largest state that was seen, stored points included; `None` where the learner tells none.
        steps: training steps of all models; `None` where the learner does not count them.
    """

    method: str
    seed: int
    errors: tuple[float, ...]
    counts: tuple[int, int, int, int]
    trials: tuple[int, ...] = ()
    testing: tuple[int, ...] = ()
    switches: tuple[int, ...] = ()
    dated: tuple[int, ...] = ()
    seconds: float = 0.0
    bytes: int | None = None
    steps: int | None = None

    @property
    def error(self) -> float:
        """Mean over the batches."""
        return sum(self.errors) / len(self.errors)

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: 1 is perfect, 0 is what labels drawn in the same shares reach; `None` for one class alone.

        >>> Run("m", 0, (0.25,), (2, 1, 0, 1)).kappa
        0.5
        """
        tp, fp, fn, tn = self.counts
        n = sum(self.counts)
        chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / n**2
        return None if chance == 1 else ((tp + tn) / n - chance) / (1 - chance)

    def kappa_temporal(self, no_change: float) -> float | None:
        """How much of the error of repeating the last label is avoided; negative where it is worse than that.

        >>> Run("m", 0, (0.25,), (2, 1, 0, 1)).kappa_temporal(0.5)
        0.5
        """
        return None if no_change == 0 else 1 - self.error / no_change


def intervals(drifts: tuple[int, ...], batches: int) -> list[range]:
    """The batches from each drift to the next one.

    >>> intervals((2, 5), 7)
    [range(2, 5), range(5, 7)]
    """
    ends = (*drifts[1:], batches) if drifts else ()
    return [range(first, end) for first, end in zip(drifts, ends, strict=True)]


def wrong_switches(switches: tuple[int, ...], drifts: tuple[int, ...], batches: int) -> int:
    """How many switches are not the first one between a drift and the next. Section 8.4.

    >>> wrong_switches((1, 3, 4, 6), (2, 5), 7)
    2
    """
    right = sum(any(t in part for t in switches) for part in intervals(drifts, batches))
    return len(switches) - right


def recovery(switches: tuple[int, ...], drifts: tuple[int, ...], batches: int) -> list[int]:
    """Batches from each drift to the first switch before the next one; all of them where there is none. Section 8.4.

    >>> recovery((1, 3, 4), (2, 5), 7)
    [1, 2]
    """
    return [next((t - part.start for t in switches if t in part), len(part)) for part in intervals(drifts, batches)]


def batches_to_recover(
    errors: tuple[float, ...], drifts: tuple[int, ...], *, points: float = 0.02, window: int = 5
) -> list[int | None]:
    """Batches from each drift to the first one whose error is near the level before the drift. Section 14, item 8.

    Args:
        errors: of each batch, of the served model.
        drifts: batches.
        points: how near, in units of the error.
        window: batches before the drift whose mean error is the level, fewer where it comes early.

    Returns:
        For each drift 0 where its own first batch is near already; `None` where none is before the next drift.

    >>> batches_to_recover((0.1, 0.1, 0.9, 0.5, 0.11, 0.1), (2,))
    [2]
    """
    found = []
    for part in intervals(drifts, len(errors)):
        before = errors[max(0, part.start - window) : part.start]
        level = sum(before) / len(before) + points
        found.append(next((t - part.start for t in part if errors[t] <= level), None))
    return found


@dataclass(frozen=True)
class _Watched:
    trials: int
    switches: int
    within: bool
    other: bool
    form: str | None


def _watch(learner: Any) -> _Watched:
    """What a learner's monitor tells, of whatever form it is; or its own count of switches."""
    monitor = getattr(learner, "monitor", learner)
    return _Watched(
        getattr(monitor, "trials", 0),
        getattr(monitor, "switches", 0),
        bool(getattr(monitor, "in_trial", False) or getattr(monitor, "reactive_mode", False)),
        getattr(monitor, "serve", "keep") not in ("keep", "model"),
        getattr(monitor, "form", None),
    )


def size_of(learner: Any) -> int:
    """Bytes of a learner's `state_dict`, tensors as they are and everything else pickled; 0 where it has none.

    >>> from edgeops.drift.linear.logistic import Logistic
    >>> size_of(Logistic(3, eta=0.1, mu=0.0, seed=0)) > 3 * 8
    True
    """
    if not hasattr(learner, "state_dict"):
        return 0
    sizes = [0]

    def rest(value: Any) -> Any:
        if isinstance(value, Tensor):
            sizes[0] += value.numel() * value.element_size()
            return None
        if isinstance(value, Mapping):
            return {name: rest(part) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [rest(part) for part in value]
        return value

    return len(pickle.dumps(rest(learner.state_dict()))) + sizes[0]


class Evaluation:
    """A learner under way on a stream: `advance` it, look at `run`, put it away by `state_dict` and go on elsewhere.

    Each batch is predicted before its labels are shown; with a delay its labels come some batches later (`Delayed`).

    Args:
        learner: of `prequential`'s kind. Of its `monitor` the counters tell of trials and switches; `switches` of its
            own does without one.
        stream: what it learns from, as it is: a linear learner wants `with_constant`.
        method: a name for tables.
        seed: for tables.
        delay: batches after which labels are shown.

    >>> from edgeops.drift.linear.logistic import Logistic
    >>> from edgeops.drift.streams import synthetic
    >>> stream = synthetic.sine1(seed=0, n=1000, batches=10).with_constant()
    >>> evaluation = Evaluation(Logistic(3, eta=0.2, mu=1e-3, seed=0), stream, "Oblivious")
    >>> run = evaluation.advance()
    >>> len(run.errors), sum(run.counts), run.steps
    (10, 1000, 2000)
    """

    def __init__(
        self, learner: Learner, stream: DriftStream, method: str = "learner", *, seed: int = 0, delay: int = 0
    ) -> None:
        self.learner, self.stream, self.method, self.seed = learner, stream, method, seed
        self.delay = Delayed(stream, delay).delay
        self.t = 0
        self._errors: list[float] = []
        self._counts = [0, 0, 0, 0]
        self._trials: list[int] = []
        self._testing: list[int] = []
        self._switches: list[int] = []
        self._dated: list[int] = []
        self._other_since: int | None = None
        self._seconds = 0.0
        self._bytes = 0

    def advance(self, until: int | None = None, progress: Callable[[int, int], None] | None = None) -> Run:
        """Go on to the end of the stream, or until so many batches are done; what happened so far.

        Args:
            until: batches done after it; a number already passed changes nothing.
            progress: called as `progress(done, batches)`.

        Raises:
            ValueError: more batches than there are.
        """
        last = len(self.stream) if until is None else until
        if not 0 <= last <= len(self.stream):
            rule = f"until must be in [0, {len(self.stream)}]"
            raise ValueError(message("Evaluation.advance", rule, str(until), "Leave it out for all batches."))
        while self.t < last:
            self._step()
            if progress is not None:
                progress(self.t, len(self.stream))
        return self.run

    def _step(self) -> None:
        learner, (x, y) = self.learner, self.stream.batch(self.t)
        begun = time.process_time()
        before = _watch(learner)
        learner.begin()
        self._count(learner.predict(x), y)
        if self.t >= self.delay:
            learner.observe(*self.stream.batch(self.t - self.delay))
        self._seconds += time.process_time() - begun
        self._note(before)
        self.t += 1

    def _count(self, said: Tensor, y: Tensor) -> None:
        if said.shape != y.shape:
            rule, got = f"predict must give {tuple(y.shape)} labels", str(tuple(said.shape))
            raise ValueError(message("Evaluation", rule, got, "One -1 or 1 for each point."))
        right, one = said == y, said > 0
        for k, flags in enumerate((one & right, one & ~right, ~one & ~right, ~one & right)):
            self._counts[k] += int(flags.sum())
        self._errors.append(float((~right).double().mean()))

    def _note(self, before: _Watched) -> None:
        after = _watch(self.learner)
        entered, switched = after.trials > before.trials, after.switches > before.switches
        self._other_since = (self._other_since if self._other_since is not None else self.t) if before.other else None
        if entered:
            self._trials.append(self.t)
        if entered or before.within:
            self._testing.append(self.t)
        if switched:
            self._switches.append(self.t)
            back = after.form == "B" and self._other_since is not None
            self._dated.append(self._other_since if back and self._other_since is not None else self.t)
        if entered or switched or self.t + 1 == len(self.stream):
            self._bytes = max(self._bytes, size_of(self.learner))

    @property
    def run(self) -> Run:
        """What happened so far.

        Raises:
            ValueError: nothing yet.
        """
        if not self._errors:
            raise ValueError(message("Evaluation", "a batch must be done", "none", "Advance first."))
        tp, fp, fn, tn = self._counts
        return Run(
            self.method,
            self.seed,
            tuple(self._errors),
            (tp, fp, fn, tn),
            tuple(self._trials),
            tuple(self._testing),
            tuple(self._switches),
            tuple(self._dated),
            self._seconds,
            self._bytes or None,
            getattr(getattr(self.learner, "bank", None), "steps", None),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run follows from, but the stream."""
        own = {name: value for name, value in vars(self).items() if name not in ("learner", "stream")}
        own = {name: list(value) if isinstance(value, list) else value for name, value in own.items()}
        learner: Any = self.learner
        return {**own, "learner": learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put everything back, the learner's state included, which must have been made in the same way.

        Raises:
            ValueError: of another method, seed or delay.
        """
        for name in ("method", "seed", "delay"):
            if state[name] != getattr(self, name):
                rule, got = f"{name} must be {getattr(self, name)!r}", repr(state[name])
                raise ValueError(message("Evaluation.load_state_dict", rule, got, "Make the learner as it was made."))
        learner: Any = self.learner
        learner.load_state_dict(state["learner"])
        for name, value in state.items():
            if name != "learner":
                setattr(self, name, list(value) if isinstance(value, list) else value)
