# SPDX-License-Identifier: Apache-2.0
"""Stand-alone drift detectors behind one protocol: ours, and river's where it is installed. Drift spec, section 5."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from edgeops._common import describe, message, missing_extra


class Detector(Protocol):
    """Watches a model's losses, point by point or in batches, and says when they changed."""

    @property
    def state(self) -> str:
        """What the last update led to: "stable", "warning" or "drift"."""
        ...

    def update(self, losses: Tensor | float) -> bool:
        """Take in losses `[n]` in order of time, or one; whether a drift showed at any of them."""
        ...

    def reset(self) -> None:
        """Forget everything, as after a drift."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that updates continue from."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""


def _points(who: str, losses: Tensor | float) -> Tensor:
    """The losses as float64 `[n]`, all of them numbers."""
    values = torch.as_tensor(losses).detach().to("cpu", torch.float64).reshape(-1)
    if bool(values.isnan().any()):
        raise ValueError(message(who, "losses must be numbers", "NaN", "Leave such points out, or reset the model."))
    return values


class Mddm:
    """Mean of the last hits, the younger the heavier: drift when it falls too far below its maximum (MDDM).

    The weights of a window of `n` grow by a step ("arithmetic", step 0.01), by a ratio ("geometric", 1.01) or by an
    exponent ("euler", 0.01). A batch is one product of its windows with the weights. Losses are 0 for a hit, 1 for
    an error. What it allows is a fall by about 27 points of accuracy at the defaults: mild drifts are missed by design.

    Args:
        weights: "arithmetic", "geometric" or "euler": MDDM-A, -G, -E.
        n: hits in the window.
        rate: the step, the ratio or the exponent; `None`, the value above.
        confidence: the chance of a false alarm that the bound allows.

    >>> [round(Mddm(weights).threshold, 4) for weights in ("arithmetic", "geometric", "euler")]
    [0.2677, 0.2733, 0.2734]
    >>> detector = Mddm()
    >>> detector.update(torch.zeros(200)), detector.update(torch.ones(60))
    (False, True)
    """

    def __init__(
        self, weights: str = "geometric", *, n: int = 100, rate: float | None = None, confidence: float = 1e-6
    ) -> None:
        if weights not in _RATES:
            raise ValueError(message("Mddm", f"weights must be one of {', '.join(_RATES)}", repr(weights), "See it."))
        if not (n >= 2 and 0 < confidence < 1 and (rate is None or rate > 0)):
            rule = "n must be at least 2, rate positive, confidence in (0, 1)"
            raise ValueError(message("Mddm", rule, f"{n}, {rate}, {confidence}", "The defaults are the usual ones."))
        rate = _RATES[weights] if rate is None else rate
        step = torch.arange(n, dtype=torch.float64)
        growth = {"arithmetic": 1 + rate * step, "geometric": rate**step, "euler": torch.exp(rate * step)}[weights]
        self.weights = growth / growth.sum()
        self.threshold = math.sqrt(0.5 * float(self.weights.square().sum()) * math.log(1 / confidence))
        self.state = "stable"
        self._hits = torch.zeros(0, dtype=torch.float64)
        self._best = 0.0

    def update(self, losses: Tensor | float) -> bool:
        """Take in losses in [0, 1]; a detector that fired should be reset."""
        values = _points("Mddm.update", losses)
        if not len(values):
            return False
        hits = torch.cat([self._hits, 1 - values])
        n = len(self.weights)
        fired = False
        if len(hits) >= n:
            means = hits.unfold(0, n, 1) @ self.weights
            best = means.cummax(0).values.clamp(min=self._best)
            fired = bool((best - means > self.threshold).any())
            self._best = float(best[-1])
        self._hits = hits[-(n - 1) :]
        self.state = "drift" if fired else "stable"
        return fired

    def reset(self) -> None:
        self._hits, self._best, self.state = self._hits[:0], 0.0, "stable"

    def state_dict(self) -> dict[str, Any]:
        return {"hits": self._hits.clone(), "best": self._best, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._hits, self._best, self.state = state["hits"].clone(), state["best"], state["state"]


_RATES = {"arithmetic": 0.01, "geometric": 1.01, "euler": 0.01}


class Rise:
    """The test of the form "standard" (section 3.5): a batch's mean loss above the best batch's by more than `delta`.

    An update is a batch; an empty one changes nothing. `ResetOn(frozen=True)` feeds it the losses of the model's copy
    from its best batch, as that form asks.

    Args:
        delta: least rise, in units of the loss.

    >>> detector = Rise(0.1)
    >>> [detector.update(torch.full((50,), risk)) for risk in (0.3, 0.2, 0.25, 0.31)]
    [False, False, False, True]
    """

    def __init__(self, delta: float = 0.1) -> None:
        if not delta >= 0:
            raise ValueError(message("Rise", "delta must not be negative", str(delta), "0.1 is usual."))
        self.delta = delta
        self.best: float | None = None
        self.state = "stable"

    def update(self, losses: Tensor | float) -> bool:
        values = _points("Rise.update", losses)
        if not len(values):
            return False
        mean = float(values.mean())
        fired = self.best is not None and mean > self.best + self.delta
        self.best = mean if self.best is None else min(self.best, mean)
        self.state = "drift" if fired else "stable"
        return fired

    def reset(self) -> None:
        self.best, self.state = None, "stable"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.state = state["best"], state["state"]


class Every:
    """Fires at every `n`-th point whatever the losses are: the row that any detector must be seen beside (pitfall 8).

    >>> detector = Every(3)
    >>> [detector.update(0.0) for _ in range(6)], detector.update(torch.zeros(2))
    ([False, False, True, False, False, True], False)
    """

    def __init__(self, n: int = 100) -> None:
        if n < 1:
            raise ValueError(message("Every", "n must be at least 1", str(n), "100 fires at every hundredth point."))
        self.n, self.count, self.state = n, 0, "stable"

    def update(self, losses: Tensor | float) -> bool:
        points = len(_points("Every.update", losses))
        if not points:
            return False
        self.count += points
        fired = self.count >= self.n
        self.count %= self.n
        self.state = "drift" if fired else "stable"
        return fired

    def reset(self) -> None:
        """Nothing: it goes on counting."""
        self.state = "stable"

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.state = state["count"], state["state"]


class RiverDetector:
    """One of river's detectors. A batch is taken in point by point, to its end even where one fires.

    River's objects have no state of their own to save but a pickle, which runs code when it is loaded. What is saved
    is what the detector was told since its last reset, 8 bytes a point, and loading tells it again: the same to the
    bit, in another version of river too; KSWIN needs a `seed` for that.

    Args:
        make: makes the detector anew, which is how it is reset.
        binary: whether it takes errors 0 and 1 alone.
        hits: whether it is told 1 for a hit instead of for an error.
    """

    def __init__(self, make: Callable[[], Any], *, binary: bool = False, hits: bool = False) -> None:
        self._make, self.binary, self.hits = make, binary, hits
        self.reset()

    def update(self, losses: Tensor | float) -> bool:
        who = f"{type(self._detector).__name__}.update"
        values = _points(who, losses)
        if self.binary and not bool(((values == 0) | (values == 1)).all()):
            rule, advice = "this detector takes errors 0 and 1", "Use adwin, page-hinkley or kswin for other losses."
            raise ValueError(message(who, rule, describe(losses), advice))
        return self._tell((1 - values if self.hits else values).tolist())

    def _tell(self, values: list[float]) -> bool:
        fired = warned = False
        for value in values:
            self._detector.update(bool(value) if self.binary else value)
            fired = fired or self._detector.drift_detected
            warned = warned or getattr(self._detector, "warning_detected", False)
        self._told.extend(values)
        self.state = "drift" if fired else "warning" if warned else "stable"
        return fired

    def reset(self) -> None:
        self._detector = self._make()
        self._told = array("d")
        self.state = "stable"

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and words."""
        return {"told": torch.tensor(self._told, dtype=torch.float64), "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back: as long as the detector took for what it was told."""
        self.reset()
        self._tell(state["told"].tolist())
        self.state = state["state"]


class _RiverFactory:
    """Makes a detector of river by its name; an object and no closure, so that it can be pickled."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name, self.settings = name, settings

    def __call__(self) -> Any:
        try:
            from river import drift
        except ImportError as error:
            raise missing_extra(f"detector({self.name!r})", "river", "river") from error
        return getattr(drift.binary if self.name in _BINARY else drift, _RIVER[self.name])(**self.settings)


# river 0.26's FHDDM fires where the mean of its bits falls, though it asks for a 1 at each error
_HITS = ("fhddm",)
_BINARY = ("ddm", "eddm", "hddm-a", "hddm-w", "fhddm")
_RIVER = {
    "adwin": "ADWIN",
    "page-hinkley": "PageHinkley",
    "kswin": "KSWIN",
    "ddm": "DDM",
    "eddm": "EDDM",
    "hddm-a": "HDDMA",
    "hddm-w": "HDDMW",
    "fhddm": "FHDDM",
}
_OURS: dict[str, Callable[..., Detector]] = {
    "mddm-a": lambda **settings: Mddm("arithmetic", **settings),
    "mddm-g": lambda **settings: Mddm("geometric", **settings),
    "mddm-e": lambda **settings: Mddm("euler", **settings),
    "rise": Rise,
    "every": Every,
}
DETECTORS = (*_OURS, *_RIVER)
"""The names that `detector` knows."""


def detector(name: str, **settings: Any) -> Detector:
    """A detector by its name.

    Args:
        name: one of `DETECTORS`: "mddm-a", "mddm-g", "mddm-e", "rise" and "every" are ours, the others river's.
        **settings: of its class. KSWIN draws from its window: give it a `seed`.

    Raises:
        ValueError: another name.
        ImportError: it is river's, which is not installed.

    >>> detector("mddm-a", n=50).update(torch.zeros(60))
    False
    """
    if name in _OURS:
        return _OURS[name](**settings)
    if name not in _RIVER:
        raise ValueError(message("detector", f"name must be one of {', '.join(DETECTORS)}", repr(name), "Pick one."))
    return RiverDetector(_RiverFactory(name, settings), binary=name in _BINARY, hits=name in _HITS)
