# SPDX-License-Identifier: Apache-2.0
"""Which weights are trained through a subspace, and what is kept of each. LSP-Offload (AAAI 2025), section 3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from edgeops._common import describe, message
from edgeops.offload._reference import compute_dtype
from edgeops.offload.linear import SubspaceLinear
from edgeops.offload.pair import Pair, rows_pair, svd_pair
from edgeops.offload.projector import IdentityProjector, SparseProjector
from edgeops.offload.sharded import Rows

PROJECTORS = ("learned", "random", "svd", "rows", "identity")
FIXED = ("random", "identity")  # never learned
Select = Callable[[str, nn.Linear], bool] | Iterable[str]


@dataclass
class Target:
    """One weight that is trained through a subspace.

    Attributes:
        name: of the weight.
        weight: `[m, n]`.
        leaf: the parameter that stands for it in the optimizer's groups: the coordinates, or the weight itself.
        module: the layer, or `None` where only the weight is known.
        group: place of its group among the optimizer's.
        alone: the projectors where only the weight is known.
        due: whether the next backward pass checks the pair.
        fit_bias: relative bias of the pair on the gradient that it learned from; `inf` before.
        skipped: updates left out because the gradient was not finite.
        learned: how often the pair has changed.
        small: the compressed gradient, where only the weight is known.
        arrived: micro-batches whose gradients are in the pending one.
        host: the persistent buffer of overlapped updates.
        rows: which rows of the weight this process has, where it is sharded.
    """

    name: str
    weight: Tensor
    leaf: nn.Parameter
    module: SubspaceLinear | None
    group: int
    alone: Pair | None = None
    due: bool = True
    fit_bias: float = float("inf")
    skipped: int = 0
    learned: int = 0
    small: Tensor | None = field(default=None, repr=False)
    arrived: int = 0
    host: Tensor | None = field(default=None, repr=False)
    rows: Rows | None = None

    @property
    def pair(self) -> Pair:
        """Its projectors: the layer's own, which move with it."""
        if self.module is not None:
            return self.module.pair
        assert self.alone is not None
        return self.alone

    def set_pair(self, pair: Pair) -> None:
        """Use another pair from now on."""
        if self.module is not None:
            self.module.pair = pair
        else:
            self.alone = pair

    def gradient(self) -> Tensor | None:
        """The compressed gradient of the pending step."""
        return self.small if self.module is None else self.leaf.grad


def width_of(who: str, name: str, weight: Tensor, d: int | float, r: int) -> int:
    """The subspace's width for one weight: d itself, or that share of the shorter side.

    Raises:
        ValueError: d beyond the shorter side, or r beyond d.
    """
    shorter = min(weight.shape)
    width = max(1, round(d * shorter)) if isinstance(d, float) else d
    if not 1 <= width <= shorter:
        rule = f"d must lie in [1, {shorter}] for {name}, of shape {tuple(weight.shape)}"
        raise ValueError(message(who, rule, str(d), "Choose a smaller d, a share such as 0.5, or other targets."))
    if not 1 <= r <= width:
        raise ValueError(message(who, f"r must lie in [1, d], d = {width} for {name}", str(r), "Choose a smaller r."))
    return width


def first_pair(
    who: str, name: str, weight: Tensor, projector: str, d: int | float, r: int, generator: torch.Generator
) -> Pair:
    """The pair that a weight starts with: identity, or a random sparse one until the first gradient is there."""
    if not weight.is_floating_point() or weight.dim() != 2:
        rule = f"{name} must be a matrix of floating point numbers"
        raise TypeError(message(who, rule, describe(weight), "Leave it to the ordinary groups."))
    m, n = weight.shape
    if projector == "identity":
        return Pair(IdentityProjector(m), IdentityProjector(n))
    width = width_of(who, name, weight, d, r)
    dtype = compute_dtype(weight.dtype)
    drawn = [SparseProjector.draw(size, width, r, generator=generator, dtype=dtype) for size in (m, n)]
    return Pair(drawn[0], drawn[1]).to(weight.device)


def pair_of_gradient(projector: str, grad: Tensor, width: tuple[int, int]) -> Pair:
    """The pair that a gradient gives at once: its singular vectors, or its largest rows and columns."""
    return (svd_pair if projector == "svd" else rows_pair)(grad, width).to(grad.device)


def select_linears(who: str, model: nn.Module, d: int | float, targets: Select | None) -> dict[str, nn.Linear]:
    """The linear layers of a model that are to be trained through a subspace, by name.

    Args:
        who: for errors.
        model: any module.
        d: width of the subspaces.
        targets: `None` for all plain `nn.Linear`s with both sides longer than d and a weight of their own; otherwise
            patterns of module names (`"*.attention.*"`), or a predicate of name and module.

    Raises:
        ValueError: a pattern that matches nothing, a tied weight, or a weight that is frozen.
    """
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    if targets is None:
        return {
            name: module
            for name, module in linears.items()
            if owners[id(module.weight)] == 1
            and module.weight.requires_grad
            and (isinstance(d, float) or min(module.weight.shape) > d)
        }
    if callable(targets):
        chosen = {name: module for name, module in linears.items() if targets(name, module)}
    else:
        patterns = [targets] if isinstance(targets, str) else list(targets)
        chosen = {name: module for name, module in linears.items() if any(fnmatch(name, p) for p in patterns)}
        idle = [p for p in patterns if not any(fnmatch(name, p) for name in linears)]
        if idle:
            rule = "every pattern in targets must match a plain nn.Linear"
            advice = "See model.named_modules() for the names; layers that fully_shard was called with are not plain."
            raise ValueError(message(who, rule, ", ".join(map(repr, idle)), advice))
    for name, module in chosen.items():
        if owners[id(module.weight)] > 1:
            rule = f"{name}.weight must not be shared with another module"
            raise ValueError(message(who, rule, "a tied weight", "Leave it out of targets."))
        if not module.weight.requires_grad:
            rule = f"{name}.weight must require a gradient"
            raise ValueError(message(who, rule, "a frozen weight", "Unfreeze it, or leave it out of targets."))
    return chosen
