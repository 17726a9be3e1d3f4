# SPDX-License-Identifier: Apache-2.0
"""Runs the batches of a flush, forward and backward, on tables of rows.

One table holds all rows of a value class; a batch writes a run of rows and reads others through row lists. For autograd
a flush is one node: `_Tape` ties the tensors from outside to a token without content, `_Extract` reads rows and depends
on the token. So PyTorch calls a flush's backward once, after the gradients of everything read from it have been put into
the gradient tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeops import _native
from edgeops._common.errors import message
from edgeops.batching._classes import value_class
from edgeops.batching.cell import LIST, NUMBER, TENSOR, Body, FunctionBody, Ragged, leaves_of


class Tables:
    """Values and gradients by class."""

    def __init__(self) -> None:
        self.values: dict[int, Tensor] = {}
        self.grads: dict[int, Tensor] = {}
        self.used: list[int] = []
        self.makers: dict[int, Any] = {}  # which batch, counted over all flushes, makes a row
        self.reached = np.zeros(0, dtype=bool)  # by batch: whether a gradient has come to one of its rows

    def reserve(self, used: Sequence[int]) -> None:
        """Make room for so many rows of every class; what is there stays."""
        for number, rows in enumerate(used):
            before = self.used[number] if number < len(self.used) else 0
            if rows == before:
                continue
            table = self.values.get(number)
            if table is None:
                self.values[number] = value_class(number).empty(rows)
            elif table.shape[0] < rows:
                larger = value_class(number).empty(max(rows, table.shape[0] * 3 // 2))
                larger[:before] = table[:before]
                self.values[number] = larger
            makers = np.full(self.values[number].shape[0], -1, dtype=np.int32)
            makers[:before] = self.makers.get(number, makers)[:before]
            self.makers[number] = makers
        self.used = list(used)

    def claim(self, batches: list[Any]) -> int:
        """Note which batch makes which rows. Returns the number of the first one."""
        begin = len(self.reached)
        self.reached = np.concatenate([self.reached, np.zeros(len(batches), dtype=bool)])
        for i, (_, count, _, outs) in enumerate(batches):
            for number, first in outs:
                self.makers[number][first : first + count] = begin + i
        return begin

    def reach(self, number: int, rows: Any) -> None:
        """Gradients have come to these rows (a slice or an array)."""
        self.reached[self.makers[number][rows]] = True

    def grad(self, number: int) -> Tensor:
        """The gradient table of a class, zeros at first."""
        table = self.grads.get(number)
        if table is None or table.shape[0] < self.used[number]:
            larger = torch.zeros_like(self.values[number])
            if table is not None:
                larger[: table.shape[0]] = table
            table = self.grads[number] = larger
        return table


class Flush:
    """The batches of one flush: what they read and write, and what backward needs."""

    def __init__(
        self,
        tables: Tables,
        bodies: dict[int, Body],
        batches: list[Any],
        rows: Any,
        numbers: Any,
        starts: Any,
        outside: list[Tensor],
    ) -> None:
        self.tables = tables
        self.bodies = bodies
        self.parameters = {variant: list(body.parameters()) for variant, body in bodies.items()}
        self.batches = batches
        self.rows = torch.from_numpy(rows)
        self.numbers = torch.from_numpy(numbers)
        self.starts = torch.from_numpy(starts)
        self.outside = outside
        self.saved: list[Any] = []

    def run(self, token: Tensor | None) -> Tensor | None:
        """Run all batches. Returns the token that tensors read afterwards depend on, if any gradient is wanted."""
        if not torch.is_grad_enabled():
            self.forward(False)
            return token
        captured = {id(x): x for params in self.parameters.values() for x in params}
        wanted = [*captured.values(), *(x for x in self.outside if x.requires_grad)]
        if token is None and not wanted:
            self.forward(False)
            return None
        self.captured = list(captured.values())
        self.first_batch = self.tables.claim(self.batches)
        empty = torch.zeros(0) if token is None else token
        result: Tensor = _Tape.apply(self, empty, *wanted)
        return result

    def operand(self, part: tuple[int, ...], detach: bool) -> Any:
        """An operand of a batch: rows of a table as a tensor, integers, or a list."""
        kind, number, at, count, first, starts_at = part[0], part[1], part[2], part[3], part[4], part[5]
        if kind == NUMBER:
            return self.numbers[at : at + count]
        if kind == TENSOR:
            x = torch.stack(self.outside[at : at + count])
        else:
            # .data: rows written later must not count as changes of rows that a graph has kept
            table = self.tables.values[number].data
            x = table[first : first + count] if first >= 0 else table.index_select(0, self.rows[at : at + count])
        if detach:
            x = x.detach()
            if x.is_floating_point():
                x.requires_grad_()
        return x if kind != LIST else Ragged(x, self.starts[starts_at : starts_at + part[6] + 1])

    def forward(self, training: bool) -> None:
        """Run the batches in order."""
        for variant, count, operands, outs in self.batches:
            body = self.bodies[variant]
            rows = [self.operand((*part, count), training) for part in operands]
            with torch.set_grad_enabled(training):
                results = body.outputs(*rows)
            for (number, first), y in zip(outs, results, strict=True):
                self.tables.values[number][first : first + count] = y.detach()
            if training:
                self.saved.append((rows, results))
                self._check(body, rows, results, self.parameters[variant])

    def _check(self, body: Body, rows: list[Any], results: tuple[Tensor, ...], params: list[Tensor]) -> None:
        if not isinstance(body, FunctionBody) or body.checked:
            return
        if leaves_of(results, [*_floating(rows), *params]):
            rule = "tensors that want gradients must be captured where they can be found"
            advice = "Give modules or tensors to the cell as closure, default, partial or bound object."
            raise ValueError(message(f"batching cell {body.name}", rule, "one that is reached another way", advice))
        body.checked = True

    def backward(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Run the batches backwards. Returns gradients of captured tensors by id, and of outside tensors by index."""
        captured: dict[int, Tensor] = {}
        outside: dict[int, Tensor] = {}
        for i in reversed(range(len(self.batches))):
            if not self.tables.reached[self.first_batch + i]:
                continue
            self.tables.reached[self.first_batch + i] = False
            (variant, count, operands, outs), (rows, results) = self.batches[i], self.saved[i]
            grads = [self.tables.grad(number)[first : first + count] for number, first in outs]
            pairs = [(y, g) for y, g in zip(results, grads, strict=True) if y.requires_grad]
            if pairs:
                params = self.parameters[variant]
                inputs = _floating(rows)
                ys, gs = zip(*pairs, strict=True)
                found = torch.autograd.grad(ys, [*inputs, *params], gs, retain_graph=True, allow_unused=True)
                self._scatter(operands, rows, iter(found), outside)
                for p, g in zip(params, found[len(inputs) :], strict=True):
                    if g is not None:
                        captured[id(p)] = captured[id(p)] + g if id(p) in captured else g
            for g in grads:
                g.zero_()  # used up: another backward starts from nothing
        return captured, outside

    def _scatter(self, operands: Any, rows: list[Any], found: Any, outside: dict[int, Tensor]) -> None:
        """Put gradients of operands where they came from."""
        for part, x in zip(operands, rows, strict=True):
            kind, number, at, count, first = part[:5]
            if not _floating([x]):
                continue
            g = next(found)
            if g is None:
                continue
            if kind == TENSOR:
                for i in range(count):
                    index = at + i
                    outside[index] = outside[index] + g[i] if index in outside else g[i]
                continue
            self.tables.reach(number, slice(first, first + count) if first >= 0 else self.rows[at : at + count].numpy())
            if first >= 0:
                self.tables.grad(number)[first : first + count] += g
            else:
                self.tables.grad(number).index_add_(0, self.rows[at : at + count], g)


