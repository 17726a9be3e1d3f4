# SPDX-License-Identifier: Apache-2.0
"""Runs the batches of a flush, forward and backward, on tables of rows.

One table holds all rows of a value class; a batch writes a run of rows and reads others through row lists. For autograd
a flush is one node: `_Tape` ties the tensors from outside to a token without content, `_Extract` reads rows and depends
on the token. So PyTorch calls a flush's backward once, after the gradients of everything read from it have been put
into the gradient tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops._common.errors import message
from edgeops.batching._classes import value_class
from edgeops.batching._gpu_execute import GpuRunner, serves
from edgeops.batching._program import Program
from edgeops.batching._runner import Runner, matrix, types_that_ran
from edgeops.batching._tables import Tables
from edgeops.batching.cell import LIST, NUMBER, TENSOR, VALUE, Body, Ragged

_WIDE = (torch.float32, torch.float64)


def _nothing() -> Tensor:
    """A token: carries no numbers, ties flushes together."""
    return torch.zeros(0, device="cpu")


class Batch:
    """Equal calls of a cell that run together: where their operands and results stand."""

    __slots__ = ("count", "device", "flush", "operands", "outs")

    def __init__(self, flush: Flush, record: list[int], device: torch.device) -> None:
        """`record` is one of csrc/runtime/batching/record.h, `device` where the cell's integers are wanted."""
        _, _, self.count, _, slots, outs = record[:6]
        self.flush = flush
        self.device = device
        self.operands = [record[6 + 8 * i : 14 + 8 * i] for i in range(slots)]
        at = 6 + 8 * slots
        self.outs = [(record[at + 2 * i], record[at + 2 * i + 1]) for i in range(outs)]

    def tensor(self, slot: int, wants_grad: bool) -> Any:
        """An operand as a tensor `[m, ...]` of its own, integers, or a list."""
        kind, number, at, count, first, starts_at = self.operands[slot][:6]
        flush = self.flush
        if kind == NUMBER:
            return flush.on(self.device)[1][at : at + count]
        # .data: rows written later must not count as changes of rows that a graph has kept
        table = (flush.outside_tables if kind == TENSOR else flush.tables.values)[number].data
        if first >= 0:
            x = table[first : first + count]
        else:
            x = table.index_select(0, flush.on(table.device)[0][at : at + count])
            flush.gathered_bytes += x.nbytes
        if wants_grad:
            x = x.detach()
            if x.is_floating_point():
                x.requires_grad_()
        if kind != LIST:
            return x
        return Ragged(x, flush.on(table.device)[2][starts_at : starts_at + self.count + 1])

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
        kind, number, at, count, first, _, makers, makers_end = self.operands[slot]
        flush = self.flush
        if kind == TENSOR:
            table = flush.outside_grad_tables.get(number)
            if table is not None:
                table[first : first + count] += grad
            return
        flush.tables.reached[flush.makers[makers:makers_end]] = 1
        table = flush.tables.grad(number)
        if first >= 0:
            table[first : first + count] += grad
        elif table.dtype in _WIDE and table.device.type == "cpu":
            torch.ops.edgeops._rows_add.default(matrix(grad), flush.rows[at : at + count], matrix(table))
        else:
            table.index_add_(0, flush.on(table.device)[0][at : at + count], grad)


