# SPDX-License-Identifier: Apache-2.0
"""Adam's moments when the subspace changes. LSP-Offload (AAAI 2025), algorithm 1, and what its code does instead."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgeops._common import message
from edgeops.offload.pair import Pair

CHANGES = ("project", "project_normalised", "reset", "reset_with_t")


def transfer(
    old: Pair, new: Pair, exp_avg: Tensor, exp_avg_sq: Tensor, step: int, how: str = "project_normalised"
) -> tuple[Tensor, Tensor, int]:
    """Moments of the old subspace, for the new one.

    With `A = P_new^T P_old` and `B = Q_old^T Q_new`, "project" is the paper's `M <- A M B`, `V <- (A * A) V (B * B)`.

    Args:
        old: the pair that the moments belong to.
        new: the pair that comes; of the same widths.
        exp_avg: M `[p, q]`.
        exp_avg_sq: V `[p, q]`.
        step: t.
        how: "project"; "project_normalised", the same with rows of A and columns of B scaled down to norm 1 where they
            are longer, so that no moment grows by the change alone, and V enlarged where steps would become longer (its
            rule ignores what elements of the gradient have in common); "reset",
            zeros and t = 0; "reset_with_t", zeros and t kept, which is what the released code does and makes the first
            step about 3 times too large.

    Returns:
        M, V and t. Elements that are not finite become 0.

    Raises:
        ValueError: an unknown way.

    >>> from edgeops.offload import IdentityProjector
    >>> pair = Pair(IdentityProjector(2), IdentityProjector(2))
    >>> transfer(pair, pair, torch.ones(2, 2), torch.ones(2, 2), 5, "reset")[2]
    0
    """
    if how not in CHANGES:
        raise ValueError(
            message("transfer", f"on_change must be one of {', '.join(CHANGES)}", repr(how), "Choose one.")
        )
    if how.startswith("reset") or new.shape != tuple(exp_avg.shape):
        return _zeros(exp_avg, new), _zeros(exp_avg, new), step if how == "reset_with_t" else 0
    wide = torch.float64
    a = new.left.to("cpu", wide).project(old.left.dense().to("cpu", wide)).to(exp_avg)
    b = new.right.to("cpu", wide).project(old.right.dense().to("cpu", wide)).T.to(exp_avg)
    if how == "project_normalised":
        a = a / a.norm(dim=1, keepdim=True).clamp(min=1)
        b = b / b.norm(dim=0, keepdim=True).clamp(min=1)
    m = torch.nan_to_num(a @ exp_avg @ b, nan=0.0, posinf=0.0, neginf=0.0)
    v = torch.nan_to_num(a.square() @ exp_avg_sq @ b.square(), nan=0.0, posinf=0.0, neginf=0.0)
    if how == "project_normalised":
        v = v * _growth(exp_avg, exp_avg_sq, m, v)
    return m.contiguous(), v.contiguous(), step


def _growth(m: Tensor, v: Tensor, new_m: Tensor, new_v: Tensor) -> float:
    """What V must be multiplied with for steps as long as before, root mean square; never below 1, at most 16."""
    before, after = (
        float((first.double().square() / second.double().clamp(min=1e-60)).mean())
        for first, second in ((m, v), (new_m, new_v))
    )
    ratio = after / before if before > 0 else 1.0
    return min(max(ratio, 1.0), 16.0) if math.isfinite(ratio) else 1.0


def _zeros(like: Tensor, pair: Pair) -> Tensor:
    return like.new_zeros(pair.shape)