def _floating(rows: Sequence[Any]) -> list[Tensor]:
    parts = (x.values if isinstance(x, Ragged) else x for x in rows)
    return [x for x in parts if x.requires_grad]


class _Tape(torch.autograd.Function):
    """A flush as one node: from tensors outside to a token."""

    @staticmethod
    def forward(ctx: Any, flush: Flush, token: Tensor, *wanted: Tensor) -> Tensor:
        ctx.flush = flush
        ctx.count = len(wanted)
        flush.forward(True)
        return torch.zeros(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Any, ...]:
        flush: Flush = ctx.flush
        with torch.no_grad():
            captured, outside = flush.backward()
        of_outside = (outside.get(i) for i, x in enumerate(flush.outside) if x.requires_grad)
        grads = (None, torch.zeros(0), *(captured.get(id(p)) for p in flush.captured), *of_outside)
        if not torch.is_grad_enabled():
            return grads
        return _native.refuse_second_order("batching.session", grads, (*flush.captured, *flush.outside))


class _Extract(torch.autograd.Function):
    """Rows of a table; their gradients go into the gradient table, before the flushes' own backward."""

    @staticmethod
    def forward(ctx: Any, tables: Tables, number: int, rows: Tensor, token: Tensor) -> Tensor:
        ctx.tables, ctx.number = tables, number
        ctx.rows = rows
        return tables.values[number].index_select(0, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        ctx.tables.reach(ctx.number, ctx.rows.numpy())
        ctx.tables.grad(ctx.number).index_add_(0, ctx.rows, grad)
        return None, None, None, torch.zeros(0)


def extract(tables: Tables, number: int, rows: Tensor, token: Tensor | None) -> Tensor:
    """Rows of a class as a tensor of their own."""
    if token is None or not token.requires_grad:
        return tables.values[number].index_select(0, rows)
    result: Tensor = _Extract.apply(tables, number, rows, token)
    return result
