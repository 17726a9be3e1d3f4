# SPDX-License-Identifier: Apache-2.0
"""Updates that start in the backward pass, as soon as a target's gradient is complete. LSP-Offload, algorithm 3."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops._common import message
from edgeops.offload._reference import compute_dtype
from edgeops.offload.links import Link
from edgeops.offload.pipeline import Pipeline
from edgeops.offload.schedule import Policy
from edgeops.offload.targets import Target
from edgeops.offload.update import Overlapped, Update


def check_overlap(who: str, policy: str | Policy, accumulation_steps: int, model: bool) -> None:
    """Raise where updates cannot be overlapped as asked.

    Raises:
        ValueError: no model, no backward pass, or an unknown policy.
    """
    if not model:
        rule = "policy needs a model, whose layers wait for their updates"
        raise ValueError(message(who, rule, "parameters", "Pass the model itself, or leave policy out."))
    if accumulation_steps < 1:
        rule = "accumulation_steps must be at least 1"
        raise ValueError(message(who, rule, str(accumulation_steps), "Count the backward passes of a step."))
    if policy != "auto":
        Policy.parse(policy)


class Overlap:
    """A pipeline whose tasks are the updates of targets; layers wait for their own before they run.

    Args:
        targets: of modules, in the order of the forward.
        policy, link, record: of the `Pipeline`.
        accumulation_steps: backward passes whose gradients make one update.
        wire_dtype: what travels; `None` is the compute dtype.
        update: makes the update of a target from its gradient, into a persistent buffer.
        through: called with an update, in the thread that applied it.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        policy: str | Policy,
        accumulation_steps: int,
        link: Link | None,
        record: bool,
        wire_dtype: torch.dtype | None,
        update: Callable[[Target, Tensor, Tensor | None], Update],
        through: Callable[[Update], None],
    ) -> None:
        self.pipeline = Pipeline(len(targets), policy, link=link, record=record)
        self.paused = False  # gradients that arrive are not of a step
        self._steps, self._update, self._through = accumulation_steps, update, through
        self._hooks: list[Any] = []
        for place, target in enumerate(targets):
            assert target.module is not None
            wire = wire_dtype or compute_dtype(target.weight.dtype)
            target.host = self.pipeline.link.host_buffer(target.pair.shape, wire)
            target.module.before = _native.eager_only(functools.partial(self.pipeline.wait, place))
            hook = functools.partial(self._arrived, target)
            self._hooks.append(target.leaf.register_post_accumulate_grad_hook(hook))

    def _arrived(self, target: Target, leaf: Tensor) -> None:
        if self.paused:
            return
        target.arrived += 1
        if target.arrived >= self._steps:
            self.submit(target)

    @torch.no_grad()
    def submit(self, target: Target) -> None:
        """Hand a complete gradient to the pipeline."""
        small, target.arrived = target.leaf.grad, 0
        assert small is not None
        target.leaf.grad = None
        self.pipeline.submit(Overlapped(self._update(target, small, target.host), self._through))

    def close(self) -> None:
        """End the pipeline, drop the hooks."""
        self.pipeline.close()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