class Flush:
    """The batches of one flush, and what backward needs.

    Args:
        tables: of the session.
        placed: the arrays of csrc/runtime/batching/record.h, as `Recording.place` gives them.
        bodies: by type.
        programs: by type, `None` for bodies that run themselves.
        outside: the session's tensors from outside, `placed["tensors"]` are indices into them.
        classes: their value classes.
        copies: copy listed rows of operands together before native cells read them.
        alone: run the calls of functions one by one.
        graphs: whether batches run as CUDA graphs: "auto" (sizes seen twice), always, or never.
    """

    def __init__(
        self,
        tables: Tables,
        placed: dict[str, Any],
        bodies: Sequence[Body],
        programs: Sequence[Program | None],
        outside: Sequence[Tensor],
        classes: Sequence[int],
        copies: bool = False,
        alone: bool = False,
        graphs: bool | str = "auto",
    ) -> None:
        self.tables = tables
        self.graphs = graphs
        self.copies = copies
        self.alone = alone
        self.placed = placed
        self.bodies = bodies
        self.programs = programs
        self.makers = placed["makers"]
        _, _, self.rows, numbers, starts, _ = self._arrays = tuple(
            torch.from_numpy(placed[name]) for name in ("records", "offset", "rows", "numbers", "starts", "makers")
        )
        self._on = {torch.device("cpu"): (self.rows, numbers, starts)}
        self.outside = [outside[i] for i in placed["tensors"]]
        self.gathered_bytes = 0
        self.packed_bytes = 0  # weights in the kernels' own order
        self.begun_bytes = 0  # products made ahead, copied to where a step adds its own
        self._outside_rows: dict[int, list[int]] = {}  # by class: which of `outside` are the rows of its table
        for place, i in enumerate(placed["tensors"].tolist()):
            self._outside_rows.setdefault(classes[i], []).append(place)
        self.outside_tables = {c: self._stacked(rows) for c, rows in self._outside_rows.items()}
        self.outside_grad_tables: dict[int, Tensor] = {}
        self.devices = [None if p is None else p.device for p in programs]
        self.parameters = {body: list(body.parameters()) for body in bodies}
        self.counts = placed["records"][placed["offset"][:-1] + 2].tolist()
        self.kinds: list[int] = placed["type"].tolist()  # by batch
        begun = [0 if p is None else p.begun_bytes for p in programs]
        if any(begun):
            self.begun_bytes = sum(begun[kind] * count for kind, count in zip(self.kinds, self.counts))
        self.saved: dict[int, Any] = {}  # by batch, of bodies that run themselves
        self.first_batch = 0
        self.first: list[bool | None] = [None] * len(programs)  # by type: `Tables.first`
        self.captured: list[Tensor] = []  # whose gradients this flush gives
        self.captured_grads: dict[int, Tensor] = {}
        self._versions: list[tuple[Body, Tensor, int]] = []
        self._runners: dict[torch.device, Runner] = {}
        # runs of batches of one device that need no Python in between, and single batches of other bodies
        self._runs: list[tuple[torch.device | None, int, int]] = []
        only = self.devices[0] if len(set(self.devices)) == 1 else None
        if only is not None:
            self._runs.append((only, 0, len(self.kinds)))
            return
        of_batch = [self.devices[kind] for kind in self.kinds]
        for device, group in itertools.groupby(range(len(of_batch)), key=of_batch.__getitem__):
            members = list(group)
            if device is None:
                self._runs.extend((None, b, b + 1) for b in members)
            else:
                self._runs.append((device, members[0], members[-1] + 1))

    def _stacked(self, rows: list[int]) -> Tensor:
        with torch.no_grad():
            table = torch.stack([self.outside[i] for i in rows])
        self.gathered_bytes += table.nbytes
        return table

    def run(self, token: Tensor | None) -> Tensor | None:
        """Run all batches. Returns the token that tensors read afterwards depend on, if any gradient is wanted."""
        self.first_batch = self.tables.claim(len(self.counts))
        if torch.is_grad_enabled():
            captured = [x for params in self.parameters.values() for x in params if x.requires_grad]
            wanted = [x for x in self.outside if x.requires_grad]
            if token is not None or captured or wanted:
                self.first = [None if p is None or not p.grads else self.tables.first(p) for p in self.programs]
                givers = [self.parameters[body] for body, first in zip(self.bodies, self.first) if first is not False]
                self.captured = list({id(x): x for params in givers for x in params if x.requires_grad}.values())
                wanted = [*self.captured, *wanted]
                empty = _nothing() if token is None else token
                result: Tensor = _Tape.apply(self, empty, *wanted)
                return result
        with torch.no_grad():
            self.forward(False)
        return token

    def forward(self, training: bool) -> None:
        """Run the batches in order."""
        for each in {d for d in self.devices if d is not None}:
            ours = [p if p is not None and p.device == each else None for p in self.programs]
            kind = GpuRunner if serves(each, ours) else Runner
            runner = self._runners[each] = kind(self, each, ours, training)
            self.packed_bytes += runner.packed_bytes
        for device, begin, end in self._runs:
            if device is None:
                body = self._body(begin)
                self.saved[begin] = body.forward(self._batch(begin), training)
            else:
                self._runners[device].forward(begin, end)
                self.gathered_bytes += self._copied(begin, end) if self.copies else 0
        if training:
            native = [
                body
                for body, p, first in zip(self.bodies, self.programs, self.first, strict=True)
                if p is not None and first is not False  # a program's first flush looks for all of them
            ]
            self._versions = [(body, p, p._version) for body in native for p in self.parameters[body]]
        else:
            for runner in self._runners.values():
                runner.release()
            self._runners = {}
            self.saved = {}

    def _copied(self, begin: int, end: int) -> int:
        """Bytes of operands of these batches that stand in lists."""
        total = 0
        for b in range(begin, end):
            for kind, number, _, count, first, *_ in self._batch(b).operands:
                if kind in (VALUE, LIST) and first < 0:
                    total += count * value_class(number).row_bytes
        return total

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Row numbers, integers and starts of lists on a device: one upload a flush."""
        found = self._on.get(device)
        if found is None:
            rows, numbers, starts = (x.to(device, non_blocking=True) for x in self._on[torch.device("cpu")])
            found = self._on[device] = rows, numbers, starts
        return found

    def arrays(self, device: torch.device) -> tuple[Tensor, ...]:
        """What `_batches_run` reads; integers that name rows are checked on the CPU."""
        records, offsets, _, numbers, _, makers = self._arrays
        rows, _, starts = self.on(device)
        return records, offsets, rows, numbers, starts, makers

    def _body(self, b: int) -> Body:
        return self.bodies[self.kinds[b]]

    def _batch(self, b: int) -> Batch:
        begin, end = self.placed["offset"][b : b + 2]
        body = self._body(b)
        return Batch(self, self.placed["records"][begin:end].tolist(), body.device(self.parameters[body]))

    def backward(self) -> None:
        """Run the batches backwards, those that a gradient has reached. Fills `captured_grads` and outside ones."""
        for body, p, version in self._versions:
            if p._version != version:
                rule = "parameters must not change between forward and backward"
                got = f"a parameter of shape {tuple(p.shape)} of {body.name} that was changed in place"
                raise RuntimeError(message("batching.session", rule, got, "Call backward before the optimizer's step."))
        self.tables.in_backward()
        self.captured_grads = {}
        self.outside_grad_tables = {
            c: torch.zeros_like(table)
            for c, table in self.outside_tables.items()
            if any(self.outside[i].requires_grad for i in self._outside_rows[c])
        }
        for runner in self._runners.values():
            runner.prepare_backward()
        reached, first = self.tables.reached, self.first_batch
        for device, begin, end in reversed(self._runs):
            if device is not None:
                self._runners[device].backward(begin, end)
            elif reached[first + begin]:
                reached[first + begin] = 2
                batch = self._batch(begin)
                self._body(begin).backward(batch, self.saved[begin])
                for which in range(len(batch.outs)):
                    batch.grad_out(which).zero_()  # used up: another backward starts from nothing
        marks = reached[first : first + len(self.counts)]
        ran = types_that_ran(marks.tolist(), self.kinds, len(self.bodies))
        marks[:] = 0
        for runner in self._runners.values():
            runner.finish(ran)

    def outside_grads(self) -> list[Tensor | None]:
        """The gradients of the tensors from outside that want one, in their order."""
        found: dict[int, Tensor] = {}
        for c, table in self.outside_grad_tables.items():
            found.update(zip(self._outside_rows[c], table.unbind(), strict=True))
        self.outside_grad_tables = {}
        return [found[i] for i, x in enumerate(self.outside) if x.requires_grad]

    def add_captured(self, parameter: Tensor, grad: Tensor, given: bool = True) -> None:
        """Add to the gradient of a captured tensor; `given` says whether `grad` is given away."""
        before = self.captured_grads.get(id(parameter))
        if before is not None:
            before.add_(grad)
        else:
            self.captured_grads[id(parameter)] = grad if given else grad.clone()


class _Tape(torch.autograd.Function):
    """A flush as one node: from tensors outside to a token."""

    @staticmethod
    def forward(ctx: Any, flush: Flush, token: Tensor, *wanted: Tensor) -> Tensor:
        ctx.flush = flush
        flush.forward(True)
        return _nothing()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Any, ...]:
        flush: Flush = ctx.flush
        with torch.no_grad():
            flush.backward()
        # given away: autograd keeps a gradient that nobody else holds, and copies others
        of_captured = [flush.captured_grads.pop(id(p), None) for p in flush.captured]
        grads = (None, _nothing(), *of_captured, *flush.outside_grads())
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
        ctx.tables.in_backward()
        ctx.tables.reached[list(ctx.makers)] = 1
        ctx.tables.grad(ctx.number).index_add_(0, ctx.rows, grad)
        return None, None, None, None, _nothing()


def extract(tables: Tables, number: int, rows: Tensor, makers: Sequence[int], token: Tensor | None) -> Tensor:
    """Rows of a class, results of the batches `makers`, as a tensor of their own."""
    device = tables.values[number].device
    if device.type == "cuda":  # from pinned memory, which the host need not wait for
        rows = rows.pin_memory()
    rows = rows.to(device, non_blocking=True)
    if token is None or not token.requires_grad or not value_class(number).dtype.is_floating_point:
        return tables.values[number].index_select(0, rows)
    result: Tensor = _Extract.apply(tables, number, rows, makers, token)
    return result
