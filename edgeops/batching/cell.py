# SPDX-License-Identifier: Apache-2.0
"""Cells: the units that are recorded, scheduled and run batched. ED-Batch (ICML 2023), section 2; ACRoBat.

A cell is a function of rows. Called inside a session with operands of one instance it is written down and gives back
values that do not exist yet; when they are needed, all calls of a kind run together, with a leading dimension.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgeops._common.errors import describe, message
from edgeops.batching._classes import intern, value_class
from edgeops.batching._runtime import runtime

VALUE, LIST, NUMBER, TENSOR = range(4)  # kinds of operands, as csrc/runtime/batching/record.h numbers them


class Ragged(NamedTuple):
    """A list operand of a batch: values `[total, ...]`, those of call i from `offsets[i]` to `offsets[i + 1]`."""

    values: Tensor
    offsets: Tensor


class Body:
    """What a cell computes. The executor hands it whole batches.

    This one differentiates `run`, a function of rows, with PyTorch; `edgeops.batching.cells` has bodies with programs
    for the native kernels.
    """

    name: str
    lone: bool = False
    pure: bool = False  # equal operands give equal results: equal calls with an integer are computed once

    def parameters(self) -> Sequence[Tensor]:
        """Tensors from outside that results depend on and that may want gradients."""
        raise NotImplementedError

    def run(self, *rows: Any) -> Any:
        """One batch: tensors `[m, ...]`, integers `[m]`, `Ragged` lists; a tensor `[m, ...]` or a tuple of them."""
        raise NotImplementedError

    def outputs(self, *rows: Any) -> tuple[Tensor, ...]:
        """`run`, with its results checked and as a tuple."""
        out = self.run(*rows)
        results = out if isinstance(out, tuple) else (out,)
        for y in results:
            if not isinstance(y, Tensor):
                rule = "a cell must return a tensor or a tuple of tensors"
                raise TypeError(message(self.name, rule, describe(y), "Return rows of tensors."))
        return results

    def device(self, parameters: Sequence[Tensor]) -> torch.device:
        """Where integer operands are given to `run`: with the first of its `parameters`."""
        return parameters[0].device if parameters else torch.device("cpu")

    def infer(self, operands: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Classes of the results, from kind and class of every operand."""
        rows = 2
        where = self.device(self.parameters())

        def results_of_zeros() -> tuple[Tensor, ...]:
            examples: list[Any] = []
            for kind, number in operands:
                if kind == NUMBER:
                    examples.append(torch.zeros(rows, dtype=torch.int64, device=where))
                    continue
                of = value_class(number)
                x = torch.zeros(rows, *of.shape, dtype=of.dtype, device=of.device)
                examples.append(Ragged(x, torch.arange(rows + 1, device=of.device)) if kind == LIST else x)
            return self.outputs(*examples)

        # on zeros, not on fake tensors: shapes inside may depend on content
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            results = results_of_zeros()
        for y in results:
            if y.dim() < 1 or y.shape[0] != rows:
                rule, advice = (
                    "a cell must return as many rows as it gets",
                    "Keep the leading dimension of its operands.",
                )
                raise ValueError(message(self.name, rule, f"shape {tuple(y.shape)} for {rows} rows", advice))
        return tuple(intern(y.dtype, y.device, tuple(y.shape[1:])) for y in results)

    def forward(self, batch: Any, training: bool) -> Any:
        """Run a batch, write its results. Returns what `backward` needs, when training."""
        rows = [batch.tensor(slot, training) for slot in range(len(batch.operands))]
        with torch.set_grad_enabled(training):
            results = self._one_by_one(rows, batch.count) if batch.flush.alone else self.outputs(*rows)
        for which, y in enumerate(results):
            to = batch.out(which)
            if y.dtype != to.dtype or y.shape != to.shape:
                rule = "results must keep the dtype and the shape of their first call"
                got = f"{y.dtype} of shape {tuple(y.shape)} for {to.dtype} of shape {tuple(to.shape)}"
                advice = "Give rows of one shape; after converting a module make its cells anew."
                raise ValueError(message(f"batching cell {self.name}", rule, got, advice))
            to.copy_(y.detach())
        return (rows, results) if training else None

    def _one_by_one(self, rows: list[Any], count: int) -> tuple[Tensor, ...]:
        """`outputs` of every call by itself, put together."""

        def call(x: Any, i: int) -> Any:
            """The operand of one call, in memory of its own: alignment changes the bits of some products."""
            if not isinstance(x, Ragged):
                return x[i : i + 1].clone()
            begin, end = x.offsets[i : i + 2].tolist()
            return Ragged(x.values[begin:end].clone(), x.offsets[i : i + 2] - begin)

        calls = [self.outputs(*(call(x, i) for x in rows)) for i in range(count)]
        return tuple(torch.cat(parts) for parts in zip(*calls, strict=True))

    def backward(self, batch: Any, saved: Any) -> None:
        """Take the gradients of a batch's results to its operands and to captured tensors."""
        rows, results = saved
        params = batch.flush.parameters[self]
        pairs = [(y, batch.grad_out(which)) for which, y in enumerate(results) if y.requires_grad]
        if not pairs:
            return
        places = [(slot, x.values if isinstance(x, Ragged) else x) for slot, x in enumerate(rows)]
        places = [(slot, x) for slot, x in places if x.requires_grad]
        ys, grads = zip(*pairs, strict=True)
        wanted = [*(x for _, x in places), *params]
        found = torch.autograd.grad(ys, wanted, grads, retain_graph=True, allow_unused=True)
        for (slot, _), g in zip(places, found, strict=False):
            if g is not None:
                batch.add_grad(slot, g)
        for p, g in zip(params, found[len(places) :], strict=True):
            if g is not None:
                batch.flush.add_captured(p, g, given=False)

    def parts(self) -> tuple[int, Any, Any] | None:
        """Of a recurrence: an operand, a cell of that operand alone, and a cell that takes its result in its place.

        Calls whose operand does not depend on the recurrence are recorded as calls of the two cells.
        """
        return None

    def _infer(self, operands: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], bool, bool, Any]:
        return self.infer(operands), self.lone, self.pure, self.parts()

    def program(self, variant: int, operands: Sequence[tuple[int, int]]) -> Any:
        """What the native runner runs in place of `forward` and `backward`: a `Program`, or `None`."""
        return None

    def _eager(self, *operands: Any, **named: Any) -> Any:
        """A call outside of a session: runs at once, on one row."""
        if named:
            rule = "a cell takes operands by position"
            raise TypeError(message(self.name, rule, f"keywords {sorted(named)}", "Give them in order."))

        where = self.device(self.parameters())

        def rows(x: Any) -> Any:
            if isinstance(x, int):
                return torch.tensor([x], device=where)
            if isinstance(x, (list, tuple)):
                values = torch.stack(list(x))
                return Ragged(values, torch.tensor([0, len(x)], device=values.device))
            if not isinstance(x, Tensor):
                rule = "an operand must be a tensor, an integer or a list"
                raise TypeError(message(self.name, rule, describe(x), "Convert it."))
            return x[None]

        results = tuple(y[0] for y in self.outputs(*(rows(x) for x in operands)))
        return results[0] if len(results) == 1 else results


