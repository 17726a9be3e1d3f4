# SPDX-License-Identifier: Apache-2.0
"""What the GPU executor launches for a program, compiled once: kernels, and where their operands stand in a record.

A launch record is a row of int64 for each batch: its number of rows, then the fields of every launch (`places.py` in
triton_kernels/batching). Launches have the same arguments for all batches of a program, so a CUDA graph of them serves
every batch of about the same size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from edgeops.batching._classes import value_class
from edgeops.batching._program import BACKWARD, CELLS, FINISH, FORWARD, Place, Program, Step, Where
from edgeops.batching.cell import TENSOR

PLACE, SEGMENTS, LINEAR, WGRAD = 3, 8, 18, 13  # fields, as in triton_kernels/batching
_RECORD, _OPERAND = 6, 8  # integers before the operands, and of an operand, in csrc/runtime/batching/record.h
_MOST_CLASSES = 1024  # columns of a tile of scores
_CELLS = {
    f"{cell}_{way}" for cell in ("lstm", "treelstm", "leaf", "gru", "reset", "treegru") for way in ("fwd", "bwd")
}  # in triton_kernels/batching/cells.py
_FREQUENT = 128  # columns of a tile of an embedding's gradient

Array = np.ndarray[Any, Any]


class Key(NamedTuple):
    """What memory a place lies in: tables of the session by class, or tensors of the program."""

    source: int
    number: int


VALUES, GRADS, OUTSIDE, OUTSIDE_GRADS, LOCAL, SCRATCH, NOWHERE = range(7)


class Launch(NamedTuple):
    """A kernel with its arguments, but for the record and the number of rows."""

    kernel: str  # "module:name" in triton_kernels/batching
    arguments: tuple[int, ...]
    constants: dict[str, Any]
    rows: int  # of a tile; 0 where the number of rows decides (products)
    width: int  # what tiles cover beside rows
    columns: int


class Scatter(NamedTuple):
    """Rows that a launch of segments adds to, which may be named several times: `slot` is an operand of the call."""

    field: int
    slot: int
    named: bool  # by integers; otherwise rows of an operand
    members: bool  # the source has a row for each list, not for each row that is named


class Spec(NamedTuple):
    """A place in a record."""

    field: int
    place: Place
    loose: bool  # read or written number by number: its alignment does not matter


def has_kernels(program: Program) -> bool:
    """Whether there is a kernel for every step: decisions and plain nonlinearities have none yet."""
    return all(
        step not in (Step.DECIDE, Step.DECIDE_GRAD) and (step is not Step.CELL or CELLS[a[0]] in _CELLS)
        for section in (FORWARD, BACKWARD, FINISH)
        for step, a in instructions(program.code[section])
    )


class Plan:
    """Launches of a section of a program.

    Attributes:
        launches: of a batch; `skipped` of one that no gradient has reached.
        length: fields of a record.
        scatters: rows that are added to.
        counts, starts, widths: fields that get the number of rows; where the lists of an operand begin; a number.
        integers: `(slot, most, name, advice)` of integers that must be checked.
        keys: the memory that places lie in.
        scratch: widths of buffers for copies of operands.
    """

    def __init__(self, program: Program, section: int, record: Sequence[int], copies: bool, adds: bool = False) -> None:
        self.program = program
        self.section = section
        self.slots, self.outs = record[4:6]
        self.length = 1
        self.launches: list[Launch] = []
        self.skipped: list[Launch] = []
        self.scatters: list[Scatter] = []
        self.counts: list[int] = []
        self.starts: list[tuple[int, int]] = []
        self.widths: list[tuple[int, int]] = []
        self.integers: list[tuple[int, int, str, str]] = []
        self.scratch: list[int] = []
        self.keys: list[Key] = []
        self.bound: dict[Any, Any] = {}  # launches by size, ready to run
        self.graphs: dict[Any, Any] = {}
        self.seen: set[Any] = set()
        self._operands = [record[_RECORD + _OPERAND * i :][:2] for i in range(self.slots)]
        self._results = [record[_RECORD + _OPERAND * self.slots + 2 * i] for i in range(self.outs)]
        self._copies = copies
        self._copied: dict[Place, Place] = {}
        self._kind = program.dtype
        self._specs: list[Spec] = []
        self._key: dict[Key, int] = {}
        for step, a in instructions(program.adding if adds else program.code[section]):
            self._step(step, a)
        if section == BACKWARD:
            self._clear([Program.d_result(i) for i in range(self.outs)], self.launches)
            kept = [
                place_of(a[5:] if step is Step.ADD else a)
                for step, a in instructions(program.code[FINISH])
                if step in (Step.ADD, Step.WEIGHT_GRAD)
            ]
            self._clear([place for place in dict.fromkeys(kept) if place.where is Where.D_KEPT], self.skipped)
        self._finish()

    # What places are

    def key(self, place: Place) -> Key:
        """The memory a place lies in."""
        if place.where in (Where.OPERAND, Where.D_OPERAND):
            kind, number = self._operands[place.slot]
            grads = place.where is Where.D_OPERAND
            return Key((OUTSIDE if kind == TENSOR else VALUES) + grads, number)
        if place.where in (Where.RESULT, Where.D_RESULT):
            return Key(GRADS if place.where is Where.D_RESULT else VALUES, self._results[place.slot])
        if place.tensor < -1:
            return Key(SCRATCH, -2 - place.tensor)
        return Key(NOWHERE if place.tensor < 0 else LOCAL, place.tensor)

    def _shape(self, place: Place) -> tuple[int, torch.dtype]:
        """Elements of a row of the memory, and their dtype."""
        source, number = self.key(place)
        if source < LOCAL:
            of = value_class(number)
            return math.prod(of.shape), of.dtype
        if source == SCRATCH:
            return self.scratch[number], self._kind
        if source == NOWHERE:
            return 0, self._kind
        need = self.program.needs[number]
        if need.role in ("parameter", "grad"):
            like = getattr(self.program.module, need.parameter)
            wide = torch.promote_types(like.dtype, torch.float32)
            return math.prod(like.shape[1:]), wide if need.role == "grad" else like.dtype
        if need.role in ("pack", "turned"):
            return need.depth, self._kind
        if need.role == "bias":
            return 1, torch.float32
        return need.width, self._kind

    def _width(self, place: Place) -> int:
        return place.width if place.width >= 0 else self._shape(place)[0] - place.column

    def _dtype(self, place: Place) -> torch.dtype:
        return self._shape(place)[1]

    # Fields and launches

    def _fields(self, count: int, *places: tuple[int, Place], loose: Sequence[int] = ()) -> int:
        """Room for a launch's fields, with places at some of them."""
        first = self.length
        self.length += count
        self._specs.extend(Spec(first + at, place, at in loose) for at, place in places)
        return first

    def _launch(
        self, kernel: str, arguments: tuple[int, ...], rows: int, width: int, columns: int, **more: Any
    ) -> None:
        self.launches.append(Launch(kernel, arguments, more, rows, width, columns))

    def _read(self, place: Place) -> Place:
        """A place that is read: a copy of it, where listed operands are to be copied first."""
        if not self._copies or self.section == FINISH or self.key(place).source != VALUES:
            return place
        if place.where is not Where.OPERAND:
            return place
        found = self._copied.get(place)
        if found is None:
            width = self._width(place)
            self.scratch.append(width)
            found = self._copied[place] = Place(Where.ROOM, 0, -1 - len(self.scratch), 0, width)
            self._copy(found, place)
        return found

    def _segments(self, field: int, to: Place, of: Place, add: bool) -> None:
        width = self._width(of)
        rows, columns = (1, _FREQUENT) if self.section == FINISH else tile(width)
        constants = {"ADD": add, "KIND": self._dtype(of), "TO": self._dtype(to), "BLOCK_R": rows, "BLOCK_C": columns}
        self._launch("segments:_segments_kernel", (field, width), rows, width, columns, **constants)

    def _copy(self, to: Place, of: Place) -> None:
        field = self._fields(SEGMENTS, (0, to), (3, of))
        self.counts.append(field + 6)
        self._segments(field, to, of._replace(width=self._width(to)), add=False)

    def _add(self, to: Place, of: Place, members: bool = False) -> None:
        """`to += of`, rows of `to` in any order and any number of times."""
        field = self._fields(SEGMENTS, (0, to), (3, of))
        self.counts.append(field + 6)
        if to.where in (Where.D_OPERAND, Where.NAMED):
            self.scatters.append(Scatter(field, to.slot, to.where is Where.NAMED, members))
        self._segments(field, to, of, add=True)

    def _linear(self, out: Place, weight: int, bias: int, places: Sequence[Place], on: bool, to: Place | None) -> None:
        """A product, two operands at a time; nothing where `to` is given and not there."""
        parts = [self._read(place) for place in places]
        width = self._width(out)
        column = 0
        for i in range(0, len(parts), 2):
            pair = parts[i : i + 2]
            wanted = [(0, out), (3, Place(Where.ROOM, 0, weight, column, -1))]
            wanted += [(9 + PLACE * j, part) for j, part in enumerate(pair)]
            with_bias = bias >= 0 and i == 0
            if with_bias:
                wanted.append((6, Place(Where.ROOM, 0, bias, 0, -1)))
            if to is not None:
                wanted.append((15, to))
            field = self._fields(LINEAR, *wanted, loose=(6, 15))
            constants = {
                "HAS_SECOND": len(pair) == 2,
                "HAS_BIAS": with_bias,
                "ON": on or i > 0,
                "HAS_GUARD": to is not None,
                "KIND": self._kind,
            }
            depths = self._width(pair[0]), self._width(pair[-1])
            self._launch("linear:_linear_kernel", (field, width, *depths), 0, width, 0, **constants)
            column += sum(self._width(part) for part in pair)

    def _step(self, step: Step, a: list[int]) -> None:
        if step in (Step.LINEAR, Step.LINEAR_ADD, Step.LINEAR_ON):
            out, rest = place_of(a), a[5:]
            to = None
            if step is Step.LINEAR_ADD:
                to, out, rest = out, place_of(rest), rest[5:]
            weight, rest = rest[0], rest[1:]
            bias, rest = (rest[0], rest[1:]) if step is Step.LINEAR else (-1, rest)
            parts = [place_of(rest[1 + 5 * i :]) for i in range(rest[0])]
            self._check_named(parts)
            self._linear(out, weight, bias, parts, step is Step.LINEAR_ON, to)
            if to is not None:
                self._add(to, out)
        elif step is Step.CELL:
            places = [self._read(place_of(a[3 + 5 * i :])) for i in range(a[2])]
            field = self._fields(PLACE * a[2], *((PLACE * i, place) for i, place in enumerate(places)))
            rows, columns = tile(a[1])
            constants = {"KIND": self._kind, "BLOCK_R": rows, "BLOCK_C": columns}
            self._launch(f"cells:_{CELLS[a[0]]}_kernel", (field, a[1]), rows, a[1], columns, **constants)
        elif step is Step.ADD:
            self._add(place_of(a), place_of(a[5:]))
        elif step is Step.COPY:
            self._check_named([place_of(a[5:])])
            self._copy(place_of(a), place_of(a[5:]))
        elif step is Step.SUM:
            to, of = place_of(a), place_of(a[5:])
            field = self._fields(SEGMENTS, (0, to), (3, of))
            self.counts.append(field + 6)
            self.starts.append((field + 7, of.slot))
            self._segments(field, to, of, add=False)
        elif step is Step.SPREAD:
            self._add(place_of(a), place_of(a[5:]), members=True)
        elif step in (Step.CROSS_ENTROPY, Step.CROSS_ENTROPY_GRAD):
            self._cross_entropy([place_of(a[i:]) for i in range(0, len(a) - 1, 5)], a[-1])
        elif step is Step.WEIGHT_GRAD:
            self._weight_grad(a)
        else:
            raise AssertionError(f"a step that batches do not have: {step!r}")

    def _check_named(self, places: Sequence[Place]) -> None:
        if self.section != FORWARD:
            return
        for place in places:
            if place.where is Where.NAMED:
                most = len(getattr(self.program.module, self.program.needs[place.tensor].parameter))
                self.integers.append((place.slot, most, "ids", "Check num_embeddings and the vocabulary."))

    def _cross_entropy(self, places: list[Place], slot: int) -> None:
        classes = self._width(places[0])
        if self.section == FORWARD:
            self.integers.append((slot, classes, "labels", "Check the number of classes."))
        places = [*places, Place(Where.NAMED, slot, -1, 0, 0)]
        wanted = [(PLACE * i, place) for i, place in enumerate(places)]
        field = self._fields(PLACE * len(places), *wanted, loose=[at for at, _ in wanted[-2:]])  # losses, labels
        columns = min(power_of_2(max(classes, 16)), _MOST_CLASSES)
        rows = max(1, 1024 // columns)
        way, width = ("fwd", 1) if len(places) == 3 else ("bwd", classes)
        constants = {"KIND": self._kind, "BLOCK_R": rows, "BLOCK_C": columns}
        self._launch(f"loss:_cross_entropy_{way}_kernel", (field, classes), rows, width, columns, **constants)

    def _weight_grad(self, a: list[int]) -> None:
        grad, (dweight, dbias, fresh, count) = place_of(a), a[5:9]
        column = 0
        for i in range(count):
            part, with_bias = place_of(a[9 + 5 * i :]), dbias >= 0 and i == 0
            wanted = [(1, grad), (4, part), (7, Place(Where.ROOM, 0, dweight, 0, -1))]
            if with_bias:
                wanted.append((10, Place(Where.ROOM, 0, dbias, 0, -1)))
            field, width = self._fields(WGRAD, *wanted, loose=(7, 10)), self._width(part)
            self.counts.append(field)
            constants = {
                "HAS_BIAS": with_bias,
                "ADD": not fresh & 1,
                "ADD_BIAS": not fresh & 2,
                "KIND": self._kind,
            }
            sizes = field, self._width(grad), width, column
            self._launch("linear:_wgrad_kernel", sizes, 0, width, self._width(grad), **constants)
            column += width

    def _clear(self, places: Sequence[Place], launches: list[Launch]) -> None:
        """Zeros in the first m rows of dense places."""
        kinds: dict[torch.dtype, list[Place]] = {}
        for place in places:
            if self._dtype(place).is_floating_point:
                kinds.setdefault(self._dtype(place), []).append(place)
        for kind, chosen in kinds.items():
            wanted = [(PLACE * i, place) for i, place in enumerate(chosen)]
            field = self._fields(PLACE * len(chosen), *wanted, loose=[at for at, _ in wanted])
            # in place of a list
            self.widths.extend((field + PLACE * i + 1, self._width(place)) for i, place in enumerate(chosen))
            constants = {"COUNT": len(chosen), "KIND": kind, "BLOCK_R": 4, "BLOCK_C": 256}
            launches.append(Launch("segments:_clear_kernel", (field,), constants, 4, 1, 1))

    # Records

    def _finish(self) -> None:
        """The specs as arrays."""
        columns = _RECORD + _OPERAND * self.slots + 2 * self.outs
        zero, minus = columns, columns + 1  # constants behind a record
        rows: list[tuple[int, ...]] = []
        for field, place, loose in self._specs:
            stride, dtype = self._shape(place)
            key = self.key(place)
            if key not in self._key:
                self._key[key] = len(self.keys)
                self.keys.append(key)
            first, at = zero, zero
            if place.where in (Where.OPERAND, Where.D_OPERAND):
                first, at = _RECORD + _OPERAND * place.slot + 4, _RECORD + _OPERAND * place.slot + 2
            elif place.where in (Where.RESULT, Where.D_RESULT):
                first = _RECORD + _OPERAND * self.slots + 2 * place.slot + 1
            elif place.where in (Where.KEPT, Where.D_KEPT) and self.section != FINISH:
                first = 3
            elif place.where is Where.NAMED:
                first, at = minus, _RECORD + _OPERAND * place.slot + 2
            named, kept = place.where is Where.NAMED, place.where is Where.KEPT
            numbers = field, self._key[key], place.column * dtype.itemsize, stride * dtype.itemsize, stride, first, at
            rows.append((*numbers, named, kept, loose))
        table = np.array(rows, np.int64).reshape(len(rows), 10).T
        self._fields_of, self._key_of, self._offset, self._step_bytes, self._stride, self._first, self._at = table[:7]
        self._named, self._kept = table[7] != 0, table[8] != 0
        self._tight = table[9] == 0
        self.aligned = bool(np.all(self._stride[self._tight] % 16 == 0))
        self._first_alone = np.where(self._kept, zero, self._first)  # of kept rows, those of one batch
        self._constant = np.zeros(self.length, np.int64)
        self._constant[self._fields_of + 2] = self._stride
        self._counts = np.array([0, *self.counts])

    def fill(self, records: Array, pointers: Array, rows: int, numbers: int, training: bool) -> tuple[Array, bool]:
        """Launch records for batches.

        Args:
            records: `[n, columns]`, as csrc/runtime/batching/record.h has them.
            pointers: by key, addresses of the memory; 0 where there is none.
            rows, numbers: addresses of the flush's int32 lists.
            training: whether kept rows are those of the call; otherwise batches use the first ones.

        Returns:
            The records, and whether all places are aligned to 16 bytes.
        """
        count, columns = records.shape
        source = np.empty((count, columns + 2), np.int64)
        source[:, :columns] = records
        source[:, columns:] = 0, -1
        pointer = pointers[self._key_of]
        base = pointer + self._offset
        first = source[:, self._first if training else self._first_alone]
        listed = first < 0
        filled = np.empty((count, self.length), np.int64)
        filled[:] = self._constant
        filled[:, self._fields_of] = (base + np.maximum(first, 0) * self._step_bytes) * (pointer != 0)
        lists = np.where(self._named, numbers, rows) + 4 * source[:, self._at]
        filled[:, self._fields_of + 1] = lists * listed
        filled[:, self._counts] = records[:, 2:3]
        for field, width in self.widths:
            filled[:, field] = width
        return filled, self.aligned and not (base[self._tight] & 15).any()

    def sizes(self, records: Array) -> list[int]:
        """The rows that launches must cover, as powers of two: those of batches, or of their lists."""
        largest = records[:, 2]
        for slot, (kind, _) in enumerate(self._operands):
            if kind == 1:
                largest = np.maximum(largest, records[:, _RECORD + _OPERAND * slot + 3])
        return [power_of_2(m) for m in largest.tolist()]


def operand_columns(slot: int) -> tuple[int, int, int, int]:
    """Where a record has an operand's `at`, `count`, `first` and `starts`."""
    begin = _RECORD + _OPERAND * slot
    return begin + 2, begin + 3, begin + 4, begin + 5


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def tile(h: int) -> tuple[int, int]:
    """Rows and columns of a tile of rows h wide: small ones, so that small batches fill several units."""
    columns = min(power_of_2(max(h, 16)), 256)
    return max(1, 512 // columns), columns


def instructions(section: Sequence[int]) -> Iterator[tuple[Step, list[int]]]:
    """The steps of a section and their arguments."""
    at = 0
    while at < len(section):
        length, step = section[at : at + 2]
        yield Step(step), list(section[at + 2 : at + length])
        at += length


def place_of(code: Sequence[int]) -> Place:
    """A place from its first five integers."""
    where, slot, tensor, column, width = code[:5]
    return Place(Where(where), slot, tensor, column, width)
