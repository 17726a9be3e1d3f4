# SPDX-License-Identifier: Apache-2.0
"""When a weight's pair no longer fits its gradients, and what comes instead. LSP-Offload (AAAI 2025), algorithm 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgeops.offload._reference import compute_dtype
from edgeops.offload.fit import fit
from edgeops.offload.moments import transfer
from edgeops.offload.pair import Pair
from edgeops.offload.sharded import averaged
from edgeops.offload.targets import Target, first_pair, pair_of_gradient


@torch.no_grad()
def look(
    target: Target, group: dict[str, Any], grad: Tensor, state: dict[str, Any] | None, generator: torch.Generator
) -> None:
    """Look at a whole gradient and change the pair where it no longer fits; the moments follow.

    A gradient that is not finite teaches nothing: the next one is looked at.

    Args:
        target: its pair is due.
        group: its settings.
        grad: `[m, n]`; the mean over the processes of `torch.distributed` counts, so that all learn the same pair.
        state: the optimizer's of the target, if any.
        generator: of new draws.
    """
    reconsider(target, group, _mean(grad.to(compute_dtype(grad.dtype)), target), state, generator)


def reconsider(
    target: Target,
    group: dict[str, Any],
    grad: Tensor,
    state: dict[str, Any] | None,
    generator: torch.Generator,
    who: str = "LSPAdamW",
) -> None:
    """The same of a gradient that is the mean already, in the compute dtype; `who` is for errors."""
    if not bool(torch.isfinite(grad).all()):
        return
    target.due = False  # the layer goes on as it began until the step ends: a checkpoint recomputes what it saw
    old = target.pair
    if math.isfinite(target.fit_bias):
        limit = group["alpha"] if group["alpha"] is not None else group["alpha_relative"] * target.fit_bias
        if float(old.bias(grad)) <= limit:
            return
    new, target.fit_bias = fitted(target, group, grad, generator, who)
    if state:
        m, v, t = transfer(old, new, state["exp_avg"], state["exp_avg_sq"], int(state["step"]), group["on_change"])
        state["exp_avg"], state["exp_avg_sq"] = m, v
        state["step"].fill_(t)
    target.learned += 1
    target.set_pair(new)


def fitted(
    target: Target, group: dict[str, Any], grad: Tensor, generator: torch.Generator, who: str
) -> tuple[Pair, float]:
    """The pair that a gradient gives, and its relative bias on it."""
    if group["projector"] != "learned":
        new = pair_of_gradient(group["projector"], grad, target.pair.shape)
        return new, float(new.bias(grad))
    start = target.pair
    if not group["warm_start"] and target.learned:
        start = first_pair(who, target.name, target.weight, "learned", group["d"], group["r"], generator)
    found = fit(
        start,
        grad,
        steps=group["fit_steps"],
        lr=group["fit_lr"],
        beta=group["fit_beta"],
        stop_at=group["alpha"] or 0.0,
    )
    return found.pair, found.bias


def _mean(grad: Tensor, target: Target) -> Tensor:
    """The mean over the processes that train the weight; alone, grad itself."""
    if target.rows is not None:
        return averaged(grad, target.rows.mesh)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(grad)
        grad /= torch.distributed.get_world_size()
    return grad
