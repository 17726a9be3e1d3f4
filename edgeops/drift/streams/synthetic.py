# SPDX-License-Identifier: Apache-2.0
"""Generators of drifting streams, by the rules of the files of DriftSurf's experiments. Drift spec, section 7."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgeops._common import message
from edgeops.drift.streams.stream import DriftStream

SEA_THRESHOLDS = (7.0, 9.0, 9.5, 8.0)
CIRCLES = ((0.2, 0.5, 0.15), (0.4, 0.5, 0.2), (0.6, 0.5, 0.25), (0.8, 0.5, 0.3))
"""Centre and radius of each concept of Circles."""


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _check(who: str, n: int, batches: int, noise: float) -> None:
    if not (n >= batches >= 1 and 0 <= noise <= 1):
        rule = "n must be at least batches, batches at least 1, noise in [0, 1]"
        raise ValueError(message(who, rule, f"n={n}, batches={batches}, noise={noise}", "noise is a share: 0.1."))


def _wanted(
    n: int, features: int, want: Tensor, positive: Callable[[Tensor, Tensor], Tensor], g: torch.Generator
) -> Tensor:
    """Uniform points `[n, features]` whose class is the one wanted, by rejection; `positive(points, which)`."""
    x = torch.zeros(n, features, dtype=torch.float64)
    open_ = torch.arange(n)
    while len(open_):
        x[open_] = torch.rand(len(open_), features, dtype=torch.float64, generator=g)
        open_ = open_[positive(x[open_], open_) != want[open_]]
    return x


def _flipped(positive: Tensor, noise: float, g: torch.Generator) -> Tensor:
    """Labels -1 and 1, a share of them turned round by chance."""
    turned = torch.rand(len(positive), dtype=torch.float64, generator=g) < noise
    return 2.0 * (positive ^ turned).double() - 1.0


def _coins(n: int, g: torch.Generator) -> Tensor:
    return torch.rand(n, dtype=torch.float64, generator=g) < 0.5


def _arrived(age: Tensor, width: int, g: torch.Generator) -> Tensor:
    """Whether points of the given age in a transition follow the new concept: a sigmoid over `width` points."""
    chance = torch.sigmoid(4.0 * (age.double() - width / 2) / max(width, 1))
    return (age >= width) | (torch.rand(len(age), dtype=torch.float64, generator=g) < chance)


def _drifts(batches: int, concepts: int) -> tuple[int, ...]:
    return tuple(sorted({batches * k // concepts for k in range(1, concepts)} - {0}))


def schedule(
    who: str, n: int, batches: int, drifts: Sequence[int] | None, concepts: int
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """The concept of every point and its age in points since the last change, `[n]`; the batches of the changes.

    Args:
        who: asks, for messages.
        n: points.
        batches: batches.
        drifts: batches at which the next concept begins, around again after the last; none without a change, `None`
            for concepts of equal length.
        concepts: how many there are.

    Raises:
        ValueError: batches that do not rise within the stream.
    """
    point = torch.arange(n)
    if drifts is None:
        length = max(1, n // concepts)
        concept = (point // length).clamp(max=concepts - 1)
        return concept, point - concept * length, _drifts(batches, concepts)
    places = list(drifts)
    if places != sorted(set(places)) or any(not 0 < place < batches for place in places):
        rule = f"drifts must rise, each in (0, {batches})"
        raise ValueError(message(who, rule, str(tuple(drifts)), "Pass (), for a stream without a drift."))
    starts = torch.tensor([0, *(place * (n // batches) for place in places)])
    index = torch.searchsorted(starts, point, right=True) - 1
    return index % concepts, point - starts[index], tuple(places)


def sea(
    noise: float = 0.0, *, seed: int, n: int = 100_000, batches: int = 100, drifts: Sequence[int] | None = None
) -> DriftStream:
    """SEA as MOA makes it: three features in [0, 10], positive where the first two sum up to the threshold at most.

    Classes alternate; a share `noise` of labels is turned round. Thresholds 7, 9, 9.5, 8, a quarter of the stream each.

    Args:
        noise: share of labels turned round.
        seed: of everything drawn.
        n: points.
        batches: batches.
        drifts: batches at which the next threshold begins; `()` keeps the first one.

    >>> stream = sea(seed=0, n=400)
    >>> bool(((stream.x[:100, :2].sum(1) <= 7.0) == (stream.y[:100] > 0)).all())
    True
    """
    _check("sea", n, batches, noise)
    g = _generator(seed)
    concept, _, places = schedule("sea", n, batches, drifts, len(SEA_THRESHOLDS))
    x, want = _sea_points(torch.tensor(SEA_THRESHOLDS, dtype=torch.float64)[concept], g)
    return DriftStream(f"SEA{round(100 * noise)}", x, _flipped(want, noise, g), batches, places)


def _sea_points(threshold: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    n = len(threshold)
    want = torch.arange(n) % 2 == 0
    return 10 * _wanted(n, 3, want, lambda x, i: 10 * (x[:, 0] + x[:, 1]) <= threshold[i], g), want


def sea_gradual(noise: float = 0.0, *, seed: int, n: int = 100_000, batches: int = 100) -> DriftStream:
    """SEA with one slow change: threshold 7, between two and three fifths of the stream ever more points of 9.5.

    The authors' file is lost; its name and its list of drifts (40, 60) are what this keeps to.

    >>> sea_gradual(seed=0, n=1000).drifts
    (40, 60)
    """
    _check("sea_gradual", n, batches, noise)
    g = _generator(seed)
    new = _arrived(torch.arange(n) - 2 * n // 5, n // 5, g) & (torch.arange(n) >= 2 * n // 5)
    x, want = _sea_points(torch.where(new, SEA_THRESHOLDS[2], SEA_THRESHOLDS[0]).double(), g)
    places = tuple(sorted({2 * batches // 5, 3 * batches // 5} - {0}))
    return DriftStream("SEA-gradual", x, _flipped(want, noise, g), batches, places)


def hyperplane(
    magnitude: float,
    *,
    seed: int,
    n: int = 100_000,
    batches: int = 100,
    features: int = 10,
    turns: float = 0.1,
    noise: float = 0.05,
) -> DriftStream:
    """A rotating hyperplane as MOA makes it: after each point every weight moves by `magnitude`.

    Args:
        magnitude: 0.001 is Hyper-slow, 0.1 Hyper-fast.
        seed: of everything drawn.
        n: points.
        batches: batches.
        features: all of them drift.
        turns: chance that a weight's direction turns round after a point.
        noise: share of labels turned round.

    >>> hyperplane(0.1, seed=0, n=500).x.shape
    torch.Size([500, 10])
    """
    _check("hyperplane", n, batches, noise)
    g = _generator(seed)
    first = torch.rand(features, dtype=torch.float64, generator=g)
    x = torch.rand(n, features, dtype=torch.float64, generator=g)
    turn = torch.rand(n, features, dtype=torch.float64, generator=g) < turns
    direction = 1.0 - 2.0 * ((turn.cumsum(0) - turn.long()) % 2).double()
    moves = magnitude * direction
    weights = first + moves.cumsum(0) - moves
    positive = (weights * x).sum(1) >= 0.5 * weights.sum(1)
    name = {0.001: "Hyper-slow", 0.1: "Hyper-fast"}.get(magnitude, f"Hyper-{magnitude:g}")
    return DriftStream(name, x, _flipped(positive, noise, g), batches)


def _swapping(
    name: str,
    features: int,
    rule: Callable[[Tensor], Tensor],
    seed: int,
    n: int,
    batches: int,
    noise: float,
    width: int,
    drifts: Sequence[int] | None,
) -> DriftStream:
    """Five concepts, or as many as drifts ask for, each with the labels of the one before turned round."""
    g = _generator(seed)
    concept, age, places = schedule(name.lower(), n, batches, drifts, 5 if drifts is None else len(drifts) + 1)
    new = _arrived(age, width, g) | (concept == 0)
    odd = (concept - (~new).long()) % 2 == 1
    want = _coins(n, g)
    x = _wanted(n, features, want, lambda x, i: rule(x) ^ odd[i], g)
    return DriftStream(name, x, _flipped(want, noise, g), batches, places)


def sine1(
    *,
    seed: int,
    n: int = 10_000,
    batches: int = 100,
    noise: float = 0.1,
    width: int = 50,
    drifts: Sequence[int] | None = None,
) -> DriftStream:
    """SINE1: positive where y <= sin(x); every fifth of the stream the labels are swapped, over `width` points.

    `drifts` names other batches for that; `()` never swaps them.

    >>> sine1(seed=0).drifts
    (20, 40, 60, 80)
    """
    _check("sine1", n, batches, noise)
    return _swapping("SINE1", 2, lambda x: x[:, 1] <= x[:, 0].sin(), seed, n, batches, noise, width, drifts)


def mixed_rule(x: Tensor) -> Tensor:
    """Positive where at least two hold of v, w and y < 0.5 + 0.3 sin(3 pi x)."""
    wave = x[:, 3] < 0.5 + 0.3 * torch.sin(3 * math.pi * x[:, 2])
    return (x[:, 0] >= 0.5).long() + (x[:, 1] >= 0.5).long() + wave.long() >= 2


def mixed(
    *,
    seed: int,
    n: int = 100_000,
    batches: int = 100,
    noise: float = 0.1,
    width: int = 50,
    drifts: Sequence[int] | None = None,
) -> DriftStream:
    """Mixed: two Boolean and two real features, labels swapped every fifth of the stream, or at `drifts`.

    >>> sorted(mixed(seed=0, n=1000).x[:, 0].unique().tolist())
    [0.0, 1.0]
    """
    _check("mixed", n, batches, noise)
    stream = _swapping("Mixed", 4, mixed_rule, seed, n, batches, noise, width, drifts)
    stream.x[:, :2] = (stream.x[:, :2] >= 0.5).double()
    return stream


def circles(
    *,
    seed: int,
    n: int = 10_000,
    batches: int = 100,
    noise: float = 0.1,
    width: int = 500,
    fault: bool = True,
    drifts: Sequence[int] | None = None,
) -> DriftStream:
    """Circles: four concepts, positive outside the concept's circle.

    Args:
        seed: of everything drawn.
        n: points, a quarter of them for each concept.
        batches: batches.
        noise: share of labels turned round.
        width: points of a transition.
        fault: as the authors' file: at the start of a concept the stream glides to the next one, then snaps back.
            Without, it glides from the concept before.
        drifts: batches at which the next circle begins, without the fault; `()` keeps the first circle.

    >>> circles(seed=0).drifts, circles(seed=0, fault=False).drifts
    ((25, 30, 50, 55, 75, 80), (25, 50, 75))
    """
    _check("circles", n, batches, noise)
    g = _generator(seed)
    concept, age, given = schedule("circles", n, batches, drifts, 4)
    arrived = _arrived(age, width, g)
    if fault and drifts is None:
        shown = (concept + (arrived & (age < width)).long()).clamp(max=3)
        back = batches * width // n
        places = [b for k in (1, 2, 3) for b in (batches * k // 4, batches * k // 4 + back)]
        given = tuple(sorted({b for b in places if 0 < b < batches}))
    else:
        first = torch.arange(n) == age  # no circle was before
        shown = (concept - (~(arrived | first)).long()) % 4
    circle = torch.tensor(CIRCLES, dtype=torch.float64)[shown]

    def outside(x: Tensor, i: Tensor) -> Tensor:
        return ((x - circle[i, :2]) ** 2).sum(1) > circle[i, 2] ** 2

    want = _coins(n, g)
    x = _wanted(n, 2, want, outside, g)
    return DriftStream("Circles", x, _flipped(want, noise, g), batches, given)
