# SPDX-License-Identifier: Apache-2.0
"""Runs the programs of a flush on a GPU: one upload a direction, then launches alone; the host never waits.

Forward sends all index lists with the launch records; backward sends its records, which name gradients that were not
there before. `_gpu_plan.py` says what is launched, `_gpu_graphs.py` how.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeops.batching._classes import value_class
from edgeops.batching._cuda import TRITON_DTYPES
from edgeops.batching._gpu_graphs import Launcher
from edgeops.batching._gpu_lists import Segments, makers_of, members_of, numbers_of, rows_of, segments
from edgeops.batching._gpu_plan import (
    GRADS,
    LOCAL,
    NOWHERE,
    OUTSIDE,
    OUTSIDE_GRADS,
    SCRATCH,
    VALUES,
    Key,
    Plan,
    Scatter,
    has_kernels,
    instructions,
    operand_columns,
    power_of_2,
)
from edgeops.batching._gpu_upload import Upload
from edgeops.batching._program import (
    BACKWARD,
    FINISH,
    FORWARD,
    PREPARE_BACKWARD,
    PREPARE_FORWARD,
    Program,
    Step,
    panels,
)
from edgeops.batching._runner import Runner

Array = np.ndarray[Any, Any]
_PLANS: weakref.WeakKeyDictionary[Program, dict[Any, Plan]] = weakref.WeakKeyDictionary()
_SOMEWHERE = 16  # an address for what has a list alone
_EMPTY = torch.empty(0, device="cpu")


@functools.cache
def _compiles(device: torch.device) -> bool:
    """Whether triton is there and compiles for a device."""
    if importlib.util.find_spec("triton") is None:
        return False
    nvidia = device.type == "cuda" and torch.version.hip is None
    return not nvidia or torch.cuda.get_device_capability(device) >= (7, 0)


def serves(device: torch.device, programs: Sequence[Program | None]) -> bool:
    """Whether the kernels here run these programs: on a GPU, with triton, in dtypes and with steps that it has."""
    if panels(device) or not _compiles(device):
        return False
    for p in programs:
        if p is not None and (p.dtype not in TRITON_DTYPES or not has_kernels(p)):
            return False
        if p is not None and p.module is not None:
            tensors = [x for x in p.module._parameters.values() if x is not None]
            if not all(x.is_contiguous() for x in tensors):
                return False
    return True


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes a GPU current: Triton launches there."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def plan_of(program: Program, section: int, record: Sequence[int], copies: bool, adds: bool = False) -> Plan:
    """The plan of a section, compiled once; `adds` at the end to gradients that another flush has left."""
    plans = _PLANS.setdefault(program, {})
    key = section, copies, adds
    if key not in plans:
        plans[key] = Plan(program, section, record, copies, adds)
    return plans[key]


class _Type:
    """The batches of one program in a flush."""

    def __init__(self, program: Program, batches: Array, records: Array, copies: bool, training: bool) -> None:
        self.program = program
        self.batches = batches
        self.records = records
        sections = (FORWARD, BACKWARD, FINISH) if training else (FORWARD,)
        self.plans = {section: plan_of(program, section, records[0].tolist(), copies) for section in sections}
        # by scatter: offsets of its lists in the upload
        self.sorted: dict[tuple[int, bool, bool], tuple[Segments, int, int, int]] = {}
        self.whole: Array = records[:1]  # one batch of all calls, for the end
        self.scratch: list[Tensor] = []
        self.aligned = dict.fromkeys(sections, False)
        self.sizes = self.plans[FORWARD].sizes(records)
        self.makers = makers_of(records, self.plans[FORWARD].slots) if training else []


class GpuRunner(Runner):
    """The programs of a flush on one GPU."""

    def __init__(self, flush: Any, device: torch.device, programs: Sequence[Program | None], training: bool) -> None:
        super().__init__(flush, device, programs, training)
        self._launcher = Launcher(device, flush.graphs, flush.alone)
        self._begin(flush)

    # Parts of `Runner` that the native op needs and this one does not

    def _tables(self, grads: bool) -> tuple[Tensor, list[Tensor]]:
        if grads:
            for c, t in self._flush.tables.values.items():
                if t.is_floating_point() and t.device == self._device:
                    self._flush.tables.grad(c)
        return _EMPTY, []

    def _code_of(self, first: int) -> Tensor:
        return _EMPTY

    def _run(self, *what: Any) -> None:
        section, begin, end = what[:3]
        if section in (PREPARE_FORWARD, PREPARE_BACKWARD):
            self._prepare(section, range(begin, end))
        else:
            assert section == FINISH
            self._finish_types()

    def _locals(self) -> dict[int, int]:
        """By type: the first of its tensors."""
        found, at = {}, 0
        for kind, program in enumerate(self._programs):
            if program is not None:
                found[kind] = at
                at += len(program.needs)
        return found

    def _prepare(self, section: int, kinds: range) -> None:
        """Weights side by side and sums of biases of some types, as products take them."""
        for kind, at in self._locals().items():
            program = self._programs[kind]
            if program is None or kind not in kinds:
                continue
            for step, a in instructions(program.code[section]):
                to = self._tensors[at + a[0]]
                given = self._tensors
                if step is Step.BIAS:
                    biases = [given[at + i] for i in a[2:]]
                    to = to[: len(biases[0])]
                    torch.add(*biases, out=to) if len(biases) == 2 and to.dtype == biases[0].dtype else to.copy_(
                        sum(b.to(to.dtype) for b in biases[1:]) + biases[0].to(to.dtype) if biases[1:] else biases[0]
                    )
                    continue
                column = 0
                for i in range(a[1]):
                    tensor, first, columns, turned = a[2 + 4 * i : 6 + 4 * i]
                    weight = given[at + tensor][:, first : first + columns]
                    weight = weight.mT if turned else weight
                    to[:, column : column + weight.shape[1]].copy_(weight)
                    column += weight.shape[1]

    # Forward

    def _begin(self, flush: Any) -> None:
        """Sort the batches by type, check integers, send lists and the records of forward."""
        placed, device = flush.placed, self._device
        records, offset = placed["records"], placed["offset"]
        kinds = placed["type"]
        self._types: dict[int, _Type] = {}
        self._kinds = kinds.tolist()
        self._index = np.zeros(len(kinds), np.int64)  # of a batch among those of its type
        for kind, program in enumerate(self._programs):
            if program is None:
                continue
            batches = np.flatnonzero(kinds == kind)
            if len(batches):
                length = records[offset[batches[0]]]
                of_kind = records[offset[batches][:, None] + np.arange(length)[None, :]]
                self._types[kind] = _Type(program, batches, of_kind, flush.copies, self._training)
                self._index[batches] = np.arange(len(batches))
        self._check_integers(placed["numbers"])
        upload = self._upload = Upload(device)
        at = {name: upload.add(placed[name]) for name in ("rows", "numbers", "starts")}
        self._rows_at = at["rows"]
        self._numbers_at = upload.add(placed["numbers"].astype(np.int32))
        self._starts_at = upload.add(placed["starts"].astype(np.int32))
        if self._training:
            self._add_lists(upload, placed)
        for each in self._types.values():
            largest = int(each.records[:, 2].max())
            widths = each.plans[FORWARD].scratch
            each.scratch = [torch.empty(largest, w, dtype=each.program.dtype, device=device) for w in widths]
        self._cells, self._sizes = self._records(upload, FORWARD, range(len(kinds)))
        flush._on[device] = tuple(
            upload.view(at[name], len(placed[name]), dtype)
            for name, dtype in (("rows", torch.int32), ("numbers", torch.int64), ("starts", torch.int64))
        )

    def _check_integers(self, numbers: Array) -> None:
        for kind, each in self._types.items():
            for slot, most, name, advice in each.plans[FORWARD].integers:
                given = numbers_of(each.records, slot, numbers)
                wrong = given[(given < 0) | (given >= most)]
                if len(wrong):
                    who = self._flush.bodies[kind].name
                    got = f"batching cell {who}: {name} must lie in 0..{most - 1}; got {wrong[0]}. {advice}"
                    raise ValueError(got)

    def _add_lists(self, upload: Upload, placed: Any) -> None:
        """What backward will need besides: rows sorted by where they are added, and rows of whole types."""
        for each in self._types.values():
            records = each.records
            total = int(records[:, 2].sum())
            whole = records[:1].copy()
            whole[:, 2] = total
            slots = {
                (spec.place.slot, spec.place.where)
                for spec in each.plans[FINISH]._specs
                if spec.place.where.name in ("OPERAND", "NAMED")
            }
            for slot, where in slots:
                at, count, first, _ = operand_columns(slot)
                if where.name == "OPERAND":
                    rows, _ = rows_of(records, slot, placed["rows"])
                else:
                    rows = numbers_of(records, slot, placed["numbers"]).astype(np.int32)
                base = self._rows_at if where.name == "OPERAND" else self._numbers_at
                whole[:, count], whole[:, first] = len(rows), -1
                whole[:, at] = (upload.add(rows) - base) // 4
            each.whole = whole
            for section in (BACKWARD, FINISH):
                for scatter in each.plans[section].scatters:
                    self._sort(upload, each, scatter, section, placed)

    @staticmethod
    def _sort(upload: Upload, each: _Type, scatter: Scatter, section: int, placed: Any) -> None:
        key = scatter.slot, scatter.named, scatter.members
        if key in each.sorted:
            return
        records = each.records
        if scatter.named:
            rows = numbers_of(records, scatter.slot, placed["numbers"])
            found = segments(rows, np.zeros(len(rows), np.int64), np.arange(len(rows)), 1)
        else:
            first = records[:, operand_columns(scatter.slot)[2]]
            if not scatter.members and (first >= 0).all():
                return
            rows, owner = rows_of(records, scatter.slot, placed["rows"])
            rows = rows - np.where(first < 0, 0, first)[owner]  # a place in order begins at its first row
            count = records[:, operand_columns(scatter.slot)[1]]
            source = np.arange(len(rows)) - (np.cumsum(count) - count)[owner]
            if scatter.members:
                source = members_of(records, scatter.slot, placed["starts"])
            found = segments(rows, owner, source, len(records))
        each.sorted[key] = found, upload.add(found.rows), upload.add(found.starts), upload.add(found.order)

    # Records

    def _pointer(self, key: Key, kind: int, first: int) -> int:
        flush = self._flush
        source, number = key
        if source == NOWHERE:
            return _SOMEWHERE
        table: Tensor | None
        if source == LOCAL:
            table = self._tensors[first + number]
        elif source == SCRATCH:
            table = self._types[kind].scratch[number]
        elif source == VALUES:
            table = flush.tables.values[number]
        elif source == GRADS:
            table = flush.tables.grad(number) if value_class(number).dtype.is_floating_point else None
        elif source == OUTSIDE:
            table = flush.outside_tables[number]
        else:
            assert source == OUTSIDE_GRADS
            table = flush.outside_grad_tables.get(number)
        return 0 if table is None else table.data_ptr()

    def _filled(self, upload: Upload, kind: int, section: int, records: Array) -> Array:
        """Launch records of a type's batches."""
        each, first = self._types[kind], self._locals()[kind]
        plan, lists = each.plans[section], self._upload
        pointers = np.array([self._pointer(key, kind, first) for key in plan.keys], np.int64)
        rows, numbers = lists.address(self._rows_at), lists.address(self._numbers_at)
        filled, aligned = plan.fill(records, pointers, rows, numbers, self._training)
        each.aligned[section] = aligned
        for field, slot in plan.starts:
            filled[:, field] = lists.address(self._starts_at) + 4 * records[:, operand_columns(slot)[3]]
        for scatter in plan.scatters:
            found = each.sorted.get((scatter.slot, scatter.named, scatter.members))
            if found is None:
                continue
            sorted_, at_rows, at_starts, at_order = found
            begin, counts = sorted_.first[:-1], np.diff(sorted_.first)
            chosen = np.ones(len(records), np.bool_)
            if not (scatter.named or scatter.members):  # rows in order need no list
                chosen = records[:, operand_columns(scatter.slot)[2]] < 0
            filled[chosen, scatter.field + 1] = (lists.address(at_rows) + 4 * begin)[chosen]
            filled[chosen, scatter.field + 4] = lists.address(at_order)
            filled[chosen, scatter.field + 6] = counts[chosen]
            filled[chosen, scatter.field + 7] = (lists.address(at_starts) + 4 * begin)[chosen]
        return filled

    def _records(self, upload: Upload, section: int, order: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Send the records of a section in the order in which batches run.

        Returns:
            Where each record stands on the GPU, and by batch the rows that launches must cover.
        """
        lengths = np.zeros(len(self._kinds), np.int64)
        for each in self._types.values():
            lengths[each.batches] = each.plans[section].length
        ordered = np.asarray(order, np.int64)
        begin = np.zeros(len(ordered), np.int64)
        begin[ordered] = np.cumsum(lengths[ordered]) - lengths[ordered]
        total = int(lengths.sum())
        ends = [] if section == FORWARD else [(kind, each.plans[FINISH].length) for kind, each in self._types.items()]
        at = upload.reserve(8 * (total + sum(length for _, length in ends)))
        cells_at = upload.reserve(8 * (len(ordered) + len(ends)))
        flat = np.zeros(total + sum(length for _, length in ends), np.int64)
        sizes = [0] * len(self._kinds)
        for kind, each in self._types.items():
            filled = self._filled(upload, kind, section, each.records)
            flat[begin[each.batches][:, None] + np.arange(filled.shape[1])[None, :]] = filled
            for b, size in zip(each.batches.tolist(), each.sizes):
                sizes[b] = size
        places = begin[ordered]
        for kind, length in ends:
            flat[total : total + length] = self._filled(upload, kind, FINISH, self._types[kind].whole)[0]
            places = np.append(places, total)
            total += length
        upload.put(at, flat)
        upload.put(cells_at, upload.address(at) + 8 * places)
        upload.send()
        return upload.view(cells_at, len(places), torch.int64), sizes

    def forward(self, begin: int, end: int) -> None:
        """Launch batches [begin, end)."""
        with on_device(self._device):
            for b in range(begin, end):
                each = self._types[self._kinds[b]]
                self._launcher.run(each.plans[FORWARD], self._sizes[b], each.aligned[FORWARD], self._cells, b)

    # Backward

    def prepare_backward(self) -> None:
        super().prepare_backward()
        for kind, each in self._types.items():
            record, adds = each.records[0].tolist(), self._adds[kind]
            each.plans[FINISH] = plan_of(each.program, FINISH, record, self._flush.copies, adds)
        self._launcher = Launcher(self._device, self._flush.graphs, self._flush.alone)
        count = len(self._kinds)
        self._sent = Upload(self._device)  # kept: kernels read it
        self._cells_back, _ = self._records(self._sent, BACKWARD, range(count - 1, -1, -1))

    def backward(self, begin: int, end: int) -> None:
        """Launch batches [begin, end) backwards, those that a gradient has reached."""
        with on_device(self._device):
            self._backward(begin, end)

    def _backward(self, begin: int, end: int) -> None:
        flush = self._flush
        reached, first, count = flush.tables.reached, flush.first_batch, len(self._kinds)
        for b in range(end - 1, begin - 1, -1):
            each, at = self._types[self._kinds[b]], count - 1 - b
            plan, aligned = each.plans[BACKWARD], each.aligned[BACKWARD]
            if reached[first + b] != 1:
                self._launcher.launch(plan, self._sizes[b], aligned, self._cells_back[at : at + 1], skipped=True)
                continue
            reached[first + b] = 2
            for low, high in each.makers[int(self._index[b])]:
                reached[self._flush.makers[low:high]] = 1
            self._launcher.run(plan, self._sizes[b], aligned, self._cells_back, at)

    def _finish_types(self) -> None:
        with on_device(self._device):
            for at, each in enumerate(self._types.values(), len(self._kinds)):
                size = power_of_2(int(each.whole[0, 2]))
                self._launcher.launch(each.plans[FINISH], size, each.aligned[FINISH], self._cells_back[at : at + 1])
