# SPDX-License-Identifier: Apache-2.0
"""Runs the batches of a flush, forward and backward, on tables of rows.

One table holds all rows of a value class; a batch writes a run of rows and reads others through row lists. For autograd
a flush is one node: `_Tape` ties the tensors from outside to a token without content, `_Extract` reads rows and depends
on the token. So PyTorch calls a flush's backward once, after the gradients of everything read from it have been put
into the gradient tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops.batching._tables import Tables
from edgeops.batching.cell import LIST, NUMBER, TENSOR, Body, Ragged

_WIDE = (torch.float32, torch.float64)
_rows_add = torch.ops.edgeops._rows_add
ALL = torch.empty(0, dtype=torch.int32)  # all rows of a table, for the native kernels


def matrix(x: Tensor) -> Tensor:
    """Rows of any shape as rows of numbers, for the native kernels."""
    if x.dim() == 2:
        return x
    return x[:, None] if x.dim() == 1 else x.flatten(1)


class Batch:
    """Equal calls that run together: where their operands and results stand."""

    __slots__ = ("count", "flush", "operands", "outs")

    def __init__(self, flush: Flush, count: int, operands: Sequence[Any], outs: Sequence[Any]) -> None:
        self.flush = flush
        self.count = count
        self.operands = operands
        self.outs = outs

    def rows(self, slot: int) -> tuple[Tensor, Tensor]:
        """An operand as a table and the rows of it, none for all: nothing is copied."""
        kind, number, at, count, first = self.operands[slot][:5]
        if kind == TENSOR:
            x = torch.stack(self.flush.outside[at : at + count])
            self.flush.gathered_bytes += x.nbytes
            return x, ALL
        table = self.flush.tables.values[number]
        return (table[first : first + count], ALL) if first >= 0 else (table, self.flush.rows[at : at + count])

    def list_rows(self, slot: int) -> tuple[Tensor, Tensor, Tensor]:
        """A list operand: a table, its rows of all calls one after another, and where each call's begin, `[m + 1]`."""
        _, number, at, count, _, starts_at, _ = self.operands[slot]
        flush = self.flush
        starts = flush.starts[starts_at : starts_at + self.count + 1]
        return flush.tables.values[number], flush.rows[at : at + count], starts

    def numbers(self, slot: int) -> Tensor:
        """An integer operand, `int64 [m]`."""
        at, count = self.operands[slot][2:4]
        return self.flush.numbers[at : at + count]

    def tensor(self, slot: int, wants_grad: bool) -> Any:
        """An operand as a tensor `[m, ...]` of its own, integers, or a list."""
        kind, number, at, count, first, starts_at, _ = self.operands[slot]
        flush = self.flush
        if kind == NUMBER:
            return flush.numbers[at : at + count]
        if kind == TENSOR:
            x = torch.stack(flush.outside[at : at + count])
            flush.gathered_bytes += x.nbytes
        else:
            # .data: rows written later must not count as changes of rows that a graph has kept
            table = flush.tables.values[number].data
            if first >= 0:
                x = table[first : first + count]
            else:
                x = table.index_select(0, flush.rows[at : at + count])
                flush.gathered_bytes += x.nbytes
        if wants_grad:
            x = x.detach()
            if x.is_floating_point():
                x.requires_grad_()
        return x if kind != LIST else Ragged(x, flush.starts[starts_at : starts_at + self.count + 1])

    def out(self, which: int) -> Tensor:
        """The rows of a result."""
        number, first = self.outs[which]
        return self.flush.tables.values[number][first : first + self.count]

    def grad_out(self, which: int) -> Tensor:
        """The gradients that have come to a result."""
        number, first = self.outs[which]
        return self.flush.tables.grad(number)[first : first + self.count]

    def add_grad(self, slot: int, grad: Tensor) -> None:
        """Add gradients of an operand, `[m, ...]`, to where it came from."""
        kind, number, at, count, first, _, makers = self.operands[slot]
        flush = self.flush
        if kind == TENSOR:
            for i in range(count):
                flush.outside_grads[at + i] = grad[i]
            return
        tables = flush.tables
        tables.reach(makers)
        table = tables.grad(number)
        if first >= 0:
            table[first : first + count] += grad
        elif table.dtype in _WIDE and table.device.type == "cpu":
            _rows_add(matrix(grad), flush.rows[at : at + count], matrix(table))
        else:
            table.index_add_(0, flush.rows[at : at + count], grad)


