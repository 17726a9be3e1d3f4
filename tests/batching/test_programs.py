# SPDX-License-Identifier: Apache-2.0
"""Programs that wait for results: rounds, splitting, the same inside and outside of sessions, errors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeops import batching
from edgeops.batching import gather, wait

half = batching.cell(lambda x: x / 2)
add = batching.cell(torch.add)
BOTH = pytest.mark.parametrize("context", [batching.session, nullcontext], ids=["session", "eager"])


async def halvings(x: Any) -> int:
    steps = 0
    while (await wait(x)).item() > 1:
        x, steps = half(x), steps + 1
    return steps


def in_turn(x: Any) -> Any:
    """The same as a generator, with a generator inside."""

    def once(x: Any) -> Any:
        return (yield x).item() > 1

    steps = 0
    while (yield from once(x)):
        x, steps = half(x), steps + 1
    return steps


def tensors(*values: float) -> list[Tensor]:
    return [torch.tensor(v) for v in values]


@BOTH
@pytest.mark.parametrize("program", [halvings, in_turn])
def test_programs_run_in_sessions_and_outside(context: Any, program: Any) -> None:
    with context():
        assert batching.run(program(x) for x in tensors(8, 3, 1)) == [3, 2, 0]


def test_one_flush_a_round() -> None:
    with batching.session() as s:
        batching.run(halvings(x) for x in tensors(64, 50, 3, 1))
    assert s.report.flushes == s.report.batches == 6


@BOTH
def test_branches_go_on_together(context: AbstractContextManager[Any]) -> None:
    async def both(x: Tensor, y: Tensor) -> list[Any]:
        none = await gather()
        nested = await gather(halvings(x), gather(halvings(y), halvings(x)))
        return [*none, *nested]

    def generator(x: Tensor) -> Any:
        return (yield from gather(halvings(x), in_turn(half(x))))

    with context() as s:  # type: ignore[operator]
        found = batching.run([both(*tensors(8, 4)), generator(torch.tensor(16.0)), both(*tensors(1, 2))])
    assert found == [[3, [2, 3]], [4, 3], [0, [1, 0]]]
    if s is not None:
        assert s.report.flushes == 5


@BOTH
def test_several_values_at_once(context: Any) -> None:
    """Of different shapes, a tensor among them, one twice; gradients reach them."""
    x, y = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)

    async def program() -> Any:
        a, b = half(x), half(y)
        a1, b1, x1, a2 = await wait(a, b, x, a)
        assert x1 is x
        return (a1 * a2).sum() * b1

    with context():
        results = batching.run([program(), program()])
    gx, gy = torch.autograd.grad(sum(results), (x, y))
    assert gx.tolist() == [1.5, 3.0]
    assert gy.item() == 1.25


def test_await_of_values_and_stack() -> None:
    async def program(x: Tensor) -> Tensor:
        return await half(x) + 1  # type: ignore[no-any-return]

    with batching.session() as s:
        assert [r.item() for r in s.run(program(x) for x in tensors(2, 4))] == [2.0, 3.0]
        assert batching.stack([half(x) for x in tensors(2, 4)]).tolist() == [1.0, 2.0]
    assert batching.stack([half(x) for x in tensors(2, 4)]).tolist() == [1.0, 2.0]
    assert batching.run([]) == []


def test_an_error_ends_all_programs() -> None:
    ended = []

    async def waiting(name: str) -> None:
        try:
            await wait(half(torch.tensor(1.0)))
            await wait(half(torch.tensor(1.0)))
        finally:
            ended.append(name)

    async def failing() -> None:
        await wait(half(torch.tensor(1.0)))
        raise KeyError("mine")

    async def outer() -> None:
        try:
            await gather(waiting("inner"), failing())
        finally:
            ended.append("outer")

    with batching.session(), pytest.raises(KeyError, match="mine"):
        batching.run([waiting("first"), outer(), waiting("never begun")])
    assert sorted(ended) == ["first", "inner", "never begun", "outer"]
    assert half(torch.tensor(2.0)).item() == 1.0


@BOTH
@pytest.mark.parametrize("wrong", [3, halvings, None])
def test_what_is_no_program_is_refused(context: Any, wrong: Any) -> None:
    async def outer() -> None:
        await gather(wrong)

    for programs in ([halvings(torch.tensor(1.0)), wrong], [outer()]):
        with context(), pytest.raises(TypeError, match=r"programs must be generators or coroutines; got .*Call the"):
            batching.run(programs)


def test_values_of_other_sessions_are_refused() -> None:
    with batching.session():
        foreign = half(torch.tensor(1.0))

    async def program(wanted: Any) -> None:
        await wait(wanted)

    for wanted in (foreign, "x"):
        with batching.session() as s, pytest.raises(ValueError, match="stack takes values of this session"):
            s.run([program(wanted)])
