# SPDX-License-Identifier: Apache-2.0
"""Programs of built-in cells: what a batch computes, forward and backward, as integers that one native op runs.

A `Program` is written once for each signature of a cell: places (rows of operands, results, kept buffers) and steps on
them. csrc/batching/program.h says how both are coded; `_reference_batches.py` runs them in plain PyTorch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgeops.batching._runtime import runtime

CELLS = (
    "lstm_fwd",
    "lstm_bwd",
    "treelstm_fwd",
    "treelstm_bwd",
    "leaf_fwd",
    "leaf_bwd",
    "gru_fwd",
    "gru_bwd",
    "reset_fwd",
    "reset_bwd",
    "treegru_fwd",
    "treegru_bwd",
    "tanh_fwd",
    "tanh_bwd",
    "sigmoid_fwd",
    "sigmoid_bwd",
    "relu_fwd",
    "relu_bwd",
)  # in the order of csrc/batching/cells.h
HEAD, SECTIONS = 3, 5
TYPE_HEAD = 1 + SECTIONS
FORWARD, BACKWARD, FINISH, PREPARE_FORWARD, PREPARE_BACKWARD = range(SECTIONS)
_serials = itertools.count()
_FORWARD, _BACKWARD = ("kept", "room"), ("d_kept", "room", "whole room")
_PACKED = ("pack", "bias"), ("turned",)  # forward, backward
_MOST_IDLE = 2  # buffers that are kept at least
_IDLE_BYTES = 2**22  # and as many more as fit
_FEWEST_ROWS = 32  # of buffers: those of small flushes fit one another
PANELS = {"cpu"}  # kinds of devices whose kernels take weights in panels


def panels(device: torch.device) -> bool:
    """Whether products on a device take weights in panels; otherwise as they are."""
    return device.type in PANELS


class Step(IntEnum):
    """Instructions; program.h says what they take."""

    LINEAR = 0
    LINEAR_ADD = 1
    CELL = 2
    ADD = 3
    COPY = 4
    SUM = 5
    SPREAD = 6
    WEIGHT_GRAD = 7
    PACK = 8
    BIAS = 9
    CROSS_ENTROPY = 10
    CROSS_ENTROPY_GRAD = 11
    LINEAR_ON = 12
    DECIDE = 13
    DECIDE_GRAD = 14


class Where(IntEnum):
    """Kinds of places; program.h says which rows they stand for."""

    OPERAND = 0
    RESULT = 1
    D_OPERAND = 2
    D_RESULT = 3
    KEPT = 4
    D_KEPT = 5
    ROOM = 6
    NAMED = 7


class Place(NamedTuple):
    """A matrix of one row a call: columns of an operand, of a result or of a tensor of the program."""

    where: Where
    slot: int
    tensor: int
    column: int
    width: int

    def columns(self, begin: int, end: int) -> Place:
        """Some of the columns."""
        return self._replace(column=self.column + begin, width=end - begin)


class Need(NamedTuple):
    """A tensor of a program.

    `role` is `"parameter"`, `"grad"` (of a parameter), `"pack"` (weights of `width` rows and `depth` columns, for
    forward) or `"turned"` (for backward), `"bias"`, or a buffer of rows `width` wide: `"kept"`, `"d_kept"`, `"room"`,
    or `"whole room"` (backward, rows for all calls).
    """

    role: str
    parameter: str = ""
    width: int = 0
    depth: int = 0


class Linear(NamedTuple):
    """A product that was written down: what `Program.backprop` needs to know of it."""

    grad: Place
    parts: tuple[tuple[str, tuple[Place, ...]], ...]


@dataclass
class Buffers:
    """Memory of a program for one flush, by number of the need; `None` for what is no buffer or of the other direction.

    Fresh memory costs more to touch than small batches to compute, so programs keep it.
    """

    tensors: list[Tensor | None]
    kept: int  # rows of buffers that keep one a call
    largest: int  # rows of buffers for one batch
    bytes: int  # of all of them


class Slots(NamedTuple):
    """Which tensors of a program are what, by number of the need; of buffers and packed weights by direction."""

    parameters: list[tuple[int, str]]
    grads: list[tuple[int, str]]
    buffers: tuple[list[int], list[int]]
    packed: tuple[list[int], list[int]]


class Packed:
    """Weights of a program as products of one direction take them. With its last user it goes back to the program.

    The flushes of a session share it.

    Attributes:
        tensors: by number of the need; `None` for others.
        stamp: of the parameters whose packed form stands here, for other sessions (`Program.stamp`).
        version: of the same for this session (`Program.version`).
    """

    def __init__(self, program: Program, backward: bool) -> None:
        self._home = program.idle_packed[backward]
        self.stamp: Any = None
        self.version: Any = None
        if self._home:
            self.stamp, self.tensors = self._home.pop()
        else:
            self.tensors = program.new_packed(backward)

    def __del__(self) -> None:
        if len(self._home) < _MOST_IDLE:
            self._home.append((self.stamp, self.tensors))


class Program:
    """Steps of a cell on a module's parameters; `self.code` are its sections, `self.needs` its tensors."""

    def __init__(self, module: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.module = module
        self.dtype = dtype  # of rows and buffers
        self.device = device
        self.code: tuple[list[int], ...] = tuple([] for _ in range(SECTIONS))
        self.needs: list[Need] = []
        self.begun_bytes = 0  # a call: rows of operands that forward copies, to add products to them
        self.codes: dict[Any, Tensor] = {}  # of flushes whose first program this is
        self.grads: dict[int, tuple[str, ...]] = {}  # tensor: the parameters whose gradient it is
        self.written: set[int] = set()  # gradients that need no zeros to begin with
        self.serial = next(_serials)
        self._known: dict[Any, int] = {}
        self._packed: list[str] = []  # parameters that forward packs
        self._idle: tuple[list[Buffers], list[Buffers]] = ([], [])  # forward, backward
        self._idle_bytes = 0
        self.idle_packed: tuple[list[Any], list[Any]] = ([], [])  # the same for stamps and tensors of `Packed`

    def _need(self, key: Any, need: Need) -> int:
        """The number of a tensor; what has a key is there once."""
        if key is None or key not in self._known:
            self.needs.append(need)
            if key is None:
                return len(self.needs) - 1
            self._known[key] = len(self.needs) - 1
        return self._known[key]

    def _write(self, section: int, step: Step, *arguments: Any) -> None:
        flat: list[int] = []
        for x in arguments:
            flat.extend(int(y) for y in x) if isinstance(x, tuple) else flat.append(int(x))
        self.code[section].extend([len(flat) + 2, int(step), *flat])

    def buffers(self, kept: int, largest: int, backward: bool) -> Buffers:
        """Buffers for so many kept rows and so many rows in a batch: used ones where they fit. See `release`."""
        idle = self._idle[backward]
        for at in range(len(idle) - 1, -1, -1):
            found = idle[at]
            if kept <= found.kept <= 4 * kept + 64 and largest <= found.largest <= 4 * largest + 64:
                self._idle_bytes -= found.bytes
                return idle.pop(at)
        kept, largest = max(kept + kept // 4, _FEWEST_ROWS), max(largest + largest // 4, _FEWEST_ROWS)
        roles = _BACKWARD if backward else _FORWARD
        tensors = [self._buffer(need, kept, largest) if need.role in roles else None for need in self.needs]
        return Buffers(tensors, kept, largest, sum(x.nbytes for x in tensors if x is not None))

    @functools.cached_property
    def slots(self) -> Slots:
        """Of the program as it was written."""

        def of(roles: Sequence[str]) -> list[int]:
            return [number for number, need in enumerate(self.needs) if need.role in roles]

        return Slots(
            [(number, self.needs[number].parameter) for number in of(["parameter"])],
            [(number, self.needs[number].parameter) for number in of(["grad"])],
            (of(_FORWARD), of(_BACKWARD)),
            (of(_PACKED[0]), of(_PACKED[1])),
        )

    @functools.cached_property
    def adding(self) -> list[int]:
        """`code[FINISH]`, but products add to gradients that are there."""
        code = list(self.code[FINISH])
        at = 0
        while at < len(code):
            if code[at + 1] == Step.WEIGHT_GRAD:
                code[at + 9] = 0  # behind a place of five numbers and two tensors
            at += code[at]
        return code

    def new_packed(self, backward: bool) -> list[Tensor | None]:
        """Memory for packed weights, by number of the need."""
        return [self._buffer(need, 0, 0) if need.role in _PACKED[backward] else None for need in self.needs]

    def version(self) -> Any:
        """What the parameters are now, as PyTorch counts changes (not those through `.data`); `None` if it does not."""
        try:
            return [(p.data_ptr(), p._version) for p in self.module._parameters.values() if p is not None]
        except RuntimeError:  # inference tensors do not count
            return None

    def stamp(self) -> Any:
        """What the packed parameters are now: equal for as long as they have not changed, `None` where that is unknown.

        Changes in place count as PyTorch counts them; writes through `.data`, which it does not count, show in a digest
        of the memory, except for single elements of weights over 256 KiB.
        """
        seen, blocks = [], []
        for name in self._packed:
            p = self.module._parameters[name]
            if p.device.type != "cpu" or p.is_inference() or not p.is_contiguous():
                return None
            blocks.append((p.data_ptr(), p.nbytes))
            seen.append((p._version, p.dtype))
        return seen, blocks, runtime().digest(blocks)

    def release(self, buffers: Buffers, backward: bool) -> None:
        """Nobody uses these buffers any more."""
        idle, size = self._idle[backward], buffers.bytes
        while len(idle) >= _MOST_IDLE and self._idle_bytes + size > _IDLE_BYTES:
            self._idle_bytes -= idle.pop(0).bytes
        idle.append(buffers)
        self._idle_bytes += size

    def _buffer(self, need: Need, kept: int, largest: int) -> Tensor:
        wide = torch.promote_types(self.dtype, torch.float32)
        panel = 64 // wide.itemsize
        shape: tuple[int, ...] = (largest if need.role == "room" else kept, need.width)
        dtype = self.dtype
        if need.role in ("pack", "turned") and not panels(self.device):
            shape = (need.width, need.depth)  # weights as they are
        elif need.role in ("pack", "turned"):
            shape, dtype = (-(-need.width // panel), need.depth, panel), wide
        elif need.role == "bias":
            shape, dtype = (-(-need.width // panel) * panel,), wide
        return torch.empty(shape, dtype=dtype, device=self.device)

    @staticmethod
    def operand(slot: int, width: int) -> Place:
        """Rows of an operand."""
        return Place(Where.OPERAND, slot, -1, 0, width)

    @staticmethod
    def result(which: int) -> Place:
        """Rows of a result."""
        return Place(Where.RESULT, which, -1, 0, -1)

    @staticmethod
    def d_operand(slot: int) -> Place:
        """Where gradients of an operand are added."""
        return Place(Where.D_OPERAND, slot, -1, 0, -1)

    @staticmethod
    def d_result(which: int) -> Place:
        """The gradients that have come to a result."""
        return Place(Where.D_RESULT, which, -1, 0, -1)

    def kept(self, width: int) -> Place:
        """A buffer for backward, a row for every call."""
        return Place(Where.KEPT, 0, self._need(None, Need("kept", width=width)), 0, width)

    def d_kept(self, width: int) -> Place:
        """A buffer of gradients for the end, a row for every call; zeros where no gradient came."""
        return Place(Where.D_KEPT, 0, self._need(None, Need("d_kept", width=width)), 0, width)

    def room(self, width: int, role: str = "room") -> Place:
        """A buffer for one batch; with role `"whole room"` for the end, for all calls at once."""
        return Place(Where.ROOM, 0, self._need((role, width), Need(role, width=width)), 0, width)

    def named(self, slot: int, parameter: str, width: int, grad: bool = False) -> Place:
        """Rows of a parameter, or of its gradient, by an integer operand."""
        made = self._grad((parameter,)) if grad else self._parameter(parameter)
        return Place(Where.NAMED, slot, made, 0, width)

    def _parameter(self, name: str) -> int:
        return self._need(("parameter", name), Need("parameter", name))

    def _grad(self, names: tuple[str, ...]) -> int:
        which = self._need(("grad", names), Need("grad", names[0]))
        self.grads[which] = names
        return which

    def _pack(self, section: int, role: str, chosen: tuple[tuple[str, int, int], ...]) -> int:
        """Columns of weights, `(name, first, columns)`, side by side; turned round for backward."""
        key = (role, chosen)
        if key in self._known:
            return self._known[key]
        turned = role == "turned"
        shapes = [(getattr(self.module, name).shape[0], columns) for name, _, columns in chosen]
        width = shapes[0][turned]
        which = self._need(key, Need(role, width=width, depth=sum(shape[not turned] for shape in shapes)))
        parts = [(self._parameter(name), first, columns, int(turned)) for name, first, columns in chosen]
        self._write(section, Step.PACK, which, len(parts), *parts)
        if not turned:
            self._packed.extend(name for name, _, _ in chosen)
        return which

    def linear(
        self,
        out: Place,
        grad: Place,
        parts: dict[str, Sequence[Place]],
        biases: Sequence[str] = (),
        on: bool = False,
    ) -> Linear:
        """`out = sum over parts of concat(places) @ parameter.T, plus biases`; `grad` is where out's gradients will be.

        With `on` (and no biases) it is added to what is in `out`. The gradients of the parameters are computed at the
        end; `backprop` computes those of the places.
        """
        m = self.module
        pack = self._pack(PREPARE_FORWARD, "pack", tuple((name, 0, getattr(m, name).shape[1]) for name in parts))
        there = tuple(b for b in biases if getattr(m, b) is not None)
        bias = -1
        if there and ("bias", there) in self._known:
            bias = self._known["bias", there]
        elif there:
            bias = self._need(("bias", there), Need("bias", width=len(getattr(m, there[0]))))
            self._packed.extend(there)
            self._write(PREPARE_FORWARD, Step.BIAS, bias, len(there), *(self._parameter(b) for b in there))
        places = [place for part in parts.values() for place in part]
        if on:
            self._write(0, Step.LINEAR_ON, out, pack, len(places), *places)
        else:
            self._write(0, Step.LINEAR, out, pack, bias, len(places), *places)
        for i, (weight, part) in enumerate(parts.items()):
            fresh = int(("grad", (weight,)) not in self._known)
            dbias = -1
            if there and i == 0:
                fresh += 2 * (("grad", there) not in self._known)
                dbias = self._grad(there)
            dweight = self._grad((weight,))
            self.written |= {dweight, dbias} - {-1}
            self._write(FINISH, Step.WEIGHT_GRAD, grad, dweight, dbias, fresh, len(part), *part)
        return Linear(grad, tuple((weight, tuple(part)) for weight, part in parts.items()))

    def backprop(self, to: Place, of: Place, linears: Sequence[Linear], section: int = 1, add: bool = True) -> None:
        """Gradients that come through products to the place `of`, added to the place `to` or written to it."""
        grads: list[Place] = []
        slices: list[tuple[str, int]] = []
        for linear in linears:
            for weight, part in linear.parts:
                at = 0
                for place in part:
                    if place == of:
                        grads.append(linear.grad)
                        slices.append((weight, at))
                    at += place.width
        width = of.width
        turned = self._pack(PREPARE_BACKWARD, "turned", tuple((name, first, width) for name, first in slices))
        if add:
            room = self.room(width, "whole room" if section == 2 else "room")
            self._write(section, Step.LINEAR_ADD, to, room, turned, len(grads), *grads)
        else:
            self._write(section, Step.LINEAR, to, turned, -1, len(grads), *grads)

    def cell(self, section: int, name: str, h: int, *places: Place) -> None:
        """A pointwise cell of states `h` wide; its arguments are those of the op `_<name>`."""
        self._write(section, Step.CELL, CELLS.index(name), h, len(places), *places)

    def cross_entropy(self, scores: Place, dscores: Place, which: int, slot: int) -> None:
        """Result `which`: the cross entropy of scores with the classes an integer operand names, with its backward."""
        self._write(0, Step.CROSS_ENTROPY, scores, self.result(which), slot)
        self._write(1, Step.CROSS_ENTROPY_GRAD, dscores, scores, self.d_result(which), slot)

    def decide(self, slot: int, width: int, which: int) -> None:
        """Result `which`: -log of the probability of what the integers behind operand `slot`, its scores, decided."""
        scores = self.operand(slot, width)
        self._write(0, Step.DECIDE, scores, self.result(which), slot + 1)
        self._write(1, Step.DECIDE_GRAD, self.d_operand(slot), scores, self.d_result(which), slot + 1)

    def add(self, to: Place, place: Place, section: int = 1) -> None:
        """`to += place`, nothing where `to` is not wanted."""
        self._write(section, Step.ADD, to, place)

    def copy(self, to: Place, place: Place, section: int = 0) -> None:
        """`to = place`."""
        self._write(section, Step.COPY, to, place)
        if section == 0 and place.where is Where.OPERAND:
            self.begun_bytes += place.width * self.dtype.itemsize

    def sum(self, to: Place, slot: int) -> None:
        """`to = the sums of the lists` of an operand, with its backward."""
        self._write(0, Step.SUM, to, self.operand(slot, -1))
        self._write(1, Step.SPREAD, self.d_operand(slot), self.d_result(to.slot))
