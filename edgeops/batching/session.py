# SPDX-License-Identifier: Apache-2.0
"""Sessions: programs of many instances are recorded, then run together. ED-Batch, section 2; ACRoBat's fibers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops._common.errors import describe, message
from edgeops.batching._classes import intern, value_class
from edgeops.batching._execute import Flush, extract
from edgeops.batching._runtime import runtime
from edgeops.batching._tables import Tables
from edgeops.batching.cell import LIST, NUMBER, TENSOR, VALUE
from edgeops.batching.coarse import coarsened
from edgeops.batching.marks import Marks
from edgeops.batching.plan_cache import PlanCache
from edgeops.batching.programs import drive
from edgeops.batching.report import Report
from edgeops.batching.schedule import SCHEDULERS, FSMPolicy, Graph, schedule

_WHO = "batching.session"
_KINDS = {VALUE: "", LIST: "list of ", TENSOR: "outside "}
_OPERANDS: dict[int, list[tuple[int, int]]] = {}  # by variant, which are numbered for as long as the process lives
_SIGNATURES: dict[int, str] = {}  # the same as text


class Session(Marks):
    """Records what cells are called with; runs it when a result is needed. See `session`."""

    def __init__(
        self,
        scheduler: str = "sufficient",
        *,
        policy: FSMPolicy | None = None,
        cache: PlanCache | None = None,
        coarsen: bool = False,
        depth: str = "data",
        forks: bool = True,
        hoist: bool = True,
        phases: bool = True,
        ghosts: bool = True,
        gather_mode: str = "auto",
        batch_invariant: bool = False,
        graphs: bool | str = "auto",
    ) -> None:
        self._runtime = runtime()
        self._recording = self._runtime.Recording()
        self._outside: list[Tensor] = []
        self._outside_classes: list[int] = []
        self._tables = Tables()
        self._token: Tensor | None = None
        self._failure: Exception | None = None
        self._names: dict[int, str] = {}
        self._former: list[Any] = []
        self._recording_since = 0.0  # inside of a `with` block: its begin, or the end of the last flush
        if scheduler not in SCHEDULERS:
            rule = f"scheduler must be one of {', '.join(SCHEDULERS)}"
            raise ValueError(message(_WHO, rule, repr(scheduler), "Pick one of them."))
        self.scheduler = scheduler
        self._options: dict[str, Any] = {} if policy is None else {"policy": policy}
        plan = schedule if cache is None else cache.schedule
        self._recording.merge_early(cache is None)  # graphs of equal structure are to stay equal
        self._schedule = coarsened(plan) if coarsen else plan
        self._keep_marks(depth, forks, hoist, phases, ghosts)
        if gather_mode not in ("auto", "index", "copy"):
            rule = "gather_mode must be one of auto, index, copy"
            raise ValueError(message(_WHO, rule, repr(gather_mode), "Pick one of them."))
        self._copies = gather_mode == "copy"
        self._alone = bool(batch_invariant)
        if graphs not in ("auto", True, False):
            rule = "graphs must be 'auto', True or False"
            raise ValueError(message(_WHO, rule, repr(graphs), "Pick one of them."))
        self._graphs = graphs
        self.report = Report()

    def __enter__(self) -> Session:
        if not self._former:
            self._recording_since = time.perf_counter()
        self._former.append(self._runtime.current())
        self._runtime.set_current(self, self._recording)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        former = self._former.pop()
        self._runtime.set_current(former, None if former is None else former._recording)
        if not self._former:
            self.report.record_s += time.perf_counter() - self._recording_since

    def _on_tensor(self, x: object) -> tuple[int, int]:
        """Class and index of a tensor operand."""
        if not isinstance(x, Tensor):
            rule, advice = "an operand must be a value, a tensor, an integer or a list of values", "Convert it."
            raise TypeError(message(_WHO, rule, describe(x), advice))
        self._outside.append(x)
        self._outside_classes.append(intern(x.dtype, x.device, tuple(x.shape)))
        return self._outside_classes[-1], len(self._outside) - 1

    def flush(self) -> None:
        """Run everything that is recorded and not run yet. Asking for a result does it by itself."""
        if self._failure is not None:
            rule, advice = "a session ends with the first failing cell", "Mend the cell, and record in a new session."
            raise RuntimeError(message(_WHO, rule, repr(self._failure), advice)) from self._failure
        recording = self._recording
        if recording.pending == 0:
            return
        begin = time.perf_counter()
        native, variants = recording.graph()
        bodies = {v: recording.cell(v) for v in variants}
        graph = Graph._of_native(native, self._keys(variants, bodies))
        plan = self._schedule(graph, self.scheduler, **self._options)
        placed = recording.place(plan.order, plan.start)
        scheduled = time.perf_counter()
        self._tables.reserve(placed["used"])
        ordered = [bodies[v] for v in placed["variants"]]
        programs = [bodies[v].program(v, self._signature(v)) for v in placed["variants"]]
        flush = Flush(
            self._tables,
            placed,
            ordered,
            programs,
            self._outside,
            self._outside_classes,
            copies=self._copies,
            alone=self._alone,
            graphs=self._graphs,
        )
        try:
            self._token = flush.run(self._token)
        except Exception as error:
            meant = _native.translate(error) if type(error) is RuntimeError else error
            self._failure = meant  # its results were never written: they must not be read
            if meant is error:
                raise
            raise meant from None
        indices = sum(placed[name].nbytes for name in ("rows", "numbers", "starts"))
        self.report.add_copies(flush.packed_bytes, flush.gathered_bytes, flush.begun_bytes, indices)
        self.report.add_flush(graph, flush.counts, _site(), scheduled - begin, scheduled)
        self.report.cache_hits += plan.graph is not graph
        if self._former:
            self.report.record_s += begin - self._recording_since
            self._recording_since = time.perf_counter()

    def _signature(self, variant: int) -> list[tuple[int, int]]:
        """Kind and class of every operand."""
        found = _OPERANDS.get(variant)
        if found is None:
            found = _OPERANDS[variant] = self._recording.signature(variant)
        return found

    def _keys(self, variants: Sequence[int], bodies: dict[int, Any]) -> tuple[bytes, ...]:
        """What kinds of calls are, whatever their numbers: learned policies of other processes know them by it."""
        for v in variants:
            if v not in self._names:
                name = _SIGNATURES.get(v)
                if name is None:
                    name = _SIGNATURES[v] = f"{bodies[v].name}({_told(self._signature(v))})"
                self._names[v] = f"{name} {sum(x.startswith(name) for x in self._names.values())}"
        return tuple(self._names[v].encode() for v in variants)

    def stack(self, values: Sequence[Any]) -> Tensor:
        """Values of one shape as a tensor `[n, ...]`, in their order; differentiable.

        Args:
            values: results of this session's cells, at least one.

        Raises:
            ValueError: none, of different shapes, or of another session.
        """
        values = list(values)
        if not values:
            raise ValueError(message(_WHO, "stack needs at least one value", "none", "Check what was collected."))
        self.flush()
        try:
            rows, number, makers = self._recording.locate(values, self)
        except ValueError as error:
            raise self._misfit(values, str(error)) from None
        return extract(self._tables, number, torch.from_numpy(rows), makers, self._token)

    def _misfit(self, values: Sequence[Any], told: str) -> ValueError:
        """The error for values that do not stand together; `told` by the runtime."""
        kind, at = told.split()
        if kind == "foreign":
            rule, advice = "stack takes values of this session", "Take tensors out of theirs with value.tensor()."
            return ValueError(message(_WHO, rule, f"{describe(values[int(at)])} at {at}", advice))
        shapes = " and ".join(str(value_class(values[i]._class).shape) for i in (0, int(at)))
        return ValueError(message(_WHO, "stacked values must have one shape and dtype", shapes, "Stack them apart."))

    def tensor(self, value: Any) -> Tensor:
        """One value as a tensor, without a leading dimension; differentiable."""
        return self.stack([value])[0]

    def sum(self, values: Sequence[Any]) -> Tensor:
        """The sum of values of one shape; differentiable."""
        return self.stack(values).sum(0)

    def run(self, programs: Iterable[Any]) -> list[Any]:
        """Advance programs that need results in between, all together: one flush a round.

        Args:
            programs: generators that yield a value (or a tuple of values) and are resumed with its tensor, or
                coroutines that `await` values. What they return is collected. `batching.gather` splits one. One that
                yields or awaits a phase (`phase`) goes on in it when no other can go on but into a phase.

        Returns:
            Their results, in order.

        Raises:
            TypeError: something that is no program.
        """
        return drive(programs, self._answers, self)

    def _answers(self, asked: list[Any]) -> list[Any]:
        """Tensors for all values of a round, in one piece a class: one flush, one gather."""
        flat = [v for wanted in asked for v in (wanted if isinstance(wanted, tuple) else (wanted,))]
        kinds: dict[Any, list[int]] = {}
        for at, v in enumerate(flat):
            if not isinstance(v, Tensor):
                kinds.setdefault(getattr(v, "_class", None), []).append(at)
        for places in kinds.values():
            for at, tensor in zip(places, self.stack([flat[at] for at in places]).unbind(), strict=True):
                flat[at] = tensor
        answers = iter(flat)
        return [
            tuple(next(answers) for _ in wanted) if isinstance(wanted, tuple) else next(answers) for wanted in asked
        ]


def _told(operands: Sequence[tuple[int, int]]) -> str:
    """Kinds and classes of operands as text."""
    return ", ".join(
        "integer" if kind == NUMBER else f"{_KINDS[kind]}{value_class(number)[0]}{value_class(number)[2]}"
        for kind, number in operands
    )


def _site() -> str:
    """Where the program outside of this package, and of PyTorch's modules that call into it, stands."""
    frame = sys._getframe(1)
    inside = ("edgeops.batching", "torch.")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(inside):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def session(
    scheduler: str = "sufficient",
    *,
    policy: FSMPolicy | None = None,
    cache: PlanCache | None = None,
    coarsen: bool = False,
    depth: str = "data",
    forks: bool = True,
    hoist: bool = True,
    phases: bool = True,
    ghosts: bool = True,
    gather_mode: str = "auto",
    batch_invariant: bool = False,
    graphs: bool | str = "auto",
) -> Session:
    """A session: cells called inside its `with` block are recorded, and run batched when a result is needed.

    Args:
        scheduler: name of a scheduler (`edgeops.batching.schedule`).
        policy: a learned policy, for the schedulers that use one.
        cache: plans of graphs seen before, of this session or others.
        coarsen: schedule calls that always follow one another as one (`coarsen`).
        depth: what the scheduler `"inline"` goes by. `"data"`: one more than the deepest operand. `"program"`, as
            ACRoBat's generated code counts: every call of a program takes the next step, what `each` loops over begins
            at one step, and a call that needs more by its operands takes that.
        forks: depth by program: loops of `each` inside of others begin at one step; otherwise only the outermost do.
        hoist: depth by program: kinds of calls that depend on nothing but such kinds and outside data keep one depth
            wherever they stand, and take no step.
        phases: whether `phase` counts; otherwise all is of one phase.
        ghosts: whether `ghost` and `balanced` count.
        gather_mode: how built-in cells read operands that stand in scattered rows. `"index"`: where they stand, through
            lists of row numbers; nothing is copied. `"copy"`: after copying them together, as DyNet does. `"auto"` is
            `"index"`, which was as fast or faster wherever it was measured.
        batch_invariant: results of an instance have the same bits whatever runs beside it. Built-in cells always do
            this; cells of other functions then run call by call, which is slow.
        graphs: on a GPU, whether batches of built-in cells run as CUDA graphs, one for each kind and size (1, 2, 4, 8,
            ...): `"auto"` from the second batch of a size on, `True` from the first, `False` never.

    Raises:
        ValueError: no such scheduler, no such way to count depth, no such gather mode, no such choice of graphs.

    >>> from edgeops import batching
    >>> double, add = batching.cell(lambda x: 2 * x), batching.cell(torch.add)
    >>> with batching.session() as s:
    ...     doubled = [double(torch.ones(2)) for _ in range(3)]
    ...     total = add(doubled[0], doubled[1])
    >>> s.tensor(total)
    tensor([4., 4.])
    >>> s.report.batches
    2
    """
    return Session(
        scheduler,
        policy=policy,
        cache=cache,
        coarsen=coarsen,
        depth=depth,
        forks=forks,
        hoist=hoist,
        phases=phases,
        ghosts=ghosts,
        gather_mode=gather_mode,
        batch_invariant=batch_invariant,
        graphs=graphs,
    )
