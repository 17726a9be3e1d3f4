# SPDX-License-Identifier: Apache-2.0
"""Recurrences whose products with x run for all steps at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeops import batching
from edgeops.batching.cells import GRU, LSTM, Embedding

WORDS = [[1, 4, 1, 2], [2], [3, 3, 3], [4, 0, 4, 0, 1]]


class Texts:
    """Two recurrences, the second on what the first gives, or one on its own last state."""

    def __init__(self, cell: type, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        self.words, self.start = Embedding(5, 6).to(dtype), Embedding(2, 6).to(dtype)
        self.first, self.second = cell(6, 6).to(dtype), cell(6, 6).to(dtype)
        self.parts = 2 if cell is LSTM else 1

    def parameters(self) -> list[Tensor]:
        return [p for m in (self.words, self.start, self.first, self.second) for p in m.parameters()]

    def step(self, module: Any, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
        out = module.step(x, *state)
        return out if isinstance(out, tuple) else (out,)

    def stacked(self, text: list[int]) -> Any:
        low = high = tuple(self.start.look_up(part) for part in range(self.parts))
        for word in text:
            low = self.step(self.first, self.words.look_up(word), low)
            high = self.step(self.second, low[0], high)
        return high[0]

    def fed_back(self, text: list[int]) -> Any:
        state = tuple(self.start.look_up(part) for part in range(self.parts))
        x = self.words.look_up(text[0])
        for _ in text:
            state = self.step(self.first, x, state)
            x = state[0]
        return x


def run(program: Callable[[list[int]], Any], texts: list[list[int]], **options: Any) -> tuple[Tensor, Any]:
    with batching.session(**options) as s:
        ends = [program(text) for text in texts]
    return s.stack(ends), s.report


@pytest.mark.parametrize("cell", [LSTM, GRU])
@pytest.mark.parametrize("name", ["stacked", "fed_back"])
@pytest.mark.parametrize(
    "options",
    [{}, {"cache": True}, {"depth": "program", "scheduler": "inline"}, {"coarsen": True}, {"scheduler": "agenda"}],
    ids=str,
)
def test_as_eager(cell: type, name: str, options: dict[str, Any]) -> None:
    texts = Texts(cell)
    program = getattr(texts, name)
    options = {k: batching.PlanCache() if k == "cache" else v for k, v in options.items()}
    ours, _ = run(program, WORDS, **options)
    theirs = torch.stack([program(text) for text in WORDS])
    torch.testing.assert_close(ours, theirs)
    leaves = texts.parameters()
    got, want = (torch.autograd.grad(y.square().sum(), leaves, allow_unused=True) for y in (ours, theirs))
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_each_input_is_multiplied_once() -> None:
    texts = Texts(LSTM)
    _, report = run(texts.stacked, WORDS)
    steps, words = sum(map(len, WORDS)), 5
    # words, their products, two starts; a step of the first, a product for and a step of the second
    assert report.nodes == 2 * words + 2 + 3 * steps
    assert report.batches == 1 + 1 + 1 + 5 + 1 + 5


def test_a_recurrence_on_itself_runs_as_it_is() -> None:
    texts = Texts(LSTM)
    _, report = run(texts.fed_back, WORDS)
    assert report.nodes == 2 + 2 * 4 + sum(map(len, WORDS))  # the four first words and their products


@pytest.mark.parametrize("cell", [LSTM, GRU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["stacked", "fed_back"])
def test_bits_do_not_depend_on_the_others(cell: type, dtype: torch.dtype, name: str) -> None:
    texts = Texts(cell, dtype)
    program = getattr(texts, name)
    together, _ = run(program, WORDS, batch_invariant=True)
    for text, row in zip(WORDS, together, strict=True):
        assert torch.equal(run(program, [text], batch_invariant=True)[0][0], row)


def test_equal_calls_of_an_earlier_phase_are_used_and_of_a_later_one_are_not() -> None:
    torch.manual_seed(0)
    words, double = Embedding(5, 3), batching.cell(lambda x: 2 * x)
    with batching.session() as s:
        with s.phase("late"):
            late = double(words.look_up(1))
        early = double(words.look_up(1))
        with s.phase("late"):
            again = double(words.look_up(1))
    assert s.report.nodes == 0
    torch.testing.assert_close(s.stack([late, early, again]), 2 * words.weight[1].expand(3, -1))
    assert s.report.nodes == 2 + 3


def test_equal_calls_of_two_flushes() -> None:
    torch.manual_seed(0)
    words, cell = Embedding(5, 4), LSTM(4, 4)
    with batching.session() as s:
        zero = torch.zeros(4)
        first = cell.step(words.look_up(1), zero, zero)
        s.flush()
        second = cell.step(words.look_up(1), zero, zero)
    assert torch.equal(s.tensor(first[0]), s.tensor(second[0]))


@pytest.mark.parametrize(("cell", "gates"), [(LSTM, 4), (GRU, 3)])
def test_the_report_tells_what_steps_begin_with(cell: type, gates: int) -> None:
    """Nothing is gathered; a step's row of products with x is copied to where its own product is added."""
    texts = Texts(cell)
    _, report = run(lambda text: texts.stacked(text), WORDS)
    assert report.gathered_bytes == 0
    row = 8 * gates * 6
    assert report.copied_bytes["products"] % row == 0
    assert 0 < report.copied_bytes["products"] // row <= 2 * sum(map(len, WORDS))
    _, plain = run(lambda text: texts.fed_back(text), WORDS)
    assert plain.gathered_bytes == 0