def _tensors_of(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Tensors that a captured object brings along."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, nn.Module):
        yield from thing.parameters()
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            yield from _tensors_of(part, seen)
    elif isinstance(thing, dict):
        yield from _tensors_of(list(thing.values()), seen)
    elif inspect.ismethod(thing):
        yield from _tensors_of(thing.__self__, seen)
    elif isinstance(thing, functools.partial):
        yield from _tensors_of([thing.func, *thing.args, *thing.keywords.values()], seen)
    elif inspect.isfunction(thing) and not thing.__module__.startswith("torch"):
        captured = inspect.getclosurevars(thing)
        yield from _tensors_of([*captured.nonlocals.values(), *captured.globals.values()], seen)
        yield from _tensors_of(list(thing.__defaults__ or ()), seen)


class FunctionBody(Body):
    """A function or a module of rows."""

    def __init__(self, function: Callable[..., Any], name: str, lone: bool) -> None:
        self._function = function
        self.name = name
        self.lone = lone
        self._checked = False  # whether a graph was searched for tensors that `parameters` misses

    def parameters(self) -> list[Tensor]:
        return [x for x in _tensors_of(self._function, set()) if x.requires_grad]

    def run(self, *rows: Any) -> Any:
        return self._function(*rows)

    def forward(self, batch: Any, training: bool) -> Any:
        saved = super().forward(batch, training)
        if training and not self._checked:
            rows, results = saved
            operands = [x.values if isinstance(x, Ragged) else x for x in rows]
            if leaves_of(results, [*operands, *batch.flush.parameters[self]]):
                rule = "tensors that want gradients must be captured where they can be found"
                advice = "Give modules or tensors to the cell as closure, default, partial or bound object."
                raise ValueError(message(f"batching cell {self.name}", rule, "one that is reached another way", advice))
            self._checked = True
        return saved


def leaves_of(results: Iterable[Tensor], known: Iterable[Tensor]) -> list[Tensor]:
    """Leaves that want gradients and that results reach without passing a known tensor."""
    stop = {id(x) if x.grad_fn is None else id(x.grad_fn) for x in known}
    found: list[Tensor] = []
    stack: list[Any] = [y.grad_fn for y in results if y.grad_fn is not None]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen or id(node) in stop:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in stop:
            found.append(leaf)
        stack.extend(after for after, _ in node.next_functions)
    return found


class CellOwner(nn.Module):
    """A module with cells as attributes. They forget dtypes and devices when the module is converted (`.to()`)."""

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._apply(*args, **kwargs)
        for x in vars(self).values():
            if isinstance(x, runtime().Cell):
                x.forget()
        return result


class CellModule(CellOwner):
    """A module as a cell: parameters, `state_dict` and `to` are the module's own, under `cell.`."""

    def __init__(self, module: nn.Module, lone: bool = False) -> None:
        super().__init__()
        self.cell = module
        self.record = runtime().Cell(FunctionBody(module, type(module).__name__, lone))

    def __call__(self, *operands: Any) -> Any:
        """Recorded in a session, run at once outside of one. `record` is the same without a Python frame."""
        return self.record(*operands)


def cell(function: Any = None, *, batched: bool = True) -> Any:
    """Make a function or a module of rows a cell.

    Args:
        function: takes tensors `[m, ...]`, integers as `int64 [m]`, lists as `Ragged`; returns a tensor `[m, ...]` or
            a tuple of them. Row i of a result may depend on row i of the operands and on captured tensors alone. A
            module gives a module (`CellModule`). Captured tensors are found in closures, globals, defaults, bound
            objects and partials.
        batched: `False` runs every call on its own.

    Returns:
        The cell. Inside `session` it takes one instance's operands (values of other cells, tensors without the
        leading dimension, integers, lists of values) and returns values; outside it runs at once.

    Raises:
        TypeError: what is given cannot be called.

    >>> double = cell(lambda x: 2 * x)
    >>> double(torch.ones(2))
    tensor([2., 2.])
    """
    if function is None:
        return functools.partial(cell, batched=batched)
    if isinstance(function, nn.Module):
        return CellModule(function, not batched)
    if not callable(function):
        rule = "a cell must be a function or a module"
        raise TypeError(message("batching.cell", rule, describe(function), "Give a callable."))
    if isinstance(function, Body):
        return runtime().Cell(function)
    name = getattr(function, "__name__", type(function).__name__)
    return runtime().Cell(FunctionBody(function, name, not batched))
