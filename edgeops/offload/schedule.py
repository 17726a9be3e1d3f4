# SPDX-License-Identifier: Apache-2.0
"""Policies of the layer-wise schedule, and the durations they are judged by. LSP-Offload (AAAI 2025), section 4.

Of every layer, a compressed gradient goes down the link, becomes an update on the CPU, and goes up again, while compute
works on other layers. A policy says which waiting layer each of these three takes next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeops._common import describe, message

STAGES = ("forward", "backward", "compress", "down", "update", "up", "apply")
"""What happens to a layer in a step."""
RESOURCES = ("compute", "down", "cpu", "up")
"""What does it, each one thing at a time."""
RESOURCE_OF = dict(zip(STAGES, ("compute", "compute", "compute", "down", "cpu", "up", "compute")))

KINDS = ("native", "serial", "zero", "fcfs", "lcfs", "transition", "delayed")

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Policy:
    """Who goes next. `str(policy)` is what `Policy.parse` reads.

    Args:
        kind: one of

            - `"native"`: nothing is sent; every layer is updated where it is computed.
            - `"serial"`: one thing at a time; the yardstick for results.
            - `"zero"`: ZeRO-Offload: gradients go down during the backward, updates start when all are there, and the
              next forward when all are back.
            - `"fcfs"`: in the order of the backward, deepest layer first; `"zero_layerwise"` is another name for it.
            - `"lcfs"`: the layer nearest to the input first.
            - `"transition"`: the first `layer` layers as `"lcfs"`, those behind them as `"fcfs"` and after them.
            - `"delayed"`: as `"fcfs"`, but a forward sees the updates of the step before the last (one step stale).
        layer: for `"transition"`: how many layers, 0 or more. It is the TransitionLayer of the paper, whose layers
            count from 1. 0 is `"fcfs"`, all of them is `"lcfs"`.

    Raises:
        ValueError: another kind; a layer for a kind without one.

    >>> Policy.parse("transition:19").layer
    19
    >>> str(Policy("lcfs"))
    'lcfs'
    """

    kind: str
    layer: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            rule, advice = f"kind must be one of {', '.join(KINDS)}", "Write transition:<layers> for a switch."
            raise ValueError(message("Policy", rule, repr(self.kind), advice))
        if self.layer < 0 or (self.layer and self.kind != "transition"):
            rule = "layer must be 0 or more, and belongs to 'transition'"
            raise ValueError(message("Policy", rule, f"{self.kind!r} with {self.layer}", "Leave the layer out."))

    @classmethod
    def parse(cls, text: str | Policy) -> Policy:
        """A policy from its name.

        Raises:
            ValueError: no such name.
            TypeError: not a text.
        """
        if isinstance(text, Policy):
            return text
        if not isinstance(text, str):
            raise TypeError(message("Policy.parse", "needs a text or a Policy", describe(text), "Pass 'fcfs'."))
        if text == "zero_layerwise":
            return cls("fcfs")
        kind, _, layer = text.partition(":")
        if (kind == "transition") != bool(re.fullmatch(r"\d+", layer)) or (":" in text) != bool(layer):
            rule = f"must be one of {', '.join(k for k in KINDS if k != 'transition')}, transition:<layers>"
            raise ValueError(message("Policy.parse", rule, repr(text), "Use for example 'lcfs' or 'transition:12'."))
        return cls(kind, int(layer or 0))

    def __str__(self) -> str:
        return f"transition:{self.layer}" if self.kind == "transition" else self.kind

    @property
    def stale(self) -> int:
        """Steps by which an update comes late."""
        return int(self.kind == "delayed")

    def latest_first(self, layers: int) -> int:
        """How many of `layers` layers are served before the others, the first one first."""
        return min(self.layer, layers) if self.kind == "transition" else layers if self.kind == "lcfs" else 0


def _one(name: str, value: object) -> Seconds:
    array = np.asarray(value, np.float64)
    if array.ndim > 1 or not np.all(np.isfinite(array)) or np.any(array < 0):
        rule = f"{name} must be seconds, finite and not negative, one number or one a layer"
        raise ValueError(message("Profile", rule, describe(value), "Measure that stage again."))
    return array


@dataclass(frozen=True, eq=False)
class Profile:
    """Seconds of every stage of every layer. A single number stands for all layers alike.

    Args:
        forward, backward: of the layer on compute.
        down, update, up: its compressed gradient on the link, its update on the CPU, that on the link.
        compress: making the compressed gradient, on compute, after the layer's backward.
        apply: adding the update to the weights, on compute, before the layer's next forward.
        device_update: what replaces all but forward and backward under the policy `"native"`.
        layers: their number, where every stage is a single number.

    Raises:
        ValueError: a negative or non-finite duration, stages of different numbers of layers, or no layer.

    >>> p = Profile(forward=[1.0, 2.0], backward=3.0, down=0.5, update=1.0, up=0.5)
    >>> p.layers, p.total("backward"), p.busy()["compute"]
    (2, 6.0, 9.0)
    """

    forward: Seconds | Sequence[float] | float
    backward: Seconds | Sequence[float] | float
    down: Seconds | Sequence[float] | float
    update: Seconds | Sequence[float] | float
    up: Seconds | Sequence[float] | float
    compress: Seconds | Sequence[float] | float = 0.0
    apply: Seconds | Sequence[float] | float = 0.0
    device_update: Seconds | Sequence[float] | float = 0.0
    layers: int = 0
    seconds: Seconds = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = (*STAGES, "device_update")
        given = {name: _one(name, getattr(self, name)) for name in names}
        counts = {array.size for array in given.values() if array.ndim} | ({self.layers} if self.layers else set())
        if len(counts) != 1 or min(counts) < 1:
            rule = "every stage must have the same number of layers, at least one"
            raise ValueError(message("Profile", rule, f"{sorted(counts)}", "Pass layers= with single numbers."))
        (layers,) = counts
        for name, array in given.items():
            full = np.broadcast_to(array, layers).copy()
            full.flags.writeable = False
            object.__setattr__(self, name, full)
        seconds = np.stack([getattr(self, name) for name in STAGES])
        seconds.flags.writeable = False
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "seconds", seconds)

    def total(self, stage: str) -> float:
        """Seconds of a stage, all layers together."""
        return float(np.sum(getattr(self, stage)))

    def busy(self) -> dict[str, float]:
        """Seconds a step by resource: none of them lets a step be shorter."""
        found = dict.fromkeys(RESOURCES, 0.0)
        for stage in STAGES:
            found[RESOURCE_OF[stage]] += self.total(stage)
        return found

    def scaled(self, factor: float) -> Profile:
        """All durations times `factor`."""
        arrays: dict[str, Any] = {name: value * factor for name, value in self._arrays().items()}
        return Profile(**arrays)

    def _arrays(self) -> dict[str, Seconds]:
        return {name: getattr(self, name) for name in (*STAGES, "device_update")}

    @classmethod
    def of_seconds(cls, seconds: Seconds) -> Profile:
        """From `[7, layers]`, rows in the order of `STAGES`, as the attribute `seconds` has them."""
        rows: dict[str, Any] = dict(zip(STAGES, seconds, strict=True))
        return cls(**rows)

    def to_dict(self) -> dict[str, Any]:
        """Lists of seconds by stage, JSON types."""
        return {name: value.tolist() for name, value in self._arrays().items()}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Profile:
        """What `to_dict` gave."""
        return cls(**given)


def transition_layer(profile: Profile) -> int:
    """The paper's formula for the switch (appendix), for the slowest layer's durations: a heuristic for equal layers.

    Returns:
        `layer` for `Policy("transition", layer)`: 0 where all hides under the backward, at most the number of layers.

    >>> transition_layer(Profile(5e-3, 10e-3, 12e-3, 14e-3, 12e-3, layers=24))
    10
    """
    down, update, up = (float(np.max(getattr(profile, stage))) for stage in ("down", "update", "up"))
    slowest = max(down, update, up)
    if slowest == 0:
        return 0
    switch = profile.layers - (profile.total("backward") - (down + update + up)) / slowest
    return int(min(max(round(switch), 0), profile.layers))
