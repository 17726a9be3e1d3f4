# SPDX-License-Identifier: Apache-2.0
"""The readable twin of `_batches_run`: runs the programs of batches step by step in plain PyTorch.

GPUs run programs this way where `_gpu_execute.py` does not serve: in float64, and without triton. How programs and
batches are coded: csrc/batching/program.h, csrc/runtime/batching/record.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgeops.batching import _reference as twin
from edgeops.batching._program import CELLS, HEAD, TYPE_HEAD, Step, Where

_ALL = torch.empty(0, dtype=torch.int32, device="cpu")
_CELLS: dict[str, Callable[..., None]] = {
    "lstm_fwd": twin.lstm_cell_fwd_reference,
    "lstm_bwd": twin.lstm_cell_bwd_reference,
    "treelstm_fwd": twin.treelstm_cell_fwd_reference,
    "treelstm_bwd": twin.treelstm_cell_bwd_reference,
    "leaf_fwd": twin.treelstm_leaf_fwd_reference,
    "leaf_bwd": twin.treelstm_leaf_bwd_reference,
    "gru_fwd": twin.gru_cell_fwd_reference,
    "gru_bwd": twin.gru_cell_bwd_reference,
    "reset_fwd": twin.treegru_reset_fwd_reference,
    "reset_bwd": twin.treegru_reset_bwd_reference,
    "treegru_fwd": twin.treegru_cell_fwd_reference,
    "treegru_bwd": twin.treegru_cell_bwd_reference,
    "tanh_fwd": lambda x: x.tanh_(),
    "tanh_bwd": lambda y, dy, dx: dx.copy_(dy * (1 - y * y)),
    "sigmoid_fwd": lambda x: x.sigmoid_(),
    "sigmoid_bwd": lambda y, dy, dx: dx.copy_(dy * y * (1 - y)),
    "relu_fwd": lambda x: x.relu_(),
    "relu_bwd": lambda y, dy, dx: dx.copy_(dy.where(~(y <= 0), 0)),
}
# Which arguments ops take as one matrix [2m, h] where programs have two places, and which come with a row list.
_HALVES = {"reset_fwd": (3,), "reset_bwd": (3,), "treegru_fwd": (0,), "treegru_bwd": (0, 5)}
_LISTED = {
    "lstm_fwd": (1,), "lstm_bwd": (1,), "treelstm_fwd": (1, 2), "treelstm_bwd": (1, 2), "gru_fwd": (2,),
    "gru_bwd": (2,), "reset_fwd": (1, 2), "reset_bwd": (1, 2), "treegru_fwd": (2, 3), "treegru_bwd": (2, 3),
}  # fmt: skip


class _Rows(NamedTuple):
    """A place: a matrix, and which of its rows; none for all in order."""

    table: Tensor
    rows: Tensor

    def read(self) -> Tensor:
        return self.table if self.rows.numel() == 0 else self.table.index_select(0, self.rows)


class _Interpreter:
    def __init__(self, arrays: Sequence[Tensor], reached: Tensor, tensors: Sequence[Tensor], first_batch: int) -> None:
        code, classes, records, offsets, *rest = arrays
        self.code, self.classes, self.offsets = code.tolist(), classes.tolist(), offsets.tolist()
        self.records = records.tolist()
        self.rows, self.numbers, self.starts, self.makers = rest
        self.reached, self.tensors, self.first_batch = reached, tensors, first_batch
        self.device = self.rows.device
        self.batch: list[list[int]] = []

    def take(self, b: int) -> None:
        self.batch = [self.records[self.offsets[b] : self.offsets[b + 1]]]

    @property
    def kind(self) -> int:
        return self.batch[0][1]

    @property
    def m(self) -> int:
        return sum(record[2] for record in self.batch)

    def operand(self, slot: int) -> list[list[int]]:
        return [record[6 + 8 * slot : 14 + 8 * slot] for record in self.batch]

    def result(self, which: int) -> list[int]:
        at = 6 + 8 * self.batch[0][4] + 2 * which
        return self.batch[0][at : at + 2]

    def of_class(self, number: int, which: int) -> Tensor | None:
        at = self.classes[4 * number + which]
        return None if at < 0 else self.tensors[at]

    def place(self, code: Sequence[int]) -> _Rows | None:
        where, slot, tensor, column, width = code
        table, rows = self._rows(Where(where), slot, tensor)
        if table is None:
            return None
        return _Rows(table[:, column : table.shape[1] if width < 0 else column + width], rows.to(table.device))

    def _rows(self, where: Where, slot: int, tensor: int) -> tuple[Tensor | None, Tensor]:
        m = self.m
        if where in (Where.OPERAND, Where.D_OPERAND):
            given = self.operand(slot)
            outside = given[0][0] == 3
            table = self.of_class(given[0][1], (2 if outside else 0) + (where == Where.D_OPERAND))
            if len(given) == 1 and given[0][4] >= 0 and table is not None:
                return table[given[0][4] : given[0][4] + given[0][3]], _ALL
            lists = [
                torch.arange(x[4], x[4] + x[3], dtype=torch.int32, device=self.device)
                if outside
                else self.rows[x[2] : x[2] + x[3]]
                for x in given
            ]
            return table, torch.cat(lists)
        if where in (Where.RESULT, Where.D_RESULT):
            number, first = self.result(slot)
            table = self.of_class(number, int(where == Where.D_RESULT))
            return (None if table is None else table[first : first + m]), _ALL
        table = self.tensors[self.code[HEAD + TYPE_HEAD * self.kind] + tensor]
        if where == Where.NAMED:
            return table, self.integers(slot, len(table), "ids", "Check num_embeddings and the vocabulary.").int()
        first = 0 if where == Where.ROOM or not self.code[1] or len(self.batch) > 1 else self.batch[0][3]
        return table[first : first + m], _ALL

    def integers(self, slot: int, limit: int, name: str, advice: str) -> Tensor:
        """An integer operand of the batch, every number below `limit`."""
        given = torch.cat([self.numbers[x[2] : x[2] + x[3]] for x in self.operand(slot)])
        for i in given.tolist():
            if not 0 <= i < limit:
                raise ValueError(f"batching cell #{self.kind}: {name} must lie in 0..{limit - 1}; got {i}. {advice}")
        return given

    def want(self, code: Sequence[int]) -> _Rows:
        found = self.place(code)
        assert found is not None
        return found

    def run(self, section: int) -> None:
        for step, arguments in self.steps(self.kind, section):
            self.step(step, arguments)

    def steps(self, kind: int, section: int) -> Iterator[tuple[Step, list[int]]]:
        """The instructions of a section."""
        at = self.code[HEAD + TYPE_HEAD * kind + 1 + section]
        if at < 0:
            return
        end = at + 1 + self.code[at]
        at += 1
        while at < end:
            length, step = self.code[at : at + 2]
            yield Step(step), self.code[at + 2 : at + length]
            at += length

    def prepare(self, section: int, kinds: range) -> None:
        """Weights and biases of types as the products take them."""
        for kind in kinds:
            local = self.code[HEAD + TYPE_HEAD * kind]
            for step, a in self.steps(kind, section):
                to = self.tensors[local + a[0]]
                if step == Step.BIAS:
                    given = [self.tensors[local + i] for i in a[2:]]
                    to.zero_()[: len(given[0])] = sum(b.to(to.dtype) for b in given)
                    continue
                weights = []
                for i in range(a[1]):
                    tensor, first, columns, turned = a[2 + 4 * i : 6 + 4 * i]
                    weight = self.tensors[local + tensor][:, first : first + columns]
                    weights.append(weight.mT if turned else weight)
                to.copy_(twin.panels(weights, to.shape[2]) if to.dim() == 3 else torch.cat(weights, 1))

    def step(self, step: Step, a: list[int]) -> None:
        local = self.code[HEAD + TYPE_HEAD * self.kind]
        if step in (Step.LINEAR, Step.LINEAR_ADD, Step.LINEAR_ON):
            rest = a[10:] if step == Step.LINEAR_ADD else a[5:]
            weight, *rest = rest
            bias = None
            if step == Step.LINEAR:
                at, *rest = rest
                bias = None if at < 0 else self.tensors[local + at]
            to = self.place(a[:5])
            if to is None:
                return
            out = self.want(a[5:10]) if step == Step.LINEAR_ADD else to
            table = torch.empty_like(out.table) if step == Step.LINEAR_ON else out.table
            tables, rows = zip(*(self.want(rest[1 + 5 * i : 6 + 5 * i]) for i in range(rest[0])), strict=True)
            if bias is not None:
                bias = bias[: table.shape[1]].to(table.dtype)
            self.linear(list(tables), list(rows), self.tensors[local + weight], bias, table)
            if step != Step.LINEAR:
                self.add(to, table)
        elif step == Step.CELL:
            self.cell(CELLS[a[0]], [self.want(a[3 + 5 * i : 8 + 5 * i]) for i in range(a[2])])
        elif step == Step.ADD:
            to = self.place(a[:5])
            if to is not None:
                self.add(to, self.want(a[5:10]).read())
        elif step == Step.COPY:
            self.want(a[:5]).table.copy_(self.want(a[5:10]).read())
        elif step in (Step.CROSS_ENTROPY, Step.CROSS_ENTROPY_GRAD):
            self.cross_entropy([self.want(a[i : i + 5]).table for i in range(0, len(a) - 1, 5)], a[-1])
        elif step in (Step.DECIDE, Step.DECIDE_GRAD):
            self.decide([self.place(a[i : i + 5]) for i in range(0, len(a) - 1, 5)], a[-1])
        elif step in (Step.SUM, Step.SPREAD):
            (given,) = self.operand(a[6] if step == Step.SUM else a[1])
            starts = self.starts[given[5] : given[5] + self.m + 1].to(self.device)
            which = torch.repeat_interleave(torch.arange(self.m, device=self.device), starts.diff())
            if step == Step.SUM:
                to = self.want(a[:5])
                from_ = self.want(a[5:10]).read()
                wide = torch.promote_types(from_.dtype, torch.float32)
                total = torch.zeros(to.table.shape, dtype=wide, device=self.device)
                to.table.copy_(total.index_add_(0, which, from_.to(wide)))
            else:
                to_or_none = self.place(a[:5])
                if to_or_none is not None:
                    self.add(to_or_none, self.want(a[5:10]).read().index_select(0, which))
        else:
            grad, (dweight, dbias, fresh, count) = self.want(a[:5]), a[5:9]
            tables, rows = zip(*(self.want(a[9 + 5 * i : 14 + 5 * i]) for i in range(count)), strict=True)
            if fresh & 1:
                self.tensors[local + dweight].zero_()
            if fresh & 2:
                self.tensors[local + dbias].zero_()
            twin.rows_linear_wgrad_reference(
                grad.table,
                tables,
                rows,
                self.tensors[local + dweight],
                None if dbias < 0 else self.tensors[local + dbias],
            )

    def cross_entropy(self, tables: list[Tensor], slot: int) -> None:
        """Scores and losses; or gradients of scores, probabilities and gradients of losses."""
        *into, scores, loss = tables
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        labels = self.integers(slot, scores.shape[1], "labels", "Check the number of classes.").to(scores.device)
        if into:
            into[0].copy_((wide - torch.nn.functional.one_hot(labels, scores.shape[1])) * loss.to(wide.dtype))
            return
        of_classes = wide.log_softmax(1)
        loss.copy_(-of_classes.gather(1, labels[:, None]))
        scores.copy_(of_classes.exp())

    def decide(self, places: list[_Rows | None], slot: int) -> None:
        """Scores and losses; or where gradients of scores are added, scores and gradients of losses."""
        if places[0] is None:
            return
        *into, scores, loss = [place for place in places if place is not None]
        x = scores.read()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        advice = "Give 1 for what was decided, 0 for what was not."
        taken = torch.stack([self.integers(slot + k, 2, "decisions", advice) for k in range(x.shape[1])], 1).to(wide)
        if into:
            self.add(into[0], (wide.sigmoid() - taken) * loss.read().to(wide.dtype))
        else:
            each = torch.nn.functional.binary_cross_entropy_with_logits(wide, taken, reduction="none")
            loss.table.copy_(each.sum(1, keepdim=True))

    def linear(self, *given: Any) -> None:
        on_gpu = self.device.type != "cpu"
        (torch.ops.edgeops._rows_linear if on_gpu else twin.rows_linear_reference)(*given)

    @staticmethod
    def add(to: _Rows, source: Tensor) -> None:
        rows = to.rows if to.rows.numel() else torch.arange(len(source), device=source.device)
        to.table.index_add_(0, rows, source.to(to.table.dtype))

    @staticmethod
    def cell(name: str, places: list[_Rows]) -> None:
        """Call the twin of a cell: it takes halves as one matrix and writes into it."""
        arguments: list[Tensor] = []
        joined: list[tuple[Tensor, _Rows, _Rows]] = []
        halves, listed = _HALVES.get(name, ()), _LISTED.get(name, ())
        i = n = 0
        while i < len(places):
            if n in halves:
                both = torch.cat([places[i].table, places[i + 1].table])
                joined.append((both, places[i], places[i + 1]))
                arguments.append(both)
                i += 1
            elif n in listed:
                arguments.extend(places[i])
            else:
                arguments.append(places[i].table)
            i += 1
            n += 1
        _CELLS[name](*arguments)
        for both, first, second in joined:
            m = len(first.table)
            first.table.copy_(both[:m])
            second.table.copy_(both[m:])

    def clear(self, skipped: bool) -> None:
        """Gradients of results that are used up become zeros, or those that a batch without gradients leaves."""
        if not skipped:
            for which in range(self.batch[0][5]):
                number, first = self.result(which)
                table = self.of_class(number, 1)
                if table is not None:
                    table[first : first + self.m].zero_()
            return
        for step, a in self.steps(self.kind, 2):
            place = a[5:10] if step == Step.ADD else a[:5]
            if step in (Step.ADD, Step.WEIGHT_GRAD) and place[0] == Where.D_KEPT:
                self.want(place).table.zero_()


def batches_run_reference(
    code: Tensor,
    classes: Tensor,
    records: Tensor,
    offsets: Tensor,
    rows: Tensor,
    numbers: Tensor,
    starts: Tensor,
    makers: Tensor,
    reached: Tensor,
    tensors: Sequence[Tensor],
    section: int,
    begin: int,
    end: int,
    first_batch: int,
) -> None:
    """Run the batches [begin, end): 0 forward, 1 backward, 2 parameters' gradients; or prepare types (3, 4)."""
    arrays = (code, classes, records, offsets, rows, numbers, starts, makers)
    run = _Interpreter(arrays, reached, tensors, first_batch)
    if section == 0:
        for b in range(begin, end):
            run.take(b)
            run.run(0)
    elif section == 1:
        for b in reversed(range(begin, end)):
            run.take(b)
            if reached[first_batch + b] != 1:
                run.clear(True)
                continue
            reached[first_batch + b] = 2
            for slot in range(run.batch[0][4]):
                (operand,) = run.operand(slot)
                reached[makers[operand[6] : operand[7]].long()] = 1
            run.run(1)
            run.clear(False)
    elif section in (3, 4):
        run.prepare(section, range(begin, end))
    else:
        of_kind: dict[int, list[list[int]]] = {}
        for b in range(begin, end):
            run.take(b)
            of_kind.setdefault(run.kind, []).append(run.batch[0])
        for batch in of_kind.values():
            run.batch = batch
            run.run(2)
