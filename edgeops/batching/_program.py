# SPDX-License-Identifier: Apache-2.0
"""Programs of built-in cells: what a batch computes, forward and backward, as integers that one native op runs.

A `Program` is written once for each signature of a cell: places (rows of operands, results, kept buffers) and steps on
them. csrc/batching/program.h says how both are coded; `_reference_batches.py` runs them in plain PyTorch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
)  # in the order of csrc/batching/cells.h
HEAD, TYPE_HEAD = 2, 4
_serials = itertools.count()


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
    """A tensor of a program: made of `parameters` by `make`, or a buffer of rows so wide.

    `role` is `"const"` (forward and backward), `"table"` (a parameter itself), `"turned"` (backward), `"kept"`,
    `"d_kept"`, `"room"`, `"whole room"` (backward, rows for all calls) or `"grad"` (of a parameter).
    """

    role: str
    make: Callable[..., Tensor] | None
    parameters: tuple[str, ...]
    width: int


class Linear(NamedTuple):
    """A product that was written down: what `Program.backprop` needs to know of it."""

    grad: Place
    parts: tuple[tuple[str, tuple[Place, ...]], ...]


class Program:
    """Steps of a cell on a module's parameters; `self.code` are the three sections, `self.needs` the tensors."""

    def __init__(self, module: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.module = module
        self.dtype = dtype  # of rows and buffers
        self.device = device
        self.code: tuple[list[int], list[int], list[int]] = ([], [], [])
        self.needs: list[Need] = []
        self.codes: dict[Any, Tensor] = {}  # of flushes whose first program this is
        self.grads: dict[int, tuple[str, ...]] = {}  # tensor: the parameters whose gradient it is
        self.serial = next(_serials)
        self._known: dict[Any, int] = {}

    def _need(
        self,
        key: Any,
        role: str,
        make: Callable[..., Tensor] | None = None,
        parameters: tuple[str, ...] = (),
        width: int = 0,
    ) -> int:
        if key is None or key not in self._known:
            self.needs.append(Need(role, make, parameters, width))
            if key is None:
                return len(self.needs) - 1
            self._known[key] = len(self.needs) - 1
        return self._known[key]

    def make(self, number: int) -> Tensor:
        """A tensor made of parameters. Made anew for every flush: that costs less than to find out that it need not."""
        _, make, names, _ = self.needs[number]
        assert make is not None
        return make(*(getattr(self.module, name).detach() for name in names))

    def _write(self, section: int, step: Step, *arguments: Any) -> None:
        flat: list[int] = []
        for x in arguments:
            flat.extend(int(y) for y in x) if isinstance(x, tuple) else flat.append(int(x))
        self.code[section].extend([len(flat) + 2, int(step), *flat])

    def buffer(self, rows: int, width: int) -> Tensor:
        """Memory for rows, without content."""
        return torch.empty(rows, width, dtype=self.dtype, device=self.device)

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
        return Place(Where.KEPT, 0, self._need(None, "kept", width=width), 0, width)

    def d_kept(self, width: int) -> Place:
        """A buffer of gradients for the end, a row for every call; zeros where no gradient came."""
        return Place(Where.D_KEPT, 0, self._need(None, "d_kept", width=width), 0, width)

    def room(self, width: int, role: str = "room") -> Place:
        """A buffer for one batch; with role `"whole room"` for the end, for all calls at once."""
        return Place(Where.ROOM, 0, self._need((role, width), role, width=width), 0, width)

    def named(self, slot: int, parameter: str, width: int, grad: bool = False) -> Place:
        """Rows of a parameter, or of its gradient, by an integer operand."""
        made = self._grad((parameter,)) if grad else self._need(("table", parameter), "table", _same, (parameter,))
        return Place(Where.NAMED, slot, made, 0, width)

    def _grad(self, parameters: tuple[str, ...]) -> int:
        which = self._need(("grad", parameters), "grad", _same, parameters[:1])
        self.grads[which] = parameters
        return which

    def linear(
        self, out: Place, grad: Place, parts: dict[str, Sequence[Place]], biases: Sequence[str] = ()
    ) -> Linear:
        """`out = sum over parts of concat(places) @ parameter.T, plus biases`; `grad` is where out's gradients will be.

        The gradients of the parameters are computed at the end; `backprop` computes those of the places.
        """
        m = self.module
        weights = tuple(parts)
        pack = self._need(("pack", weights), "const", packed, weights)
        there = tuple(b for b in biases if getattr(m, b) is not None)
        bias = -1
        if there:
            bias = self._need(("bias", there), "const", padded, there)
        places = [place for part in parts.values() for place in part]
        self._write(0, Step.LINEAR, out, pack, bias, len(places), *places)
        for i, (weight, part) in enumerate(parts.items()):
            dbias = self._grad(there) if there and i == 0 else -1
            self._write(2, Step.WEIGHT_GRAD, grad, self._grad((weight,)), dbias, len(part), *part)
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
        width, chosen = of.width, tuple(slices)
        turned = self._need(
            ("turned", chosen, width),
            "turned",
            lambda *given: packed(*(w[:, k : k + width].t() for w, (_, k) in zip(given, chosen, strict=True))),
            tuple(w for w, _ in chosen),
        )
        if add:
            room = self.room(width, "whole room" if section == 2 else "room")
            self._write(section, Step.LINEAR_ADD, to, room, turned, len(grads), *grads)
        else:
            self._write(section, Step.LINEAR, to, turned, -1, len(grads), *grads)

    def cell(self, section: int, name: str, h: int, *places: Place) -> None:
        """A pointwise cell of states `h` wide; its arguments are those of the op `_<name>`."""
        self._write(section, Step.CELL, CELLS.index(name), h, len(places), *places)

    def add(self, to: Place, place: Place, section: int = 1) -> None:
        """`to += place`, nothing where `to` is not wanted."""
        self._write(section, Step.ADD, to, place)

    def copy(self, to: Place, place: Place, section: int = 0) -> None:
        """`to = place`."""
        self._write(section, Step.COPY, to, place)

    def sum(self, to: Place, slot: int) -> None:
        """`to = the sums of the lists` of an operand, with its backward."""
        self._write(0, Step.SUM, to, self.operand(slot, -1))
        self._write(1, Step.SPREAD, self.d_operand(slot), self.d_result(to.slot))


def _same(x: Tensor) -> Tensor:
    return x


def packed(*weights: Tensor) -> Tensor:
    """Weights side by side in the kernels' own order; GPUs take them as they are."""
    if weights[0].device.type != "cpu":
        return torch.cat(weights, 1)
    found: Tensor = torch.ops.edgeops._rows_linear_pack.default(weights)
    return found


def padded(*biases: Tensor) -> Tensor:
    """The sum of biases in the compute dtype, with zeros up to the end of a packed weight's last panel."""
    bias = biases[0] if len(biases) == 1 else biases[0] + biases[1]
    if bias.device.type != "cpu":
        return bias
    wide = torch.promote_types(bias.dtype, torch.float32)
    width = 64 // wide.itemsize
    if bias.dtype == wide and len(bias) % width == 0:
        return bias.contiguous()
    return torch.nn.functional.pad(bias.to(wide), (0, -len(bias) % width)).contiguous()
