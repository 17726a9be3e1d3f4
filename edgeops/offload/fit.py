# SPDX-License-Identifier: Apache-2.0
"""Learning a pair of sparse projectors on a gradient. LSP-Offload (AAAI 2025), section 3 and algorithm 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeops._common import message
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


def fit(pair: Pair, grad: Tensor, *, steps: int = 30, lr: float = 0.1, beta: float = 0.0, stop_at: float = 0.0) -> Fit:
    """Train the values of a sparse pair so that it keeps a gradient; places stay.

    Minimises `||P P^T G Q Q^T - G|| / ||G|| + beta (||P|| + ||Q||)` with Adam under a cosine, starting from the values
    that the pair has: a warm start where it has been learned before.

    Args:
        pair: of two `SparseProjector`s.
        grad: G `[m, n]`, float32 or float64.
        steps: at most.
        lr: of Adam, at the start.
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
