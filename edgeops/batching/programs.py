# SPDX-License-Identifier: Apache-2.0
"""Programs that look at their own results, advanced together: ACRoBat's fibers as coroutines. ACRoBat, section 6.6.

A program that needs a tensor's value says so and stops; when all programs have stopped, what they have recorded runs at
once, and all go on. A program may split into several that go on at the same time (`gather`).
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgeops._common.errors import describe, message
from edgeops.batching._runtime import runtime
from edgeops.batching.marks import Marks, Phase, Place


class _Fork(NamedTuple):
    programs: tuple[Any, ...]


@types.coroutine
def wait(*values: Any) -> Generator[Any, Any, Any]:
    """`await wait(value)` in a program: the value as a tensor, a tuple of tensors for several.

    A generator writes `yield value` or `yield from wait(value)`. Outside of sessions, where cells give tensors at once,
    the same program runs unchanged.

    >>> from edgeops import batching
    >>> half = batching.cell(lambda x: x / 2)
    >>> async def halvings(x):
    ...     steps = 0
    ...     while (await wait(x)).item() > 1:
    ...         x, steps = half(x), steps + 1
    ...     return steps
    >>> with batching.session() as s:
    ...     s.run(halvings(torch.tensor(x)) for x in (8.0, 3.0, 1.0))
    [3, 2, 0]
    >>> batching.run(halvings(torch.tensor(x)) for x in (8.0, 3.0, 1.0))
    [3, 2, 0]
    """
    return (yield values[0] if len(values) == 1 else values)


@types.coroutine
def gather(*programs: Any) -> Generator[Any, Any, list[Any]]:
    """`await gather(a, b)` in a program: go on as several programs at the same time, until all have ended.

    What they need is answered in the same rounds as that of all other programs, so two branches of one instance that
    look at results do not wait for one another.

    Returns:
        What the programs return, in their order.
    """
    results: list[Any] = yield _Fork(programs)
    return results


class _Program:
    """A running program, its place among those that its parent waits for, and what it waits for itself."""

    __slots__ = ("body", "mark", "missing", "parent", "place", "results", "sent")

    def __init__(self, body: Any, parent: _Program | None, place: int, phase: int) -> None:
        self.body = body
        self.mark = Place(phase)
        self.parent = parent
        self.place = place
        self.sent: Any = None
        self.results: list[Any] = []
        self.missing = 0

    def fork(self, bodies: Sequence[Any]) -> list[_Program]:
        for body in bodies:
            if not hasattr(body, "send"):
                rule, advice = "programs must be generators or coroutines", "Call the function that has the `yield`."
                raise TypeError(message("batching.run", rule, describe(body), advice))
        self.missing, self.results = len(bodies), [None] * len(bodies)
        return [_Program(body, self, place, self.mark.phase) for place, body in enumerate(bodies)]

    def end(self, result: Any) -> _Program | None:
        """Hand a result to the parent. Returns the parent when it can go on."""
        assert self.parent is not None
        self.parent.results[self.place] = result
        self.parent.missing -= 1
        self.parent.sent = self.parent.results
        return self.parent if self.parent.missing == 0 and self.parent.body is not None else None


def _resume(program: _Program, marks: Marks | None) -> Any:
    """Run a program to where it waits again; returns what for."""
    if marks is not None:
        return marks._resume(program.body, program.sent, program.mark)
    asked = program.body.send(program.sent)
    while isinstance(asked, Phase):
        asked = program.body.send(None)
    return asked


def _taken(ready: deque[_Program]) -> Iterator[_Program]:
    while ready:
        yield ready.popleft()


def _same(programs: Iterator[_Program]) -> Iterator[_Program]:
    return programs


def drive(programs: Iterable[Any], answer: Callable[[list[Any]], list[Any]], marks: Marks | None = None) -> list[Any]:
    """Run programs to their ends; `answer` gives the tensors for all values that are asked for in a round.

    `marks` is the session, which keeps depths and phases. An error in a program ends all of them.
    """
    root = _Program(None, None, 0, 0 if marks is None else marks._recording.phase)
    branches = _same if marks is None or not marks._by_program else marks.each
    bodies = list(programs)
    begun: dict[int, Any] = {id(body): body for body in bodies}
    asking: list[tuple[_Program, Any]] = []
    held: list[tuple[int, _Program]] = []  # programs that wait for a phase
    try:
        ready = deque(root.fork(bodies))
        while ready:
            for program in branches(_taken(ready)):
                try:
                    asked = _resume(program, marks)
                except StopIteration as stop:
                    del begun[id(program.body)]
                    if (parent := program.end(stop.value)) is not None:
                        ready.append(parent)
                    continue
                program.sent = None
                if isinstance(asked, _Fork):
                    begun.update((id(body), body) for body in asked.programs)
                    program.sent = []
                    ready.extend(program.fork(asked.programs) or [program])
                elif isinstance(asked, Phase):
                    held.append((asked._number, program))
                else:
                    asking.append((program, asked))
            if asking:
                for (each, _), tensors in zip(asking, answer([wanted for _, wanted in asking]), strict=True):
                    each.sent = tensors
                    ready.append(each)
                asking = []
            elif held:
                first = min(number for number, _ in held)
                ready.extend(program for number, program in held if number == first)
                held = [(number, program) for number, program in held if number != first]
                for program in ready:
                    program.mark.phase = first
    finally:
        for body in reversed(begun.values()):
            if hasattr(body, "close"):
                body.close()
    return root.results


def run(programs: Iterable[Any]) -> list[Any]:
    """Run programs: batched in the current session (`Session.run`), or at once where there is none.

    Args:
        programs: coroutines that `await wait(value)`, or generators that yield a value or a tuple of values and are
            resumed with tensors. What they return is collected.

    Returns:
        Their results, in order.

    Raises:
        TypeError: something that is no program.
    """
    session = current()
    return drive(programs, lambda asked: asked) if session is None else session.run(programs)


def stack(values: Sequence[Any]) -> Tensor:
    """`Session.stack` of the current session, or `torch.stack` of the tensors that cells give outside of sessions."""
    session = current()
    return torch.stack(list(values)) if session is None else session.stack(values)


def current() -> Any:
    """The session whose `with` block this is, or `None`."""
    return runtime().current()
