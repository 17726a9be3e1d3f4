# SPDX-License-Identifier: Apache-2.0
"""The runtime of offloaded training: every layer's update travels while other layers compute. LSP-Offload, section 4.

Gradients are handed over in the backward and updates taken back before the next forward, layer by layer. In between,
three worker threads (link down, CPU, link up) serve their queues by a policy. There is no staleness: a layer's forward
waits for that layer's own update, so results are those of the serial loop, bit for bit, whatever the policy.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

import torch

from edgeops._common import describe, message
from edgeops.offload._engine import STAGE_OF, Cpu, Engine, Job, OffloadError, Unapplied, abandon, stop
from edgeops.offload._runtime import runtime
from edgeops.offload.links import Link, MemoryLink, Task
from edgeops.offload.schedule import STAGES, Policy, Profile
from edgeops.offload.simulate import choose
from edgeops.offload.trace import Event

__all__ = ["OffloadError", "Pipeline", "Unapplied"]

_AUTO_ROUNDS = 3  # steps that "auto" watches before it chooses
_UNCERTAINTY = 0.05  # of what it measures meanwhile


def _run_update(task: Task, ready: float) -> float:
    task.update()
    return time.perf_counter()


class Pipeline:
    """Carries the compressed gradients of layers to the CPU and their updates back.

    Call `submit(task)` when a layer's gradient is there, `wait(layer)` before the layer's next forward, and `finish()`
    before anything else looks at the weights (evaluation, `state_dict`, the end). `submit`, `wait` and `finish` belong
    to one training thread (or several that never call at the same time, as the threads of autograd do).

    Args:
        layers: how many; tasks name theirs by 0 to `layers - 1`, in the order of the forward.
        policy: a `Policy` or its name, `"serial"` to run everything in the calling thread, or `"auto"`: FCFS for the
            first steps, which are measured, then what the simulator finds best. All give the same bits but
            `"delayed"`, which is one step stale. `"native"` sends nothing and has no pipeline.
        link: what copies; by default `MemoryLink()`.
        cpu: what runs `task.update`, as `cpu(task, ready) -> when it was through`; by default it is just called.
        slots: how many updates may lie on the device at once, waiting to be applied; `None`: one a layer. With fewer,
            a wait may apply updates of other layers first to make room.
        record: keep `events`.
        on_start: called in each worker thread as it starts, with `"down"`, `"cpu"` or `"up"`; the place to set the
            affinity of the thread.

    Raises:
        ValueError: no layer, an unknown policy, `slots` below 1 or with `"delayed"`.
        ImportError: `"auto"` without the native runtime.

    >>> class Halve:
    ...     layer, down_bytes, up_bytes, weight = 0, 4, 4, 8.0
    ...     def down(self): self.on_host = 2.0
    ...     def update(self): self.on_host /= 2
    ...     def up(self): self.delta = self.on_host
    ...     def apply(self): self.weight -= self.delta
    >>> task = Halve()
    >>> with Pipeline(1) as pipeline:
    ...     pipeline.submit(task)
    ...     through = pipeline.wait(0)
    >>> task.weight
    7.0
    """

    def __init__(
        self,
        layers: int,
        policy: str | Policy = "auto",
        *,
        link: Link | None = None,
        cpu: Cpu | None = None,
        slots: int | None = None,
        record: bool = False,
        on_start: Callable[[str], None] | None = None,
    ) -> None:
        if not isinstance(layers, int) or layers < 1:
            raise ValueError(message("Pipeline", "layers must be an integer of 1 or more", describe(layers), "Count."))
        self._auto = policy == "auto"
        chosen = Policy("fcfs") if self._auto else Policy.parse(policy)
        if self._auto:
            runtime()
        if chosen.kind == "native":
            rule, advice = "policy must send something", "Update where you compute, without a pipeline."
            raise ValueError(message("Pipeline", rule, "'native'", advice))
        if slots is not None and (slots < 1 or chosen.stale):
            rule, advice = "slots must be 1 or more, and None with 'delayed'", "Leave slots out."
            raise ValueError(message("Pipeline", rule, f"slots={slots} with {chosen}", advice))
        self.layers = layers
        self.link: Link = MemoryLink() if link is None else link
        self._engine = Engine(layers, chosen, self.link, _run_update if cpu is None else cpu, slots, record, on_start)
        self._closed = False
        self._caller = threading.RLock()
        self._finalizer = weakref.finalize(self, abandon, self._engine)

    # what a training loop calls

    def submit(self, task: Task, *, at: float | None = None) -> None:
        """Hand over a layer's gradient; returns at once (with `"serial"`, when it has been up and down).

        Args:
            task: of a layer without another one under way (with `"delayed"`: with at most one).
            at: when the gradient was there, by `time.perf_counter`; now by default.

        Raises:
            OffloadError: a stage failed; told once.
            RuntimeError: closed, forked, or not `reset` after a failure.
            ValueError: a layer outside of 0 to `layers - 1`, or with an update that nobody has waited for.
        """
        engine, now = self._engine, time.perf_counter()
        with self._entered("submit"):
            layer = self._layer(task.layer, "submit")
            self._choose()
            if len(engine.jobs[layer]) > engine.policy.stale:
                rule = "a layer's update must be waited for before its next gradient comes"
                advice = "Call wait(layer) before the forward; accumulate micro-batches before submitting."
                raise ValueError(message("Pipeline.submit", rule, f"another one of layer {layer}", advice))
            engine.watch.arrived("submit", layer, now)
            self.link.submitted(task)
            job = engine.submit(task, now if at is None else at)
            if engine.policy.kind != "serial":
                engine.start()
                engine.cond.notify_all()
            if engine.policy.kind == "serial":
                self._inline(job)
            engine.watch.left("submit", layer, time.perf_counter())

    def wait(self, layer: int) -> float | None:
        """Return when the layer's update is in its weights, and apply it here if it was not yet.

        Returns:
            When the update was through, before it was applied, by `time.perf_counter`; `None` where none was waiting.

        Raises:
            OffloadError: a stage failed; told once.
            RuntimeError: closed, forked, or not `reset` after a failure.
            ValueError: a layer outside of 0 to `layers - 1`.
        """
        engine = self._engine
        with self._entered("wait"):
            layer = self._layer(layer, "wait")
            engine.watch.arrived("wait", layer, time.perf_counter())
            through = self._take_back(layer, engine.policy.stale)
            engine.watch.left("wait", layer, time.perf_counter())
            return through

    def finish(self) -> None:
        """Return when all updates are in the weights.

        Raises:
            OffloadError: a stage failed; told once.
            RuntimeError: closed, forked, or not `reset` after a failure.
        """
        engine = self._engine
        with self._entered("finish"):
            engine.watch.pause()
            for layer in range(self.layers):
                self._take_back(layer, 0)

    def reset(self) -> list[Unapplied]:
        """Make the pipeline usable again after a failure (or drop what is under way) and say what was dropped.

        Waits for what workers are doing. Returns the updates that never reached the weights, with the last stage that
        ended: one that reached `"up"` can still be applied, one `"submitted"` be submitted again.

        Raises:
            RuntimeError: closed or forked.
        """
        engine = self._engine
        with self._entered("reset", failed=True):
            engine.halted = True
            engine.cond.wait_for(lambda: not engine.running)
            left = engine.unapplied()
            engine.clear()
            engine.failure, engine.halted = None, False
            engine.watch.pause()
        return left

    def close(self) -> None:
        """Finish and end the workers; nothing happens the second time.

        Raises:
            OffloadError: a stage failed and nobody has been told.
        """
        if self._closed:
            return
        try:
            failure = self._engine.failure
            if self._engine.pid in (None, os.getpid()) and (failure is None or not failure.told):
                self.finish()
        finally:
            self._end()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        # an exception is under way: no further weight is touched
        left = sorted({job.layer for job in self._engine.unapplied()})
        self._end()
        if left:
            warnings.warn(
                f"Pipeline: left by an exception; updates of layers {left} were not applied. Call finish() in time, or "
                "go on from a checkpoint.",
                RuntimeWarning,
                stacklevel=2,
            )

    # what one may ask

    @property
    def policy(self) -> Policy:
        """The policy in use; with `"auto"`, FCFS until one is chosen."""
        return self._engine.policy

    @property
    def pending(self) -> tuple[int, ...]:
        """Layers with updates that are not in the weights yet."""
        with self._engine.cond:
            return tuple(layer for layer, queue in enumerate(self._engine.jobs) if queue)

    @property
    def events(self) -> tuple[Event, ...]:
        """What ran when, with `record=True`: down, update, up and apply. Seconds of `time.perf_counter`."""
        with self._engine.cond:
            return tuple(self._engine.events)

    def mark(self, stage: str, layer: int, start: float, end: float) -> None:
        """Add a stage that the pipeline does not see, such as `"forward"`, to `events`.

        Raises:
            ValueError: no such stage or layer.
        """
        if stage not in STAGES:
            rule = f"stage must be one of {', '.join(STAGES)}"
            raise ValueError(message("Pipeline.mark", rule, repr(stage), "Pick one."))
        engine = self._engine
        with engine.cond:
            layer = self._layer(layer, "mark")
            if engine.record:
                engine.events.append(Event("compute", stage, layer, max(engine.counts[layer] - 1, 0), start, end))

    def profile(self) -> Profile | None:
        """Durations as measured, medians of the last steps, for `simulate` and `choose`; `None` before a whole step.

        Forward and backward are the time between calls of the training thread. On a GPU, where these return before the
        work is done, pass a profile of the device to `choose` instead of using `"auto"`.
        """
        with self._engine.cond:
            return self._engine.watch.profile()

    # how it works: `_caller`, then the engine's lock are held

    def _end(self) -> None:
        self._closed = True
        self._finalizer.detach()
        stop(self._engine)

    @contextmanager
    def _entered(self, call: str, failed: bool = False) -> Iterator[None]:
        """Hold both locks, unless the pipeline cannot be used."""
        engine = self._engine
        if self._closed:
            raise RuntimeError(message(f"Pipeline.{call}", "needs an open pipeline", "a closed one", "Make another."))
        if engine.pid not in (None, os.getpid()):
            rule, advice = "belongs to the process that used it first", "Make one in each process."
            raise RuntimeError(message(f"Pipeline.{call}", rule, "a call in a forked one", advice))
        with self._caller, engine.cond:
            if engine.failure is not None and not failed:
                self._raise_failure()
            yield

    def _raise_failure(self) -> NoReturn:
        failure = self._engine.failure
        error = self._engine.error()
        raise error from (failure.error if isinstance(error, OffloadError) and failure is not None else None)

    def _layer(self, layer: int, call: str) -> int:
        if not isinstance(layer, int) or not 0 <= layer < self.layers:
            rule = f"layer must be an integer from 0 to {self.layers - 1}"
            raise ValueError(message(f"Pipeline.{call}", rule, describe(layer), "Count layers in forward order."))
        return layer

    def _choose(self) -> None:
        """With "auto": choose a policy at the first gradient of a step, once there is something to choose by."""
        engine = self._engine
        if not self._auto or engine.rounds < _AUTO_ROUNDS or any(engine.jobs):
            return
        self._auto = False
        measured = engine.watch.profile()
        if measured is not None:
            engine.policy = choose(measured, uncertainty=_UNCERTAINTY, slots=engine.slots)

    def _inline(self, job: Job) -> None:
        """All stages in this thread."""
        engine = self._engine
        for resource, stage in STAGE_OF.items():
            engine.take(resource)
            try:
                with self._unlocked(), torch.no_grad():
                    begun, end = engine.run(resource, job)
                engine.passed(resource, job, begun, end)
            except BaseException as error:
                self._failed(job, stage, error)

    @contextmanager
    def _unlocked(self) -> Iterator[None]:
        """Let workers go on meanwhile."""
        self._engine.cond.release()
        try:
            yield
        finally:
            interrupt = None
            while True:
                try:
                    self._engine.cond.acquire()
                    break
                except KeyboardInterrupt as error:
                    interrupt = error  # told when the lock is back
            if interrupt is not None:
                raise interrupt

    def _failed(self, job: Job, stage: str, error: BaseException) -> NoReturn:
        """Note a failure in this thread and raise it; an interrupt stays one."""
        engine = self._engine
        engine.fail(job, stage, error)
        raised = engine.error()
        if isinstance(error, Exception):
            raise raised from error
        raise error

    def _take_back(self, layer: int, keep: int) -> float | None:
        """Apply the layer's updates until `keep` of them are left."""
        engine, through = self._engine, None
        engine.asked = True
        engine.cond.notify_all()
        queue = engine.jobs[layer]
        while len(queue) > keep:
            job = queue[0]
            first = self._block(job)
            if first is job:
                through = job.ready
                if engine.policy.kind == "zero":
                    through = max(other.ready for others in engine.jobs for other in others)
            self._apply(first)
        return through

    def _block(self, job: Job) -> Job:
        """Wait until the job can be applied, or another one must be to make room."""
        engine = self._engine
        whole = engine.policy.kind == "zero"
        while True:
            if engine.failure is not None:
                self._raise_failure()
            behind = whole and any(not other.through for queue in engine.jobs for other in queue)
            if job.through and not behind:
                return job
            other = engine.drainable()
            if other is not None:
                return other
            engine.cond.wait()

    def _apply(self, job: Job) -> None:
        engine = self._engine
        begun = time.perf_counter()
        try:
            with self._unlocked(), torch.no_grad():
                self.link.before_apply(job.task)
                job.task.apply()
            engine.note("compute", "apply", job, begun, time.perf_counter())
            engine.applied(job)
            engine.cond.notify_all()
        except BaseException as error:
            self._failed(job, "apply", error)

    def __reduce__(self) -> NoReturn:
        rule, advice = "holds threads and cannot be copied or pickled", "Save what its tasks update, and make another."
        raise TypeError(message("Pipeline", rule, "an attempt to do so", advice))
