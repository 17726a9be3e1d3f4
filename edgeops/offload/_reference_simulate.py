# SPDX-License-Identifier: Apache-2.0
"""Plain twin of the event simulator: the specification of what starts when."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from edgeops.offload.schedule import RESOURCE_OF, RESOURCES, Policy, Profile

NEXT = {"compress": "down", "down": "update", "update": "up"}


@dataclass
class Work:
    """A layer's stage in a step, and when it runs."""

    stage: str
    layer: int
    step: int
    start: float = 0.0
    end: float = math.inf


@dataclass
class Machine:
    """What the four resources do, what waits for them, and what is through."""

    layers: int
    running: dict[str, Work] = field(default_factory=dict)
    waiting: dict[str, list[Work]] = field(default_factory=lambda: {name: [] for name in RESOURCES})
    held: list[Work] = field(default_factory=list)  # gradients whose layer's buffer is still in use
    ended: list[Work] = field(default_factory=list)
    slots: int | None = None
    arrived: list[int] = field(default_factory=list)  # layers with updates on the device, in the order of arrival

    def full(self) -> bool:
        """Whether no further update may come up."""
        return self.slots is not None and len(self.arrived) + ("up" in self.running) >= self.slots

    def count(self, stage: str, step: int) -> int:
        """Layers whose stage of the step has ended."""
        return sum(work.stage == stage and work.step == step for work in self.ended)

    def through(self, layer: int, step: int) -> bool:
        """Whether the layer's update of the step is up; those before the first step are."""
        return step < 0 or any((w.stage, w.layer, w.step) == ("up", layer, step) for w in self.ended)


def program(policy: Policy, layers: int, steps: int) -> deque[Work]:
    """What compute does, in its order."""
    found: deque[Work] = deque()
    for step in range(steps + 1):
        for layer in range(layers):
            if step > policy.stale:
                found.append(Work("apply", layer, step))
            found.append(Work("forward", layer, step))
        for layer in reversed(range(layers)):
            found += [Work("backward", layer, step), Work("compress", layer, step)]
    return found


def may_start(policy: Policy, machine: Machine, work: Work) -> bool:
    """Whether the first in line on compute or the CPU may start."""
    needed = work.step - 1 - policy.stale
    if work.stage in ("apply", "forward"):
        if not machine.through(work.layer, needed):
            return False
        if policy.kind == "zero" and needed >= 0 and machine.count("up", needed) < machine.layers:
            return False
    if work.stage in ("apply", "forward", "backward", "compress") and policy.kind == "serial":
        return sum(w.stage == "compress" for w in machine.ended) == sum(w.stage == "up" for w in machine.ended)
    if work.stage == "update" and policy.kind == "zero":
        return machine.count("down", work.step) == machine.layers
    return True


def place(policy: Policy, layers: int, work: Work) -> tuple[int, int, int]:
    """Where a waiting layer stands; equal ones go by arrival."""
    first = policy.latest_first(layers)
    return (work.step, 0, work.layer) if work.layer < first else (work.step, 1, 0)


def simulate(profile: Profile, policy: Policy, steps: int, slots: int | None = None) -> tuple[list[float], list[Work]]:
    """When the backward of each of `steps` steps starts, and of the one after; all that ended, in order."""
    machine = Machine(profile.layers, slots=None if policy.kind == "serial" else slots)
    todo = program(policy, profile.layers, steps)
    now, starts, drained = 0.0, list[float](), set[tuple[int, int]]()
    while True:
        if todo[0].stage == "apply" and (todo[0].layer, todo[0].step) in drained:
            todo.popleft()
        free = "compute" not in machine.running
        if free and not may_start(policy, machine, todo[0]) and waits(todo[0]) and machine.full() and machine.arrived:
            machine.running["compute"] = Work("apply", machine.arrived[0], todo[0].step)  # makes room
            drained.add((machine.arrived[0], todo[0].step))
        elif free and may_start(policy, machine, todo[0]):
            work = todo.popleft()
            if work.stage == "backward" and work.layer == profile.layers - 1:
                starts.append(now)
                if len(starts) > steps:
                    return starts, machine.ended
            machine.running["compute"] = work
        for name in ("down", "cpu", "up"):
            queue = machine.waiting[name]
            if name not in machine.running and queue:
                first = min(queue, key=lambda work: place(policy, profile.layers, work))
                if may_start(policy, machine, first) and not (name == "up" and machine.full()):
                    queue.remove(first)
                    machine.running[name] = first
        for work in machine.running.values():
            if work.end == math.inf:
                work.start, work.end = now, now + float(getattr(profile, work.stage)[work.layer])
        now = min(work.end for work in machine.running.values())
        for name in RESOURCES:
            if name in machine.running and machine.running[name].end == now:
                finish(machine, machine.running.pop(name))


def waits(work: Work) -> bool:
    """Whether compute waits for an update before it."""
    return work.stage in ("apply", "forward")


def finish(machine: Machine, work: Work) -> None:
    """Note what has ended, and send it on."""
    machine.ended.append(work)
    if work.stage == "apply":
        machine.arrived.remove(work.layer)
    if work.stage == "up":
        machine.arrived.append(work.layer)
    following = NEXT.get(work.stage)
    if following is not None:
        sent = Work(following, work.layer, work.step)
        if following == "down" and not machine.through(work.layer, work.step - 1):
            machine.held.append(sent)
        else:
            machine.waiting[RESOURCE_OF[following]].append(sent)
    if work.stage == "up":
        for sent in [held for held in machine.held if held.layer == work.layer]:
            machine.held.remove(sent)
            machine.waiting["down"].append(sent)
