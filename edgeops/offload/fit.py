# SPDX-License-Identifier: Apache-2.0
"""Learning a pair of sparse projectors on a gradient. LSP-Offload (AAAI 2025), section 3 and algorithm 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeops._common import message
from edgeops.offload._descent import descend
from edgeops.offload.pair import Pair
from edgeops.offload.projector import SparseProjector
from edgeops.offload.subspace import subspace_expand, subspace_project


@dataclass(frozen=True)
class Fit:
    """What `fit` gives.

    Attributes:
        pair: the learned pair.
        bias: its relative bias on the gradient it learned from.
        steps: how many steps were taken.
    """

    pair: Pair
    bias: float
    steps: int


def fit(
    pair: Pair, grad: Tensor, *, steps: int = 30, lr: float | None = None, beta: float = 0.0, stop_at: float = 0.0
) -> Fit:
    """Train the values of a sparse pair so that it keeps a gradient; places stay.

    Minimises `||P P^T G Q Q^T - G|| / ||G|| + beta (||P|| + ||Q||)` from the values that the pair has: a warm start
    where it has been learned before. By default conjugate gradients take each row's own curvature into account and
    find the length of every step: on real gradients 30 of them reach what Adam needs about 100 for (`bench.check O9`).

    Args:
        pair: of two `SparseProjector`s.
        grad: G `[m, n]`, float32 or float64.
        steps: at most.
        lr: a number is the paper's way, Adam at this rate (0.1 there) under a cosine; `None` conjugate gradients.
        beta: weight of the projectors' norms (equation of section 3; the paper gives no value, 0 by default).
        stop_at: stop as soon as the relative bias is this small.

    Returns:
        The best pair seen, never worse than the given one. A gradient that is 0 or not finite teaches nothing: the
        pair comes back as it was, after 0 steps.

    Raises:
        TypeError: a pair of other projectors.

    >>> g = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    >>> g = g @ g.T  # of rank 2
    >>> draw = lambda seed: SparseProjector.draw(16, 8, 4, generator=torch.Generator().manual_seed(seed))
    >>> pair = Pair(draw(1), draw(2))
    >>> learned = fit(pair, g, steps=50)
    >>> learned.bias < float(pair.bias(g)) / 2
    True
    """
    left, right = pair.left, pair.right
    if not isinstance(left, SparseProjector) or not isinstance(right, SparseProjector):
        got = f"{type(left).__name__} and {type(right).__name__}"
        raise TypeError(message("fit", "needs two sparse projectors", got, "Others have nothing to learn."))
    whole = float(torch.linalg.vector_norm(grad))
    if not math.isfinite(whole) or whole == 0:
        return Fit(pair, float("nan") if whole else 0.0, 0)
    grad = (grad / whole).detach()
    if lr is not None:
        return _adam(left, right, grad, steps, lr, beta, stop_at)
    with torch.no_grad():
        p, q, taken = descend(left, right, grad, steps, beta, stop_at)
        found = Pair(left.with_value(p), right.with_value(q))
        bias, before = float(found.bias(grad)), float(pair.bias(grad))
    worse = not bias <= before and beta == 0  # rounding, where nothing is left to learn
    return Fit(pair, before, taken) if worse else Fit(found, bias, taken)


def _adam(
    left: SparseProjector, right: SparseProjector, grad: Tensor, steps: int, lr: float, beta: float, stop_at: float
) -> Fit:
    """The paper's fit to a G of norm 1."""
    values = [left.value.detach().clone().requires_grad_(), right.value.detach().clone().requires_grad_()]
    best, best_values = math.inf, [v.detach().clone() for v in values]
    optimizer = torch.optim.Adam(values, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    taken = 0
    with torch.enable_grad():
        for taken in range(steps + 1):
            lost = _lost(left, right, values, grad)
            now = float(lost.detach())
            if now < best:
                best = now
                for kept, v in zip(best_values, values):
                    kept.copy_(v.detach())
            if taken == steps or now <= stop_at or not math.isfinite(now):
                break
            optimizer.zero_grad(set_to_none=True)
            loss = lost + beta * (values[0].norm() + values[1].norm()) if beta else lost
            loss.backward()
            optimizer.step()
            schedule.step()
    return Fit(Pair(left.with_value(best_values[0]), right.with_value(best_values[1])), best, taken)


def _lost(left: SparseProjector, right: SparseProjector, values: list[Tensor], grad: Tensor) -> Tensor:
    """`||P P^T G Q Q^T - G||` of a G of norm 1, differentiable in the values."""
    p = (left.index, values[0], left.starts, left.order)
    q = (right.index, values[1], right.starts, right.order)
    small = subspace_project(subspace_project(grad, *p).T, *q)  # [q, p]
    back = subspace_expand(subspace_expand(small, *q).T, *p)  # [m, n]
    return torch.linalg.vector_norm(back - grad)
