# SPDX-License-Identifier: Apache-2.0
"""Runs the programs of built-in cells: one op call for any number of consecutive batches, no Python in between."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from edgeops.batching._program import (
    BACKWARD,
    FINISH,
    FORWARD,
    HEAD,
    PREPARE_BACKWARD,
    PREPARE_FORWARD,
    SECTIONS,
    TYPE_HEAD,
    Buffers,
    Packed,
    Program,
)

_EMPTY = torch.empty(0, device="cpu")
_MOST_CODES = 256
_NO_MARKS = torch.empty(0, dtype=torch.uint8, device="cpu")


def matrix(x: Tensor) -> Tensor:
    """Rows of any shape as rows of numbers, for the native kernels."""
    if x.dim() == 2:
        return x
    return x[:, None] if x.dim() == 1 else x.flatten(1)


class Runner:
    """The programs of a flush on one device."""

    def __init__(self, flush: Any, device: torch.device, programs: Sequence[Program | None], training: bool) -> None:
        self._flush = weakref.proxy(flush)  # which holds this runner
        self._device = device
        self._programs = programs
        self._training = training
        nothing: list[Buffers | None] = [None] * len(programs)
        self._buffers = [nothing, list(nothing)]  # by direction and type
        self._packed: list[list[Packed | None]] = [[None] * len(programs) for _ in range(2)]
        self._own: list[list[Tensor]] = [[] for _ in programs]  # by type: the tensors of the program
        self._first: list[bool | None] = flush.first
        # by type: whether gradients of parameters are added to those of later flushes
        self._adds = [False] * len(programs)
        self._classes, tables = self._tables(False)
        self._tensors = [*tables, *self._make(False)]
        self._code = self._code_of(len(tables))
        self.packed_bytes = 0  # of weights that had to be packed
        self._pack(False)

    def _tables(self, grads: bool) -> tuple[Tensor, list[Tensor]]:
        """The table of classes, and the tensors it names. See `classes` in csrc/batching/program.h."""
        tables, outside = self._flush.tables, self._flush.outside_tables
        key, moves = (self._device, grads), tables.moves
        found = tables.views.get(key)
        if found is not None and found[0] == moves and not outside:
            return found[1], found[2]
        tensors: list[Tensor] = []
        known: dict[int, list[int]] = {}
        sources = [tables.values, {}, outside, {}]
        if grads:
            sources[1] = {c: tables.grad(c) for c, t in tables.values.items() if t.is_floating_point()}
            sources[3] = self._flush.outside_grad_tables
        for which, source in enumerate(sources):
            for number, table in source.items():
                if table.device == self._device:
                    known.setdefault(number, [-1] * 4)[which] = len(tensors)
                    tensors.append(matrix(table))
        flat = [-1] * (4 * (max(known, default=-1) + 1))
        for number, indices in known.items():
            flat[4 * number : 4 * number + 4] = indices
        classes = torch.tensor(flat, dtype=torch.int64, device="cpu")
        if not outside:
            tables.views[key] = moves, classes, tensors
        return classes, tensors

    def _code_of(self, first: int) -> Tensor:
        """The programs as `code` of csrc/batching/program.h; their tensors begin at `first`."""
        known = next(p.codes for p in self._programs if p is not None)
        serials = (-1 if p is None else p.serial for p in self._programs)
        key = (first, self._training, self._flush.copies, *self._adds, *serials)
        found = known.get(key)
        if found is None:
            if len(known) >= _MOST_CODES:
                known.clear()
            found = known[key] = self._write_code(first)
        return found

    def _write_code(self, first: int) -> Tensor:
        """The programs as `code` of csrc/batching/program.h."""
        head = [len(self._programs), int(self._training), int(self._flush.copies)]
        body: list[int] = []
        at = HEAD + TYPE_HEAD * len(self._programs)
        for program, adds in zip(self._programs, self._adds, strict=True):
            if program is None:
                head.extend([0] + [-1] * SECTIONS)
                continue
            head.append(first)
            first += len(program.needs)
            for number, section in enumerate(program.code):
                section = program.adding if adds and number == FINISH else section
                head.append(at + len(body))
                body.append(len(section))
                body.extend(section)
        return torch.tensor(head + body, dtype=torch.int64, device="cpu")

    def _make(self, backward: bool) -> list[Tensor]:
        """The tensors of all programs; those of the other direction are left empty or as they were."""
        made: list[Tensor] = []
        placed, tables = self._flush.placed, self._flush.tables
        total, largest = placed["total"], placed["largest"]
        for kind, program in enumerate(self._programs):
            if program is None:
                continue
            kept = total[kind] if self._training else largest[kind]
            buffers = self._buffers[backward][kind] = program.buffers(kept, largest[kind], backward)
            packed = self._packed[backward][kind] = tables.packed_of(program, backward)
            slots, tensors = program.slots, self._own[kind]
            if not backward:
                tensors = self._own[kind] = [_EMPTY] * len(program.needs)
                for number, name in slots.parameters:
                    tensors[number] = program.module._parameters[name]
            for numbers, source in ((slots.buffers, buffers.tensors), (slots.packed, packed.tensors)):
                for number in numbers[backward]:
                    tensors[number] = cast("Tensor", source[number])
            if backward:
                parameters = {name: tensors[number] for number, name in slots.parameters}
                sums = tables.sums.get(program.serial) if self._first[kind] is not None else None
                self._adds[kind] = sums is not None
                for number, name in slots.grads:
                    if sums is not None:
                        tensors[number] = sums[number]
                        continue
                    like = parameters[name]
                    wide = torch.promote_types(like.dtype, torch.float32)
                    # those of products are written first, those of embeddings added to
                    new = torch.empty if number in program.written else torch.zeros
                    tensors[number] = new(like.shape, dtype=wide, device=like.device)
            made.extend(tensors)
        return made

    def _pack(self, backward: bool) -> None:
        """Pack the weights of this direction, those that do not stand packed already."""
        section = PREPARE_BACKWARD if backward else PREPARE_FORWARD
        stale: list[int] = []
        for kind, program in enumerate(self._programs):
            packed = self._packed[backward][kind]
            if program is None or packed is None or not program.code[section]:
                continue
            # a step of training changes all weights, but not between the flushes of its session
            version = program.version() if self._training else None
            stamp = None if self._training else program.stamp()
            if self._training:
                fresh = packed.version is not None and packed.version == version
            else:
                fresh = stamp is not None and stamp == packed.stamp
            if not fresh:
                packed.version, packed.stamp = version, stamp
                stale.append(kind)
                if not backward:
                    self.packed_bytes += sum(t.nbytes for t in packed.tensors if t is not None)
        runs = [(kind, kind + 1) for kind in stale]
        if len(stale) == sum(p is not None and bool(p.code[section]) for p in self._programs):
            runs = [(0, len(self._programs))] if stale else []
        try:
            for begin, end in runs:
                self._run(section, begin, end)
        except BaseException:
            for kind in stale:
                packed = self._packed[backward][kind]
                assert packed is not None
                packed.version = packed.stamp = None
            raise

    def release(self) -> None:
        """Give the buffers back."""
        for backward in (False, True):
            for kind, buffers in enumerate(self._buffers[backward]):
                program = self._programs[kind]
                if buffers is not None and program is not None:
                    program.release(buffers, backward)
            self._buffers[backward] = [None] * len(self._programs)

    def __del__(self) -> None:
        self.release()

    def arguments(self, section: int, begin: int, end: int, marks: Tensor = _NO_MARKS) -> tuple[Any, ...]:
        """The arguments of `_batches_run` for a section of the batches [begin, end)."""
        flush = self._flush
        arrays = flush.arrays(self._device)
        return self._code, self._classes, *arrays, marks, self._tensors, section, begin, end, flush.first_batch

    def _run(self, *what: Any) -> None:
        try:
            torch.ops.edgeops._batches_run.default(*self.arguments(*what))
        except (RuntimeError, ValueError) as error:  # the op knows cells by number only
            bodies = self._flush.bodies
            told = re.sub(
                r"batching cell #(\d+)", lambda found: f"batching cell {bodies[int(found[1])].name}", str(error)
            )
            raise type(error)(told) from None

    def forward(self, begin: int, end: int) -> None:
        """Run batches [begin, end)."""
        self._run(FORWARD, begin, end)

    def prepare_backward(self) -> None:
        """Make what backward needs."""
        self._classes, tables = self._tables(True)
        self._tensors = [*tables, *self._make(True)]
        self._code = self._code_of(len(tables))
        self._pack(True)

    def backward(self, begin: int, end: int) -> None:
        """Run batches [begin, end) backwards, those that a gradient has reached."""
        self._run(BACKWARD, begin, end, torch.from_numpy(self._flush.tables.reached))

    def finish(self, ran: Sequence[bool]) -> None:
        """Gradients of the parameters, over all calls of each type at once, for types of which a batch `ran`."""
        self._run(FINISH, 0, len(self._flush.placed["type"]))
        tables = self._flush.tables
        for kind, program in enumerate(self._programs):
            if program is None or not program.grads:
                continue
            own, first = self._own[kind], self._first[kind]
            sums = {number: own[number] for number in program.grads} if ran[kind] else None
            if first is not None:
                if sums is not None:
                    tables.sums[program.serial] = sums
                sums = tables.sums.pop(program.serial, None) if first else None
            for number in program.grads:
                own[number] = _EMPTY
            if sums is not None:
                self._give(program, own, sums)
        self._tensors = []  # buffers of forward stay for another backward; gradients are given away
        for kind, program in enumerate(self._programs):
            buffers = self._buffers[True][kind]
            if program is not None and buffers is not None:
                program.release(buffers, True)
                self._buffers[True][kind] = None

    def _give(self, program: Program, own: Sequence[Tensor], grads: dict[int, Tensor]) -> None:
        """Hand gradients of parameters over, those of the forward: the module may have others by now."""
        parameters = {name: own[number] for number, name in program.slots.parameters}
        for number, names in program.grads.items():
            for i, name in enumerate(names):
                p, grad = parameters[name], grads[number]
                self._flush.add_captured(p, grad.to(p.dtype) if i == 0 else grad.to(p.dtype, copy=True))


def types_that_ran(reached: Iterable[int], kinds: Iterable[int], types: int) -> list[bool]:
    """By type: whether a batch of it is marked as run backwards."""
    ran = {kind for kind, mark in zip(kinds, reached) if mark == 2}
    return [kind in ran for kind in range(types)]