class Flush:
    """The batches of one flush, and what backward needs."""

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
        self.rows = torch.from_numpy(rows)
        self.numbers = torch.from_numpy(numbers)
        self.starts = torch.from_numpy(starts)
        self.outside = outside
        self.batches = [
            (bodies[variant], Batch(self, count, operands, outs)) for variant, count, operands, outs in batches
        ]
        self.parameters = {body: list(body.parameters()) for body in bodies.values()}
        self.gathered_bytes = 0
        self.scratch: dict[Any, Any] = {}  # what bodies make once a flush
        self.saved: list[Any] = []
        self.first_batch = 0
        self.captured: list[Tensor] = []
        self.captured_grads: dict[int, Tensor] = {}
        self.outside_grads: dict[int, Tensor] = {}

    def run(self, token: Tensor | None) -> Tensor | None:
        """Run all batches. Returns the token that tensors read afterwards depend on, if any gradient is wanted."""
        self.first_batch = self.tables.claim(len(self.batches))
        if torch.is_grad_enabled():
            captured = {id(x): x for params in self.parameters.values() for x in params if x.requires_grad}
            wanted = [*captured.values(), *(x for x in self.outside if x.requires_grad)]
            if token is not None or wanted:
                self.captured = list(captured.values())
                empty = torch.zeros(0) if token is None else token
                result: Tensor = _Tape.apply(self, empty, *wanted)
                return result
        with torch.no_grad():
            self.forward(False)
        return token

    def forward(self, training: bool) -> None:
        """Run the batches in order."""
        for body, batch in self.batches:
            saved = body.forward(batch, training)
            if training:
                self.saved.append(saved)

    def backward(self) -> None:
        """Run the batches backwards, those that a gradient has reached. Fills `captured_grads` and `outside_grads`."""
        self.captured_grads, self.outside_grads = {}, {}
        done: dict[Body, list[Any]] = {}
        reached = self.tables.reached
        for i in reversed(range(len(self.batches))):
            if not reached[self.first_batch + i]:
                continue
            reached[self.first_batch + i] = False
            body, batch = self.batches[i]
            kept = body.backward(batch, self.saved[i])
            if kept is not None:
                done.setdefault(body, []).append((batch, kept))
            for which in range(len(batch.outs)):
                batch.grad_out(which).zero_()  # used up: another backward starts from nothing
        for body, batches in done.items():
            body.finish(self, batches)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once a flush."""
        if key not in self.scratch:
            self.scratch[key] = make()
        return self.scratch[key]

    def add_captured(self, parameter: Tensor, grad: Tensor) -> None:
        """Add to the gradient of a captured tensor; `grad` is given away."""
        before = self.captured_grads.get(id(parameter))
        self.captured_grads[id(parameter)] = grad if before is None else before.add_(grad)


class _Tape(torch.autograd.Function):
    """A flush as one node: from tensors outside to a token."""

    @staticmethod
    def forward(ctx: Any, flush: Flush, token: Tensor, *wanted: Tensor) -> Tensor:
        ctx.flush = flush
        flush.forward(True)
        return torch.zeros(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Any, ...]:
        flush: Flush = ctx.flush
        with torch.no_grad():
            flush.backward()
        of_outside = (flush.outside_grads.get(i) for i, x in enumerate(flush.outside) if x.requires_grad)
        grads = (None, torch.zeros(0), *(flush.captured_grads.get(id(p)) for p in flush.captured), *of_outside)
        if not torch.is_grad_enabled():
            return grads
        return _native.refuse_second_order("batching.session", grads, (*flush.captured, *flush.outside))


class _Extract(torch.autograd.Function):
    """Rows of a table; their gradients go into the gradient table, before the flushes' own backward."""

    @staticmethod
    def forward(ctx: Any, tables: Tables, number: int, rows: Tensor, makers: Sequence[int], token: Tensor) -> Tensor:
        ctx.tables, ctx.number, ctx.rows, ctx.makers = tables, number, rows, makers
        return tables.values[number].index_select(0, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        ctx.tables.reach(ctx.makers)
        ctx.tables.grad(ctx.number).index_add_(0, ctx.rows, grad)
        return None, None, None, None, torch.zeros(0)


def extract(tables: Tables, number: int, rows: Tensor, makers: Sequence[int], token: Tensor | None) -> Tensor:
    """Rows of a class, results of the batches `makers`, as a tensor of their own."""
    if token is None or not token.requires_grad:
        return tables.values[number].index_select(0, rows)
    result: Tensor = _Extract.apply(tables, number, rows, makers, token)
    return result
