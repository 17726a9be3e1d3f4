# SPDX-License-Identifier: Apache-2.0
"""The state behind a pipeline and the rules of its three queues; every method but `run` is called with the lock held.

Worker threads hold this object and never the `Pipeline`, so that a pipeline that nobody holds can end.
"""

from __future__ import annotations

import heapq
import math
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from edgeops._common import message
from edgeops.offload._measure import Stopwatch
from edgeops.offload.links import Link, Task
from edgeops.offload.schedule import Policy
from edgeops.offload.trace import Event

Cpu = Callable[[Task, float], float]
STAGE_OF = {"down": "down", "cpu": "update", "up": "up"}
_AFTER = {"down": "cpu", "cpu": "up"}


class OffloadError(RuntimeError):
    """A stage of a layer's update failed.

    Attributes:
        layer, stage: which one.
    """

    def __init__(self, text: str, layer: int, stage: str) -> None:
        super().__init__(text)
        self.layer, self.stage = layer, stage


class Unapplied(NamedTuple):
    """An update that never reached the weights; `reached` is the last stage that ended, or `"submitted"`."""

    layer: int
    task: Task
    reached: str


@dataclass(eq=False)
class Job:
    """A task under way."""

    task: Task
    step: int
    ready: float  # when its next stage could start
    reached: str = "submitted"

    @property
    def layer(self) -> int:
        return self.task.layer

    @property
    def through(self) -> bool:
        return self.reached == "up"


@dataclass
class Failure:
    """What went wrong, and whether the caller knows."""

    layer: int
    stage: str
    error: BaseException
    told: bool = False


