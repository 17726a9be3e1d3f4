# SPDX-License-Identifier: Apache-2.0
"""Static cells: which of their operations run together, and where their results stand. ED-Batch (ICML 2023), section 3.

A cell is a small fixed graph, run once for every node of a dynamic one. Its operations are batched too: the affine
maps of a gate, the activations of all gates. Choosing the batches is exact (the fewest); of equally short sequences the
one with the best memory layout is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from edgeops._common import describe, message
from edgeops.batching._runtime import runtime
from edgeops.batching.layout import _EFFORT, EXTERNAL, MAX_OPS, Layout, _layout


class Op(NamedTuple):
    """One operation of a cell: the name of its result, its type, and the names of its arguments."""

    name: str
    type: str
    args: tuple[str, ...]


@dataclass(frozen=True)
class CellGraph:
    """A static cell.

    Args:
        ops: operations as `(name, type, args)`, each after its arguments. Operations of one type may run as one batch;
            they have equal numbers of arguments.
        inputs: names of the tensors that every call of the cell brings.
        weights: names of the tensors that all calls share. They are not laid out: the weights of a batch are one
            tensor.
        outputs: names of the operations whose results leave the cell. Each is a batch of its own.

    Raises:
        TypeError: an operation is not `(name, type, args)`, or something named is not a string.
        ValueError: a name is unknown, used before it is defined, or defined twice; a type has operations with different
            numbers of arguments; there are more than `MAX_OPS` operations.

    >>> cell = CellGraph(
    ...     ops=[("a", "affine", ("W", "x")), ("b", "affine", ("V", "x")), ("y", "mul", ("a", "b"))],
    ...     inputs=["x"], weights=["W", "V"], outputs=["y"])
    >>> [batch for batch in plan_cell(cell).batches]
    [('a', 'b'), ('y',)]
    """

    ops: tuple[Op, ...]
    inputs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __init__(
        self,
        ops: Sequence[tuple[str, str, Sequence[str]]],
        inputs: Sequence[str] = (),
        weights: Sequence[str] = (),
        outputs: Sequence[str] = (),
    ) -> None:
        for name, value in (("inputs", inputs), ("weights", weights), ("outputs", outputs)):
            object.__setattr__(self, name, _names(name, value))
        object.__setattr__(self, "ops", tuple(_op(op) for op in ops))
        self._check()

    def _check(self) -> None:
        who = "CellGraph"
        if len(self.ops) > MAX_OPS:
            rule = f"a static cell has at most {MAX_OPS} operations"
            raise ValueError(message(who, rule, str(len(self.ops)), "Record larger graphs as calls of cells."))
        known: set[str] = set()
        arity: dict[str, int] = {}
        for name in (*self.inputs, *self.weights):
            _define(name, known)
        for op in self.ops:
            missing = next((a for a in op.args if a not in known), None)
            if missing is not None:
                rule = "an argument must be an input, a weight or an earlier operation"
                raise ValueError(message(who, rule, f"'{missing}' in '{op.name}'", "Sort the operations, name all."))
            if arity.setdefault(op.type, len(op.args)) != len(op.args):
                rule = f"operations of type '{op.type}' must have equal numbers of arguments"
                got = f"{arity[op.type]} and {len(op.args)} in '{op.name}'"
                raise ValueError(message(who, rule, got, "Give them types of their own."))
            _define(op.name, known)
        names = {op.name for op in self.ops}
        stranger = next((o for o in self.outputs if o not in names), None)
        if stranger is not None:
            rule = "outputs must be operations"
            raise ValueError(message(who, rule, f"'{stranger}'", "Name the operations whose results leave the cell."))


@dataclass(frozen=True)
class CellPlan:
    """How a static cell runs. Made by `plan_cell`."""

    cell: CellGraph
    batches: tuple[tuple[str, ...], ...]
    """Names of the operations that run together, in the order of the batches."""
    names: tuple[str, ...]
    """The variables by id: operations, then inputs if those are laid out too."""
    layout: Layout
    """Where the variables stand (ids as in `names`)."""
    fewest: bool
    """Proven: no sequence of types has fewer batches."""

    @property
    def order(self) -> tuple[str, ...]:
        """The variables as they stand in memory."""
        return tuple(self.names[v] for v in self.layout.order)

    def _count(self, kind: str, reason: str = "") -> int:
        return sum(v.kind == kind and v.reason.startswith(reason) for row in self.layout.verdicts for v in row)

    @cached_property
    def broadcasts(self) -> int:
        """Operands that repeat one tensor for all members: read with stride 0, no copy."""
        return self._count("broadcast")

    @cached_property
    def unavoidable(self) -> int:
        """Copies that no order avoids: operands that repeat some of their tensors, or mix tensors from outside."""
        return self._count("copy", "repeated") + self._count("copy", "external")


def plan_cell(cell: CellGraph, *, place_inputs: bool = False) -> CellPlan:
    """Choose the batches of a static cell and the order of its results in memory.

    Args:
        cell: the graph.
        place_inputs: lay the inputs out with the results (for a cell whose inputs are brought into its memory anyway).
            Otherwise they stay where they are, and an operand that mixes them, or has one among results, is copied.

    Returns:
        The fewest batches, each of all operations of a type that are ready (an output alone); of equally short
        sequences the one with the fewest copies, then the fewest copied elements, as far as the search gets.

    Raises:
        TypeError: `cell` is not a `CellGraph`.

    >>> gates = [(f"{g}_in", "affine", (f"W{g}", "x")) for g in "if"] + [(g, "sigmoid", (f"{g}_in",)) for g in "if"]
    >>> plan = plan_cell(CellGraph([*gates, ("y", "mul", ("i", "f"))], ["x"], ["Wi", "Wf"], ["y"]))
    >>> plan.batches
    (('i_in', 'f_in'), ('i', 'f'), ('y',))
    >>> plan.layout.copies, plan.broadcasts
    (0, 1)
    """
    if not isinstance(cell, CellGraph):
        rule = "cell must be a CellGraph"
        raise TypeError(message("plan_cell", rule, describe(cell), "Build it from (name, type, args)."))
    names = [op.name for op in cell.ops]
    ids = {name: i for i, name in enumerate(names)}
    ids |= dict.fromkeys(cell.weights, EXTERNAL)
    for i, name in enumerate(cell.inputs):
        ids[name] = len(names) + i if place_inputs else EXTERNAL - 1 - i
    types: dict[tuple[str, str], int] = {}
    type_of = [types.setdefault((op.type, op.name if op.name in cell.outputs else ""), len(types)) for op in cell.ops]
    args = [[ids[a] for a in op.args] for op in cell.ops]
    placed = list(cell.inputs) if place_inputs else []
    batches, native, fewest = runtime().plan_cell(len(placed), type_of, args, _EFFORT)
    operands = [[list(b), *(list(slot) for slot in zip(*(args[v] for v in b)))] for b in batches]
    named = tuple(tuple(names[v] for v in b) for b in batches)
    return CellPlan(cell, named, (*names, *placed), _layout(native, operands), fewest)


def _names(what: str, values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(v, str) for v in values):
        rule = f"{what} must be a sequence of names"
        raise TypeError(message("CellGraph", rule, describe(values), "Give strings."))
    return tuple(values)


def _op(op: tuple[str, str, Sequence[str]]) -> Op:
    parts = tuple(op) if isinstance(op, (tuple, list)) else ()
    if len(parts) != 3 or not isinstance(parts[0], str) or not isinstance(parts[1], str):
        rule = "an operation must be (name, type, args)"
        raise TypeError(message("CellGraph", rule, describe(op), "Name and type are strings, args their names."))
    return Op(parts[0], parts[1], _names(f"the arguments of '{parts[0]}'", parts[2]))


def _define(name: str, known: set[str]) -> None:
    if name in known:
        raise ValueError(message("CellGraph", "a name must stand for one thing", f"'{name}' twice", "Rename one."))
    known.add(name)
