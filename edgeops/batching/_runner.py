# SPDX-License-Identifier: Apache-2.0
"""Runs the programs of built-in cells: one op call for any number of consecutive batches, no Python in between."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
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
    Program,
)

_EMPTY = torch.empty(0, device="cpu")
_MOST_CODES = 64
_NO_MARKS = torch.empty(0, dtype=torch.uint8, device="cpu")


def matrix(x: Tensor) -> Tensor:
    """Rows of any shape as rows of numbers, for the native kernels."""
    if x.dim() == 2:
        return x
    return x[:, None] if x.dim() == 1 else x.flatten(1)


class Runner:
    """The programs of a flush on one device."""

    def __init__(self, flush: Any, device: torch.device, programs: Sequence[Program | None], training: bool) -> None:
        self._flush = flush
        self._device = device
        self._programs = programs
        self._training = training
        self._kept: dict[tuple[int, int], Tensor] = {}  # by type and number of the need
        self._classes, tables = self._tables(False)
        self._tensors = [*tables, *self._make(False)]
        self._code = self._code_of(len(tables))
        self._run(PREPARE_FORWARD, 0, 0)

    def _tables(self, grads: bool) -> tuple[Tensor, list[Tensor]]:
        """The table of classes, and the tensors it names. See `classes` in csrc/batching/program.h."""
        flush = self._flush
        tensors: list[Tensor] = []
        tables = flush.tables
        known: dict[int, list[int]] = {}
        sources = [tables.values, {}, flush.outside_tables, {}]
        if grads:
            sources[1] = {c: tables.grad(c) for c, t in tables.values.items() if t.is_floating_point()}
            sources[3] = flush.outside_grad_tables
        for which, source in enumerate(sources):
            for number, table in source.items():
                if table.device == self._device:
                    known.setdefault(number, [-1] * 4)[which] = len(tensors)
                    tensors.append(matrix(table.detach()))
        flat = [-1] * (4 * (max(known, default=-1) + 1))
        for number, indices in known.items():
            flat[4 * number : 4 * number + 4] = indices
        return torch.tensor(flat, dtype=torch.int64, device="cpu"), tensors

    def _code_of(self, first: int) -> Tensor:
        """The programs as `code` of csrc/batching/program.h; their tensors begin at `first`."""
        known = next(p.codes for p in self._programs if p is not None)
        key = (first, self._training, *(-1 if p is None else p.serial for p in self._programs))
        found = known.get(key)
        if found is None:
            if len(known) >= _MOST_CODES:
                known.clear()
            found = known[key] = self._write_code(first)
        return found

    def _write_code(self, first: int) -> Tensor:
        """The programs as `code` of csrc/batching/program.h."""
        head = [len(self._programs), int(self._training)]
        body: list[int] = []
        at = HEAD + TYPE_HEAD * len(self._programs)
        for program in self._programs:
            if program is None:
                head.extend([0] + [-1] * SECTIONS)
                continue
            head.append(first)
            first += len(program.needs)
            for section in program.code:
                head.append(at + len(body))
                body.append(len(section))
                body.extend(section)
        return torch.tensor(head + body, dtype=torch.int64, device="cpu")

    def _make(self, backward: bool) -> list[Tensor]:
        """The tensors of all programs; those of the other direction are left empty."""
        made = []
        placed, training = self._flush.placed, self._training
        for kind, program in enumerate(self._programs):
            if program is None:
                continue
            total, largest = placed["total"][kind], placed["largest"][kind]
            for number, need in enumerate(program.needs):
                role = need.role
                tensor = self._kept.get((kind, number))
                if tensor is not None:
                    pass
                elif role == "parameter":
                    tensor = getattr(program.module, need.parameter).detach()
                elif role == "kept" and training:
                    tensor = self._kept[kind, number] = program.buffer(need, total)
                elif role in ("pack", "bias", "kept"):
                    tensor = None if backward else program.buffer(need, largest)
                    if tensor is not None and role != "kept":
                        self._flush.packed_bytes += tensor.nbytes
                elif backward and role == "grad":
                    like = getattr(program.module, need.parameter)
                    tensor = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
                elif backward:  # "turned", "d_kept", "room", "whole room"
                    tensor = program.buffer(need, largest if role == "room" else total)
                made.append(_EMPTY if tensor is None else tensor)
        return made

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
        self._run(PREPARE_BACKWARD, 0, 0)

    def backward(self, begin: int, end: int) -> None:
        """Run batches [begin, end) backwards, those that a gradient has reached."""
        self._run(BACKWARD, begin, end, torch.from_numpy(self._flush.tables.reached))

    def finish(self, ran: Sequence[bool]) -> None:
        """Gradients of the parameters, over all calls of each type at once, for types of which a batch `ran`."""
        self._run(FINISH, 0, len(self._flush.placed["type"]))
        at = len(self._tensors) - sum(len(p.needs) for p in self._programs if p is not None)
        for kind, program in enumerate(self._programs):
            if program is None:
                continue
            module = program.module
            for number, names in program.grads.items():
                if ran[kind]:
                    for i, name in enumerate(names):
                        p, grad = getattr(module, name), self._tensors[at + number]
                        self._flush.add_captured(p, grad.to(p.dtype) if i == 0 else grad.to(p.dtype, copy=True))
            at += len(program.needs)
        self._tensors = []  # kept buffers stay for another backward; gradients are given away


def types_that_ran(reached: np.ndarray[Any, Any], kinds: np.ndarray[Any, Any], types: int) -> list[bool]:
    """By type: whether a batch of it is marked as run backwards."""
    return [bool(x) for x in np.bincount(kinds, weights=reached == 2, minlength=types) > 0]
