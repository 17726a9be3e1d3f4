# SPDX-License-Identifier: Apache-2.0
"""What a program says about its own structure: phases, independent parts, ghost steps. ACRoBat, inline depth.

The functions work on the running session and do nothing outside of one, so that a program runs eagerly as it is.
Phases matter to every scheduler. The rest matters to sessions that count depth by program (`depth="program"`) alone:
depth by data needs no help.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, TypeVar

from edgeops._common.errors import describe, message
from edgeops.batching._runtime import runtime

T = TypeVar("T")
DEPTHS = ("data", "program")
_MOST_STEPS = 2**30  # depths are 32-bit
_FIRST = "(first)"  # name of the phase outside of all phases


class Phase:
    """A stage of programs: `with` it calls are of that stage, `await` it (or yield it) to begin it with all others.

    See `Session.phase`.
    """

    def __init__(self, marks: Marks | None, number: int, name: str) -> None:
        self._marks = marks  # None: no phases are kept
        self._number = number
        self.name = name

    def __enter__(self) -> Phase:
        marks = self._marks
        if marks is not None:
            marks._outer.append(marks._recording.enter_phase(self._number))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        marks = self._marks
        if marks is not None:
            marks._recording.leave_phase(marks._outer.pop())

    def __await__(self) -> Generator[Phase, Any, None]:
        yield self

    def __repr__(self) -> str:
        return f"Phase({self.name!r})"


class Place:
    """Where a program that waits stands: its phase, and what those around it were left with."""

    __slots__ = ("outer", "phase")

    def __init__(self, phase: int) -> None:
        self.phase = phase
        self.outer: list[int] = []


class Marks:
    """The part of a session that marks belong to."""

    _recording: Any

    def _keep_marks(self, depth: str, forks: bool, hoist: bool, phases: bool, ghosts: bool) -> None:
        if depth not in DEPTHS:
            rule = f"depth must be one of {', '.join(DEPTHS)}"
            raise ValueError(message("batching.session", rule, describe(depth), "Pick one of them."))
        self._by_program = depth == "program"
        self._recording.keep_depths(self._by_program, hoist)
        self._phases: dict[str, int] | None = {} if phases else None
        self._forks = forks
        self._ghosts = ghosts
        self._open = 0  # loops of `each` around the current call
        self._outer: list[int] = []  # what the phases around the current one were left with

    def _resume(self, program: Any, sent: Any, place: Place) -> Any:
        """Run a program from where it waits to where it waits again; returns what for."""
        recording = self._recording
        outer, phase = self._outer, recording.phase
        self._outer = place.outer
        if place.phase != phase:
            recording.phase = place.phase
        try:
            wanted = program.send(sent)
            while isinstance(wanted, Phase) and wanted._marks is None:
                wanted = program.send(None)
        finally:
            place.phase = recording.phase
            if place.phase != phase:
                recording.phase = phase
            self._outer = outer
        if isinstance(wanted, Phase) and wanted._marks is not self:
            rule, advice = "a program must wait at phases of its own session", "Use batching.phase(name) inside of it."
            raise ValueError(message("batching.session", rule, f"{wanted!r} of another", advice))
        return wanted

    def _on_later_phase(self, late: int) -> None:
        """Called by the runtime for a call that reads what a later phase makes."""
        names = [_FIRST, *(self._phases or ())]
        rule = "a call must not read what a later phase makes"
        got = f"a result of phase {names[late]} in phase {names[self._recording.phase]}"
        raise ValueError(message("batching.session", rule, got, "Call it in that phase or a later one, or flush."))

    def phase(self, name: str) -> Phase:
        """A stage of the session's programs: everything of a phase runs after everything of the phases before it.

        Calls outside of all phases come first, then the phases in the order in which their names came up; to fix the
        order, name them before the programs begin. `with` may go back and forth within a program, also in its midst
        (the loss at every node of a tree): what counts is the phase of each call. A call must not read what a later
        phase makes, unless that has been flushed. Phases restrict schedulers: give one to what is best run once for
        all instances, such as outputs after a recurrence.

        In programs of `run`, `await s.phase(name)` (or a yield) waits until no program can go on but into a phase.

        Args:
            name: any text, the same for the same phase.

        Raises:
            TypeError: the name is no text.

        >>> import torch
        >>> from edgeops import batching
        >>> step, out = batching.cell(lambda h: h + 1), batching.cell(lambda h: 2 * h)
        >>> with batching.session("depth") as s:
        ...     h, outs = torch.zeros(2), []
        ...     for _ in range(3):
        ...         h = step(h)
        ...         with s.phase("output"):
        ...             outs.append(out(h))
        >>> s.stack(outs)[:, 0].tolist(), s.report.batches
        ([2.0, 4.0, 6.0], 4)
        """
        if not isinstance(name, str):
            rule, advice = "the name of a phase must be text", 'Use e.g. phase("output").'
            raise TypeError(message("batching.phase", rule, describe(name), advice))
        if self._phases is None:
            return Phase(None, 0, name)
        return Phase(self, self._phases.setdefault(name, len(self._phases) + 1), name)

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """`items`, each handled by a part of the program that does not need the others: all begin at one depth.

        What comes after the loop begins after the deepest. Use it for the instances of a mini-batch and for
        independent parts of one, such as the children of a tree. With depth by data it is a plain loop.

        >>> import torch
        >>> from edgeops import batching
        >>> step = batching.cell(lambda x: x + 1)
        >>> with batching.session("inline", depth="program", hoist=False) as s:
        ...     for x in s.each(torch.zeros(3, 2)):
        ...         y = step(step(x))
        >>> s.flush()
        >>> s.report.batches
        2
        """
        recording = self._recording
        if not self._by_program or (self._open and not self._forks):
            yield from items
            return
        flushed, start, deepest = recording.flushed, recording.step, 0
        self._open += 1
        try:
            for item in items:
                recording.step = start
                yield item
                if recording.flushed != flushed:  # all has run: depths begin again
                    flushed, start, deepest = recording.flushed, 0, 0
                deepest = max(deepest, recording.step)
        finally:
            self._open -= 1
            recording.step = max(deepest, recording.step)

    def ghost(self, steps: int = 1) -> None:
        """Go down so many steps without a call, to end level with a longer arm of a branch.

        Args:
            steps: from 0.

        Raises:
            TypeError, ValueError: a number of steps that is none, or too many.

        >>> import torch
        >>> from edgeops import batching
        >>> step, other = batching.cell(lambda x: x + 1), batching.cell(lambda x: x * 2)
        >>> with batching.session("inline", depth="program", hoist=False) as s:
        ...     for row in s.each(range(4)):
        ...         x = step(torch.zeros(2))
        ...         if row % 2:
        ...             x = other(x)
        ...         else:
        ...             s.ghost()
        ...         x = step(x)
        >>> s.flush()
        >>> s.report.batches
        3
        """
        recording = self._recording
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise TypeError(
                message("batching.ghost", "steps must be an integer", describe(steps), "Give e.g. ghost(1).")
            )
        if not 0 <= steps <= _MOST_STEPS - recording.step:
            rule = f"steps must lie in 0..{_MOST_STEPS - recording.step}"
            raise ValueError(
                message("batching.ghost", rule, str(steps), "Give the calls that the longer arm has more.")
            )
        if self._ghosts:
            recording.step += steps

    @contextmanager
    def balanced(self, steps: int) -> Iterator[None]:
        """What is inside takes `steps` steps at least: put it around a branch, with the calls of its longest arm.

        Raises:
            TypeError, ValueError: as `ghost`.

        >>> import torch
        >>> from edgeops import batching
        >>> step, other = batching.cell(lambda x: x + 1), batching.cell(lambda x: x * 2)
        >>> with batching.session("inline", depth="program", hoist=False) as s:
        ...     for row in s.each(range(4)):
        ...         x = step(torch.zeros(2))
        ...         with s.balanced(1):
        ...             if row % 2:
        ...                 x = other(x)
        ...         x = step(x)
        >>> s.flush()
        >>> s.report.batches
        3
        """
        recording = self._recording
        start, flushed = recording.step, recording.flushed
        self.ghost(steps)
        end = recording.step
        recording.step = start
        yield
        if recording.flushed == flushed:
            recording.step = max(recording.step, end)


def _running() -> Marks | None:
    session: Marks | None = runtime().current()
    return session


def phase(name: str) -> Phase:
    """`Session.phase` of the running session; no phase outside of one.

    >>> with phase("output") as p:
    ...     p
    Phase('output')
    """
    session = _running()
    return Phase(None, 0, name) if session is None else session.phase(name)


def each(items: Iterable[T]) -> Iterator[T]:
    """`Session.each` of the running session; the plain items outside of one.

    >>> list(each([1, 2]))
    [1, 2]
    """
    session = _running()
    return iter(items) if session is None else session.each(items)


def ghost(steps: int = 1) -> None:
    """`Session.ghost` of the running session; nothing outside of one.

    >>> ghost(2)
    """
    session = _running()
    if session is not None:
        session.ghost(steps)


def balanced(steps: int) -> AbstractContextManager[None]:
    """`Session.balanced` of the running session; nothing outside of one.

    >>> with balanced(2):
    ...     pass
    """
    session = _running()
    return nullcontext() if session is None else session.balanced(steps)
