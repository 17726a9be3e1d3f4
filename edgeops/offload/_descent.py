# SPDX-License-Identifier: Apache-2.0
"""Fitting both projectors' values to a gradient by preconditioned conjugate gradients.

With S = P^T G Q and ||G|| = 1 the squared loss `||P S Q^T - G||^2` is `<P^T P S, S Q^T Q> - 2 ||S||^2 + 1`, all of it
`[p, q]`: along a line only `P^T G` and `G Q` meet the whole gradient, two sparse products a step, and a step's length
is found in the subspace.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeops import _native
from edgeops.offload.projector import SparseProjector

_value_grad = _native.kernel("_subspace_value_grad", "subspace_project")
_DAMPING = 0.3  # of the rows' blocks, as a share of their mean diagonal: 0.1 to 1 do alike
_TRIALS = 3


def gram(p: SparseProjector, other: SparseProjector) -> Tensor:
    """`P^T R` `[d, d]`."""
    return p.project(other.dense())


@dataclass
class Point:
    """A place on a line: S, `P^T P` and `Q^T Q`, their products with S, and the objective."""

    s: Tensor
    p_gram: Tensor
    q_gram: Tensor
    p_s: Tensor
    s_q: Tensor
    lost: float
    norms: tuple[float, float]
    beta: float

    @property
    def objective(self) -> float:
        """What is minimised, squared."""
        return (self.lost + self.beta * sum(self.norms)) ** 2


def point(s: Tensor, p_gram: Tensor, q_gram: Tensor, beta: float) -> Point:
    """The objective of an S and two Gram matrices."""
    p_s, s_q = p_gram @ s, s @ q_gram
    numbers = torch.stack([(p_s * s_q).sum(), s.square().sum(), p_gram.trace(), q_gram.trace()]).double().tolist()
    lost = max(numbers[0] - 2 * numbers[1] + 1, 0.0) ** 0.5
    norms = (max(numbers[2], 0.0) ** 0.5, max(numbers[3], 0.0) ** 0.5)
    return Point(s, p_gram, q_gram, p_s, s_q, lost, norms, beta)


def slopes(
    here: Point, left: SparseProjector, right: SparseProjector, x: Tensor, y: Tensor
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Gradient of the objective in the values of each side, and the same divided by the blocks of its rows.

    A row's block is what the second derivative in its r values would be if the other rows stood still.

    Args:
        here: where.
        left, right: P and Q.
        x: `P^T G` `[p, n]`.
        y: `Q^T G^T` `[q, m]`.
    """
    ds = 2 * here.p_gram @ here.s_q - 4 * here.s
    lost, whole = max(here.lost, 1e-12), here.lost + here.beta * sum(here.norms)
    out = []
    for side, thin, dense, inner, own_gram, norm in (
        (left, y, ds, here.s_q @ here.s.T, here.p_gram, here.norms[0]),
        (right, x, ds.T, here.s.T @ here.p_s, here.q_gram, here.norms[1]),
    ):
        index = side.index.long()
        block = inner[index[:, :, None], index[:, None, :]]  # [m, r, r]
        grad = _value_grad(thin.T, dense.contiguous(), side.index) + 2 * (block @ side.value[:, :, None])[:, :, 0]
        if here.beta:
            grad = whole / lost * grad + 2 * whole * here.beta / max(norm, 1e-12) * side.value
        own = block + torch.diag_embed(thin.square().sum(0)[:, None] * own_gram.diagonal()[index])
        damping = _DAMPING * own.diagonal(dim1=1, dim2=2).mean() + torch.finfo(own.dtype).tiny
        own.diagonal(dim1=1, dim2=2).add_(damping)
        out.append((grad, torch.linalg.solve_ex(own, grad[:, :, None])[0][:, :, 0]))
    return tuple(out)


def _dot(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> float:
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


def descend(
    left: SparseProjector, right: SparseProjector, grad: Tensor, steps: int, beta: float, stop_at: float
) -> tuple[Tensor, Tensor, int]:
    """Values of both sides after some steps, and their number.

    Args:
        left, right: P and Q at the start.
        grad: G `[m, n]` of norm 1.
        steps: at most.
        beta: of the objective `||P P^T G Q Q^T - G|| + beta (||P|| + ||Q||)`.
        stop_at: stop as soon as the relative bias is this small.
    """
    p, q = (side.with_value(side.value.to(grad.dtype)) for side in (left, right))
    x, y = p.project(grad), q.project(grad.T)
    here = point(q.project(x.T).T, gram(p, p), gram(q, q), beta)
    along: tuple[Tensor, ...] = ()
    before, last, length = along, 0.0, 0.25
    for taken in range(steps):
        if here.lost <= stop_at:
            return p.value, q.value, taken
        (dp, zp), (dq, zq) = slopes(here, p, q, x, y)
        down = _dot((dp, dq), (zp, zq))
        turn = max((down - _dot(before, (zp, zq))) / last, 0.0) if along else 0.0  # Polak and Ribiere
        along = tuple(turn * a - z for a, z in zip(along, (zp, zq), strict=True)) if turn else (-zp, -zq)
        slope = _dot((dp, dq), along)
        if slope >= 0:
            along, slope = (-zp, -zq), -down
        if not slope < 0:  # at a minimum, or not finite
            return p.value, q.value, taken
        before, last = (dp, dq), down
        line = _Line(here, p, q, x, y, grad, along)
        found, length = line.search(slope, length)
        if found is None:
            return p.value, q.value, taken
        here, x, y = found, x + length * line.dx, y + length * line.dy
        p, q = p.with_value(p.value + length * along[0]), q.with_value(q.value + length * along[1])
    return p.value, q.value, steps


class _Line:
    """The objective along a direction: S and the Gram matrices are of degree 2 in the length."""

    def __init__(
        self,
        here: Point,
        p: SparseProjector,
        q: SparseProjector,
        x: Tensor,
        y: Tensor,
        grad: Tensor,
        along: tuple[Tensor, ...],
    ) -> None:
        d, e = p.with_value(along[0]), q.with_value(along[1])
        self.here, self.dx, self.dy = here, d.project(grad), e.project(grad.T)
        self.s = d.project(y.T) + e.project(x.T).T, e.project(self.dx.T).T
        grams = (gram(p, d), gram(d, d)), (gram(q, e), gram(e, e))
        self.grams = [(mixed + mixed.T, own) for mixed, own in grams]

    def at(self, t: float) -> Point:
        """The point at a length."""
        here, (p1, p2), (q1, q2) = self.here, *self.grams
        return point(
            here.s + t * self.s[0] + t * t * self.s[1],
            here.p_gram + t * p1 + t * t * p2,
            here.q_gram + t * q1 + t * t * q2,
            here.beta,
        )

    def search(self, slope: float, length: float) -> tuple[Point | None, float]:
        """The lowest of some points, each at the end of the parabola through the start and the one before."""
        start, best, best_at, t = self.here.objective, None, 0.0, length
        for trial in range(2 * _TRIALS):
            seen = self.at(t)
            value = seen.objective
            if value < (start if best is None else best.objective):
                best, best_at = seen, t
            elif best is not None:
                break
            if trial >= _TRIALS - 1 and best is not None:
                break
            bend = (value - start - slope * t) / (t * t)
            wanted = -slope / (2 * bend) if bend > 0 else 4 * t
            wanted = min(max(wanted, t / 8), 4 * t) if value == value else t / 8
            if best is not None and abs(wanted - t) < 0.1 * t:
                break
            t = wanted
        return best, best_at
