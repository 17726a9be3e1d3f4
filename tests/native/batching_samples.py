# SPDX-License-Identifier: Apache-2.0
"""Samples of the batching ops for the contract: op -> (maker of calls, property test, op that measures it)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.batching.batches import SESSIONS, calls
from bench.batching.cells import CELLS

Call = tuple[tuple[Any, ...], dict[str, Any]]

ROWS = (5, 9)  # of the two tables


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows_of(m: int, table: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(m + table)
    return torch.randint(0, ROWS[table], (m,), generator=generator, dtype=torch.int32)


def _linear() -> list[Call]:
    tables, rows = [normal(5, 3), normal(9, 4, seed=1)], [rows_of(6), rows_of(6, 1)]
    weight, bias = normal(18, 7, seed=2), normal(18, seed=3)
    segment = torch.zeros(8, 20)[1:7, 2:]
    packed = torch.ops.edgeops._rows_linear_pack([weight])
    in_order = [normal(2, 7)], [torch.empty(0, dtype=torch.int32)]
    return [
        ((tables, rows, weight, bias, torch.zeros(6, 18)), {}),
        ((tables, rows, packed, None, segment.clone()), {}),
        ((*in_order, weight, None, torch.zeros(2, 18)), {}),
    ]


def _pack() -> list[Call]:
    return [(([normal(18, 7), normal(18, 3)],), {}), (([normal(7, 18, dtype=torch.float64).T],), {})]


def _wgrad() -> list[Call]:
    tables, rows = [normal(5, 3), normal(9, 4, seed=1)], [rows_of(6), rows_of(6, 1)]
    grad, dweight = normal(6, 18), normal(18, 7, seed=2)
    return [
        ((grad, tables, rows, dweight, normal(18, seed=3)), {}),
        ((grad, tables[:1], rows[:1], normal(18, 3, seed=2), None), {}),
    ]


def _sum() -> list[Call]:
    starts, index = torch.tensor([0, 2, 2, 5]), torch.tensor([4, 0, 1, 1, 3], dtype=torch.int32)
    return [
        ((normal(5, 11), starts, index, normal(3, 11, seed=1)), {}),
        ((normal(5, 11), starts, index, normal(3, 11, seed=1), True), {}),
    ]


def _add() -> list[Call]:
    return [
        ((normal(6, 11), rows_of(6, 1), normal(9, 11, seed=1)), {}),
        ((normal(5, 11)[:, 1:], torch.empty(0, dtype=torch.int32), normal(5, 10, seed=1)), {}),
    ]


H = 11


def _cell(*layout: int | str) -> Callable[[], list[Call]]:
    """Calls of a cell op whose arguments are those of `CELLS`."""

    def build(m: int) -> Call:
        args: list[Tensor] = []
        for kind in layout:
            if kind == "t":
                table = len(args) % 2
                args += [normal(ROWS[table], H, seed=len(args)), rows_of(m, table)]
            else:
                doubled = kind == "2x"
                parts = 1 if doubled else int(kind)
                args.append(normal(2 * m if doubled else m, parts * H, seed=len(args)))
        return tuple(args), {}

    return lambda: [build(6), build(1)]


def _batches() -> list[Call]:
    """One section of each session; all of them are in the property test."""
    return [(calls(session)[section], {}) for section, session in enumerate(SESSIONS)]


_CELLS = "test_batching_cells.py::test_cells"
_LINEAR = "test_batching_cells.py::test_rows_linear"
BATCHING: dict[str, tuple[Callable[[], list[Call]], str, str]] = {
    "_rows_linear": (_linear, _LINEAR, "_rows_linear"),
    "_rows_linear_pack": (_pack, _LINEAR, "_rows_linear"),
    "_rows_linear_wgrad": (_wgrad, _LINEAR, "_rows_linear_wgrad"),
    "_batches_run": (_batches, "test_batching_cells.py::test_batches_run", "_batches_run"),
    "_rows_add": (_add, "test_batching_cells.py::test_rows_add", "_rows_add"),
    "_rows_sum": (_sum, "test_batching_cells.py::test_rows_sum", "_rows_sum"),
    **{name: (_cell(*layout), _CELLS, name) for name, layout in CELLS.items()},
}