@dataclass(eq=False)
class Engine:
    """Queues, jobs and worker threads."""

    layers: int
    policy: Policy
    link: Link
    cpu: Cpu
    slots: int | None
    record: bool
    on_start: Callable[[str], None] | None
    cond: threading.Condition = field(default_factory=threading.Condition)
    failure: Failure | None = None
    stopping: bool = False
    halted: bool = False  # nothing further is taken from a queue
    pid: int | None = None
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = Stopwatch(self.layers)
        self.threads: list[threading.Thread] = []
        self.running: dict[str, Job] = {}
        self.counts = [0] * self.layers  # tasks submitted, by layer
        self.rounds = 0
        self._arrivals = 0
        self.clear()

    def clear(self) -> None:
        """Forget all jobs."""
        self.jobs: list[deque[Job]] = [deque() for _ in range(self.layers)]
        self.queues: dict[str, list[tuple[int, int, int, int, Job]]] = {name: [] for name in STAGE_OF}
        self.submitted = self.downs = 0  # of the round
        self.staged = 0  # updates on the device that are not applied
        self.all_down = self.freed = -math.inf  # when the last gradient came down, when the last slot became free
        self.asked = False  # somebody waits for updates of the round

    # what the training thread does

    def submit(self, task: Task, at: float) -> Job:
        """Take a task in; it goes to the first queue unless one of its layer is still under way."""
        if not any(self.jobs):
            self.submitted = self.downs = 0
            self.asked = False
            self.rounds += 1
        job = Job(task, self.counts[task.layer], at)
        self.counts[task.layer] += 1
        self.submitted += 1
        before = self.jobs[task.layer]
        free = not before or before[-1].through
        before.append(job)
        if free:
            self.push("down", job)
        return job

    def push(self, resource: str, job: Job) -> None:
        """Queue a job: older steps first, then the layers that go latest first, then by arrival."""
        late = job.layer >= self.policy.latest_first(self.layers)
        self._arrivals += 1
        order = self._arrivals if late else job.layer
        heapq.heappush(self.queues[resource], (job.step, late, order, self._arrivals, job))

    def unapplied(self) -> list[Unapplied]:
        """What has not reached the weights, by layer."""
        return [Unapplied(job.layer, job.task, job.reached) for queue in self.jobs for job in queue]

    def drainable(self) -> Job | None:
        """With every slot taken: an update that is through, so that applying it makes room."""
        if self.slots is None or self.staged < self.slots:
            return None
        through = [queue[0] for queue in self.jobs if queue and queue[0].through]
        return min(through, key=lambda job: job.ready, default=None)

    def applied(self, job: Job) -> None:
        """The first job of its layer is done with."""
        self.jobs[job.layer].popleft()
        self.staged -= 1
        self.freed = time.perf_counter()

    # what workers do

    def can_take(self, resource: str) -> bool:
        """Whether a worker may take the first of its queue."""
        if self.failure is not None or self.halted or not self.queues[resource]:
            return False
        if resource == "cpu" and self.policy.kind == "zero":
            complete = self.asked or self.submitted >= self.layers
            return complete and self.downs == self.submitted
        return resource != "up" or self.slots is None or self.staged < self.slots

    def take(self, resource: str) -> Job:
        """The job that goes next."""
        job = heapq.heappop(self.queues[resource])[-1]
        self.running[resource] = job
        if resource == "up":
            self.staged += 1
            if self.slots is not None:
                job.ready = max(job.ready, self.freed)
        elif resource == "cpu" and self.policy.kind == "zero":
            job.ready = max(job.ready, self.all_down)
        return job

    def run(self, resource: str, job: Job) -> tuple[float, float]:
        """Do a stage; when it began and when it was through. The lock is free."""
        call = {"down": self.link.down, "cpu": self.cpu, "up": self.link.up}[resource]
        begun = time.perf_counter()
        return begun, float(call(job.task, job.ready))

    def passed(self, resource: str, job: Job, begun: float, end: float) -> None:
        """A stage is through: on to the next one."""
        stage = STAGE_OF[resource]
        self.running.pop(resource, None)
        job.reached, job.ready = stage, end
        if resource == "down":
            self.downs += 1
            self.all_down = end
        self.note(resource, stage, job, begun, end)
        if resource in _AFTER:
            self.push(_AFTER[resource], job)
            return
        waiting = [other for other in self.jobs[job.layer] if other.reached == "submitted"]
        if waiting:  # it shares the layer's buffer, which is free from now on
            waiting[0].ready = max(waiting[0].ready, end)
            self.push("down", waiting[0])

    def note(self, resource: str, stage: str, job: Job, begun: float, end: float) -> None:
        """Keep what is measured."""
        self.watch.add(stage, job.layer, end - begun)
        if self.record:
            self.events.append(Event(resource, stage, job.layer, job.step, begun, end))

    def fail(self, job: Job, stage: str, error: BaseException) -> None:
        """Note a failure: nothing further is taken from a queue. The first one counts."""
        self.running = {name: other for name, other in self.running.items() if other is not job}
        if self.failure is None:
            self.failure = Failure(job.layer, stage, error)

    def error(self) -> BaseException:
        """What to raise for the failure, in full only once."""
        failure = self.failure
        assert failure is not None
        where = f"{failure.stage} of layer {failure.layer}"
        if failure.told:
            rule, advice = "refuses work after a failure until reset()", "reset() returns what was not applied."
            return RuntimeError(message("Pipeline", rule, f"a call after that in {where}", advice))
        failure.told = True
        others = sorted({job.layer for job in self.unapplied()} - {failure.layer})
        if failure.stage == "apply":
            state = f"The weights of layer {failure.layer} may be changed in part"
        else:
            state = f"The weights of layer {failure.layer} are as they were"
        rest = f", and no update of layers {others} is applied" if others else ""
        got = f"{type(failure.error).__name__}({failure.error}) in {where}"
        advice = f"{state}{rest}: call reset(), which returns what was not applied."
        text = message("Pipeline", "every stage of a layer's update must succeed", got, advice)
        return OffloadError(text, failure.layer, failure.stage)

    def start(self) -> None:
        """Start the workers, once."""
        if self.threads:
            return
        self.pid = os.getpid()
        for resource in STAGE_OF:
            thread = threading.Thread(target=_work, args=(self, resource), name=f"edgeops-{resource}", daemon=True)
            self.threads.append(thread)
            thread.start()


def _work(engine: Engine, resource: str) -> None:
    """A worker thread."""
    problem: BaseException | None = None
    try:
        if engine.on_start is not None:
            engine.on_start(resource)
    except BaseException as error:
        problem = error  # told with the first task
    with torch.no_grad():
        while True:
            with engine.cond:
                engine.cond.wait_for(lambda: engine.stopping or engine.can_take(resource))
                if engine.stopping:
                    return
                job = engine.take(resource)
            try:
                if problem is not None:
                    raise problem
                begun, end = engine.run(resource, job)
            except BaseException as error:
                with engine.cond:
                    engine.fail(job, STAGE_OF[resource], error)
                    engine.cond.notify_all()
            else:
                with engine.cond:
                    engine.passed(resource, job, begun, end)
                    engine.cond.notify_all()
            del job


def stop(engine: Engine) -> None:
    """End the workers and wait for what they are doing."""
    if engine.pid != os.getpid():
        return  # a forked process has no workers
    with engine.cond:
        engine.stopping = True
        engine.cond.notify_all()
    for thread in engine.threads:
        if thread is not threading.current_thread():
            thread.join()


def abandon(engine: Engine) -> None:
    """End the workers of a pipeline that nobody holds any more, or at the end of the process."""
    stop(engine)
    left = sorted({job.layer for job in engine.unapplied()})
    if left and engine.pid == os.getpid():
        warnings.warn(
            f"Pipeline: dropped without close(); updates of layers {left} were not applied. Use it as a context.",
            ResourceWarning,
            stacklevel=2,
        )
