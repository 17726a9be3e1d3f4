# SPDX-License-Identifier: Apache-2.0
"""Two more generators of the field: STAGGER's Boolean concepts, and moving radial basis functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edgeops._common import message
from edgeops.drift.streams.stream import DriftStream
from edgeops.drift.streams.synthetic import _check, _flipped, _generator, schedule


def stagger_rule(x: Tensor, concept: Tensor) -> Tensor:
    """Which points `[n, 9]` are positive: small and red; green or a circle; medium or large.

    Args:
        x: indicators of size small, medium, large; colour red, green, blue; shape circle, square, triangle.
        concept: `[n]`, 0 to 2.
    """
    on = x > 0.5
    rules = torch.stack([on[:, 0] & on[:, 3], on[:, 4] | on[:, 6], on[:, 1] | on[:, 2]])
    return rules.gather(0, concept[None])[0]


def stagger(
    *,
    seed: int,
    n: int = 10_000,
    batches: int = 100,
    noise: float = 0.0,
    drifts: Sequence[int] | None = None,
) -> DriftStream:
    """STAGGER: size, colour and shape of three values each, as indicators; three Boolean concepts in turn.

    Args:
        seed: of everything drawn.
        n: points, a third of them for each concept.
        batches: batches.
        noise: share of labels turned round.
        drifts: batches at which the next concept begins; `()` keeps the first one.

    >>> stream = stagger(seed=0, n=300, batches=30)
    >>> stream.x.shape, stream.drifts, bool((stream.x.sum(1) == 3).all())
    (torch.Size([300, 9]), (10, 20), True)
    """
    _check("stagger", n, batches, noise)
    g = _generator(seed)
    concept, _, places = schedule("stagger", n, batches, drifts, 3)
    values = torch.randint(3, (n, 3), generator=g)
    x = torch.nn.functional.one_hot(values, 3).reshape(n, 9).double()
    return DriftStream("STAGGER", x, _flipped(stagger_rule(x, concept), noise, g), batches, places)


def bounced(start: Tensor, speed: Tensor, step: Tensor) -> Tensor:
    """Where coordinates are after `step` moves: they stop at 0 and at 1 and turn round there.

    Args:
        start: in [0, 1].
        speed: of one move, not negative, of the same shape.
        step: moves, `[n]`.

    Returns:
        `[n, *start.shape]`.

    >>> bounced(torch.tensor([0.5]), torch.tensor([0.375]), torch.arange(6))[:, 0].tolist()
    [0.5, 0.875, 1.0, 0.625, 0.25, 0.0]
    """
    step = step.double().view(-1, *[1] * start.dim())
    safe = torch.where(speed > 0, speed, torch.ones_like(speed))
    first = ((1 - start) / safe).ceil()  # the move that reaches 1
    crossing = (1 / safe).ceil()  # from one side to the other
    since = (step - first).clamp(min=0)
    phase = since % (2 * crossing)
    down = (1 - phase * speed).clamp(min=0)
    up = ((phase - crossing) * speed).clamp(max=1)
    turned = torch.where(phase <= crossing, down, up)
    return torch.where(speed > 0, torch.where(step < first, start + step * speed, turned), start)


def rbf(
    speed: float,
    *,
    seed: int,
    n: int = 100_000,
    batches: int = 100,
    features: int = 10,
    centroids: int = 50,
    noise: float = 0.0,
) -> DriftStream:
    """Moving radial basis functions as MOA makes them: points around centroids that drift through the unit cube.

    Every centroid has a class, a weight by which it is chosen and a deviation, and moves by `speed` in a direction of
    its own before each point. A point lies a normal distance from its centroid, in a random direction.

    Args:
        speed: length of a move; 0 stands still.
        seed: of everything drawn.
        n: points.
        batches: batches.
        features: dimensions.
        centroids: how many, of both classes.
        noise: share of labels turned round.

    Raises:
        ValueError: a negative speed, no centroid, no feature, or more moves than points allow.

    >>> rbf(0.001, seed=0, n=500).x.shape
    torch.Size([500, 10])
    """
    _check("rbf", n, batches, noise)
    if not (speed >= 0 and math.isfinite(speed) and features >= 1 and centroids >= 1):
        rule = "speed must not be negative, features and centroids at least 1"
        raise ValueError(message("rbf", rule, f"{speed}, {features}, {centroids}", "speed=0.001 is usual."))
    g = _generator(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=g)

    centre, deviation, weight = draw(centroids, features), draw(centroids), draw(centroids)
    positive = draw(centroids) < 0.5
    way = draw(centroids, features)
    way /= way.norm(dim=1, keepdim=True)
    chosen = torch.multinomial(weight, n, replacement=True, generator=g)
    offset = 2 * draw(n, features) - 1
    distance = torch.randn(n, dtype=torch.float64, generator=g) * deviation[chosen]
    x = offset * (distance / offset.norm(dim=1))[:, None]
    for k in range(centroids):
        own = chosen == k
        x[own] += bounced(centre[k], speed * way[k], own.nonzero()[:, 0] + 1)
    return DriftStream(f"RBF-{speed:g}", x, _flipped(positive[chosen], noise, g), batches)
