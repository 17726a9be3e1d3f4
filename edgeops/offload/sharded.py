# SPDX-License-Identifier: Apache-2.0
"""Weights that lie by rows on several processes: FSDP2, `torch.distributed.fsdp.fully_shard`. LSP-Offload, section 2.

A layer sees its whole weight; between passes every process keeps some rows. Coordinates are small: every process has
all of them, their gradients are averaged in the backward pass, and the update of a shard reads its own rows of P.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeops._common import describe, message


@dataclass(frozen=True)
class Rows:
    """Where a weight's rows are.

    Attributes:
        mesh: the processes, a `DeviceMesh`.
        first: the first of this process' rows.
    """

    mesh: Any
    first: int


def _loaded(name: str) -> Any:
    """A module of torch where something has imported it: without, nothing can be of its types."""
    return sys.modules.get(name)


def is_sharded(x: object) -> bool:
    """Whether it is a `DTensor`."""
    module = _loaded("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local_rows(weight: Any) -> Tensor:
    """This process' rows of a weight, to be written; a plain weight itself."""
    rows: Tensor = weight.to_local() if is_sharded(weight) else weight
    return rows


def rows_of(who: str, name: str, weight: Any) -> Rows | None:
    """Where the rows of a weight are; `None` of a plain one.

    Raises:
        NotImplementedError: it is not cut by rows, once.
    """
    if not is_sharded(weight):
        return None
    mesh, placements = weight.device_mesh, weight.placements
    cut = [i for i, place in enumerate(placements) if not place.is_replicate()]
    if len(cut) != 1 or not placements[cut[0]].is_shard(0) or type(placements[cut[0]]).__name__ != "Shard":
        rule = f"{name} must be cut by rows over one dimension of the mesh"
        advice = "Use fully_shard as it is, or leave the layer out of targets."
        raise NotImplementedError(message(who, rule, f"{placements} of {describe(weight.to_local())}", advice))
    rows, parts = weight.shape[0], mesh.size(cut[0])
    each = -(-rows // parts)  # as torch.chunk
    return Rows(mesh, min(each * mesh.get_local_rank(cut[0]), rows))


def averaged(grad: Tensor, mesh: Any) -> Tensor:
    """The mean over the processes of a mesh; of gradients of losses that are means of equal batches."""
    grad = grad / mesh.size()
    for dimension in range(mesh.ndim):
        torch.distributed.all_reduce(grad, group=mesh.get_group(dimension))
    return grad


def any_process(flags: Tensor, mesh: Any) -> Tensor:
    """Booleans, true where one process of the mesh says so."""
    counts = flags.to(torch.float32)
    for dimension in range(mesh.ndim):
        torch.distributed.all_reduce(counts, group=mesh.get_group(dimension))
    return counts > 0


def average_leaf(leaf: nn.Parameter, mesh: Any) -> Any:
    """Let gradients of a parameter that every process has be averaged before they accumulate; gives the hook."""
    return leaf.register_hook(functools.partial(averaged, mesh=mesh))


def refuse_other_wrappers(who: str, model: nn.Module) -> None:
    """Raise for models whose layers do not see whole plain weights.

    Raises:
        NotImplementedError: FSDP1, or FSDP2 that keeps shards on another device.
    """
    fsdp = _loaded("torch.distributed.fsdp")
    if fsdp is None:
        return
    for name, module in model.named_modules():
        if isinstance(module, fsdp.FullyShardedDataParallel):
            rule, advice = "needs weights as they are, or sharded by fully_shard", "Use fully_shard (FSDP2)."
            raise NotImplementedError(message(who, rule, f"FullyShardedDataParallel at '{name}'", advice))
        if not isinstance(module, fsdp.FSDPModule):
            continue
        state: Any = module._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        if any(isinstance(getattr(group, "offload_policy", None), fsdp.CPUOffloadPolicy) for group in groups):
            rule, advice = (
                "needs shards on the device that computes",
                "Leave offload_policy out: moments are on state_device.",
            )
            raise NotImplementedError(message(who, rule, f"CPUOffloadPolicy at '{name}'", advice))
