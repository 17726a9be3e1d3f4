# SPDX-License-Identifier: Apache-2.0
"""Learning a pair of sparse projectors on a gradient. LSP-Offload (AAAI 2025), section 3 and algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeops import _native
from edgeops._common import message
from edgeops.offload._descent import descend
from edgeops.offload.pair import Pair
from edgeops.offload.projector import SparseProjector

_value_grad = _native.kernel("_subspace_value_grad", "fit")


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


@torch.no_grad()
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
    p, q, taken = descend(left, right, grad, steps, beta, stop_at)
    found = Pair(left.with_value(p), right.with_value(q))
    bias, before = float(found.bias(grad)), float(pair.bias(grad))
    worse = not bias <= before and beta == 0  # rounding, where nothing is left to learn
    return Fit(pair, before, taken) if worse else Fit(found, bias, taken)


def _adam(
    left: SparseProjector, right: SparseProjector, grad: Tensor, steps: int, lr: float, beta: float, stop_at: float
) -> Fit:
    """The paper's fit to a G of norm 1."""
    values = [left.value.detach().clone(), right.value.detach().clone()]
    best, best_values = math.inf, [v.clone() for v in values]
    optimizer = torch.optim.Adam(values, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    taken = 0
    for taken in range(steps + 1):
        lost, back = _lost(Pair(left.with_value(values[0]), right.with_value(values[1])), grad)
        now = float(lost)
        if now < best:
            best = now
            for kept, v in zip(best_values, values):
                kept.copy_(v)
        if taken == steps or now <= stop_at or not math.isfinite(now):
            break
        for v, slope in zip(values, back()):
            v.grad = slope.add_(v / v.norm(), alpha=beta) if beta else slope
        optimizer.step()
        schedule.step()
    return Fit(Pair(left.with_value(best_values[0]), right.with_value(best_values[1])), best, taken)


def _lost(pair: Pair, grad: Tensor) -> tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]:
    """`||P P^T G Q Q^T - G||` of a G of norm 1, and what gives its gradients in the values of P and Q.

    Written out, not left to autograd, whose keys are off inside of an op: there a compiled layer learns.
    """
    left, right = pair.left, pair.right
    assert isinstance(left, SparseProjector)
    assert isinstance(right, SparseProjector)
    gq = right.project(grad.T).T  # [m, q]
    small = left.project(gq)  # [p, q]
    off = pair.expand(small).sub_(grad)
    lost = torch.linalg.vector_norm(off)

    def back() -> tuple[Tensor, Tensor]:
        rest = off.div_(lost) if lost > 0 else off
        gp, rp, rq = left.project(grad), left.project(rest), right.project(rest.T).T
        dsmall = left.project(rq)
        return (
            _value_grad(rq, small, left.index) + _value_grad(gq, dsmall, left.index),
            _value_grad(rp.T, small.T, right.index) + _value_grad(gp.T, dsmall.T, right.index),
        )

    return lost, back
