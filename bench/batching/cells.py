# SPDX-License-Identifier: Apache-2.0
"""Kernels that read rows of tables: products, weight gradients, sums of rows, and the pointwise parts of cells.

The peers gather first, with `index_select`, and then call torch; the roof of products is `torch.mm` on rows that lie
ready, which no batch of a dynamic graph has.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.registry import Built, Candidate, Case, Workload
from edgeops.batching._ops import TWINS

OURS, GATHER, ROOF = "edgeops", "index_select + product", "product of ready rows"
TABLE = 4096  # rows
Make = Callable[..., Tensor]


def _maker(device: torch.device) -> tuple[Make, Make]:
    """Functions that draw values and row numbers."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def picked(count: int, rows: int = TABLE) -> Tensor:
        return torch.randint(0, rows, (count,), generator=generator, dtype=torch.int32).to(device)

    return normal, picked


def _linear_cases(suite: str) -> list[Case]:
    def sizes(h: int, gates: int, operands: int, m: int) -> dict[str, int]:
        return {"h": h, "gates": gates, "operands": operands, "m": m}

    if suite == "smoke":
        return [Case("H 16, 5 rows", "drawn", params={"h": 16, "gates": 5, "operands": 2, "m": 5})]
    return [
        Case(f"H {h}, {gates}H x {operands}H, {m} rows", "drawn", params=sizes(h, gates, operands, m))
        for h in (64, 256)
        for gates, operands in ((4, 1), (5, 2))
        for m in (1, 8, 64, 512)
    ]


def _build_linear(case: Case, device: torch.device) -> Built:
    normal, picked = _maker(device)
    h, m = case.params["h"], case.params["m"]
    n, operands = case.params["gates"] * h, case.params["operands"]
    tables, rows = [normal(TABLE, h) for _ in range(operands)], [picked(m) for _ in range(operands)]
    weight, bias, out = normal(n, operands * h), normal(n), normal(m, n)
    ready = torch.cat([table.index_select(0, each) for table, each in zip(tables, rows)], 1)
    packed = torch.ops.edgeops._rows_linear_pack([weight])
    kernel = torch.ops.edgeops._rows_linear.default

    def ours() -> Tensor:
        kernel(tables, rows, packed, bias, out)
        return out

    def gather() -> Tensor:
        picks = [table.index_select(0, each) for table, each in zip(tables, rows)]
        return torch.addmm(bias, picks[0] if len(picks) == 1 else torch.cat(picks, 1), weight.t())

    def expected() -> Tensor:
        exact = torch.empty(m, n, dtype=torch.float64, device=device)
        wide = [table.double() for table in tables]
        TWINS["_rows_linear"](wide, rows, weight.double(), bias.double(), exact)
        return exact

    return Built(
        candidates={
            OURS: Candidate(ours, note="the weight packed once"),
            GATHER: Candidate(gather),
            ROOF: Candidate(lambda: torch.addmm(bias, ready, weight.t()), gate=False),
        },
        expected=expected,
        tolerance=1e-3,
        shapes={"m": m, "N": n, "K": operands * h},
        flops=2.0 * m * n * operands * h,
    )


def _wgrad_cases(suite: str) -> list[Case]:
    sizes = [(16, 40)] if suite == "smoke" else [(64, 1000), (64, 20000), (256, 1000), (256, 8000)]
    return [Case(f"H {h}, {m} rows", "drawn", params={"h": h, "m": m}) for h, m in sizes]


def _build_wgrad(case: Case, device: torch.device) -> Built:
    normal, picked = _maker(device)
    h, m = case.params["h"], case.params["m"]
    tables, rows = [normal(TABLE, h) for _ in range(2)], [picked(m) for _ in range(2)]
    grad, dweight, dbias = normal(m, 5 * h), normal(5 * h, 2 * h), normal(5 * h)
    ready = torch.cat([table.index_select(0, each) for table, each in zip(tables, rows)], 1)
    kernel = torch.ops.edgeops._rows_linear_wgrad.default

    def ours() -> Tensor:
        dweight.zero_()
        kernel(grad, tables, rows, dweight, dbias)
        return dweight

    def gather() -> Tensor:
        x = torch.cat([table.index_select(0, each) for table, each in zip(tables, rows)], 1)
        dbias.add_(grad.sum(0))
        return torch.mm(grad.t(), x)

    def expected() -> Tensor:
        exact = torch.zeros(5 * h, 2 * h, dtype=torch.float64, device=device)
        TWINS["_rows_linear_wgrad"](grad.double(), [t.double() for t in tables], rows, exact, None)
        return exact

    return Built(
        candidates={
            OURS: Candidate(ours),
            GATHER: Candidate(gather),
            ROOF: Candidate(lambda: torch.mm(grad.t(), ready), gate=False),
        },
        expected=expected,
        tolerance=5e-3,
        shapes={"m": m, "N": 5 * h, "K": 2 * h},
        flops=20.0 * m * h * h,
    )


def _sum_cases(suite: str) -> list[Case]:
    sizes = [(16, 40)] if suite == "smoke" else [(64, 2000), (256, 2000), (256, 200)]
    return [Case(f"H {h}, {m} rows", "lists of 0 to 4", params={"h": h, "m": m}) for h, m in sizes]


def _build_sum(case: Case, device: torch.device) -> Built:
    normal, picked = _maker(device)
    h, m = case.params["h"], case.params["m"]
    counts = picked(m, 5).long()
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    index, src, out = picked(int(starts[-1])), normal(TABLE, h), normal(m, h)
    lists = torch.repeat_interleave(torch.arange(m, device=device), counts)
    kernel = torch.ops.edgeops._rows_sum.default

    def ours() -> Tensor:
        kernel(src, starts, index, out)
        return out

    def index_add() -> Tensor:
        return src.new_zeros(m, h).index_add_(0, lists, src.index_select(0, index))

    def expected() -> Tensor:
        exact = torch.empty(m, h, dtype=torch.float64, device=device)
        TWINS["_rows_sum"](src.double(), starts, index, exact)
        return exact

    return Built(
        candidates={
            OURS: Candidate(ours),
            "index_select + index_add": Candidate(index_add, note="list ids made beforehand"),
            "embedding_bag": Candidate(lambda: F.embedding_bag(index.long(), src, starts[:-1], mode="sum")),
        },
        expected=expected,
        tolerance=1e-5,
        shapes={"m": m, "H": h, "summands": int(starts[-1])},
        bytes=4.0 * h * (m + int(starts[-1])),
    )


def _build_add(case: Case, device: torch.device) -> Built:
    h, m = case.params["h"], case.params["m"]
    src, table = torch.randn(m, h, device=device), torch.zeros(2 * m, h, device=device)
    rows = torch.randint(0, 2 * m, (m,), dtype=torch.int32, device=device)
    kernel = torch.ops.edgeops._rows_add.default

    def ours() -> Tensor:
        kernel(src, rows, table.zero_())
        return table

    def expected() -> Tensor:
        exact = torch.zeros(2 * m, h, dtype=torch.float64, device=device)
        TWINS["_rows_add"](src.double(), rows, exact)
        return exact

    return Built(
        candidates={
            OURS: Candidate(ours, note="zeroes the table, as index_add does here"),
            "index_add_": Candidate(lambda: table.zero_().index_add_(0, rows, src)),
        },
        expected=expected,
        tolerance=1e-5,
        shapes={"m": m, "H": h},
        bytes=4.0 * h * 3 * m,
    )


# Op -> its arguments, read by tests/native/batching_samples.py too:
# k is [m, k H], "t" a table with its row list, "2x" is [2 m, H]
CELLS: dict[str, tuple[int | str, ...]] = {
    "_lstm_cell_fwd": (4, "t", 1, 1),
    "_lstm_cell_bwd": (4, "t", 1, 1, 1, 4, 1),
    "_treelstm_cell_fwd": (5, "t", "t", 1, 1),
    "_treelstm_cell_bwd": (5, "t", "t", 1, 1, 1, 5, 1, 1),
    "_treelstm_leaf_fwd": (3, 1, 1),
    "_treelstm_leaf_bwd": (3, 1, 1, 1, 3),
    "_gru_cell_fwd": (3, 3, "t", 1),
    "_gru_cell_bwd": (3, 3, "t", 1, 3, 3, 1),
    "_treegru_reset_fwd": (4, "t", "t", "2x"),
    "_treegru_reset_bwd": (4, "t", "t", "2x", 4, 1, 1),
    "_treegru_cell_fwd": ("2x", 4, "t", "t", 1),
    "_treegru_cell_bwd": ("2x", 4, "t", "t", 1, "2x", 4, 1, 1),
}
# the argument whose value is compared: one that a call does not read
RESULT = {name: len(kinds) + kinds.count("t") - 1 for name, kinds in CELLS.items()} | {"_treegru_reset_bwd": 6}


def _cell_cases(suite: str) -> list[Case]:
    sizes = [(16, 7)] if suite == "smoke" else [(64, 32), (256, 256)]
    return [
        Case(f"{name.removeprefix('_')}, H {h}, {m} rows", "drawn", params={"name": name, "h": h, "m": m})
        for name in CELLS
        for h, m in sizes
    ]


def _build_cell(case: Case, device: torch.device) -> Built:
    normal, picked = _maker(device)
    name, h, m = case.params["name"], case.params["h"], case.params["m"]
    args: list[Tensor] = []
    for kind in CELLS[name]:
        if kind == "t":
            args += [normal(TABLE, h), picked(m)]
        elif kind == "2x":
            args.append(normal(2 * m, h).tanh())
        else:
            args.append(normal(m, int(kind) * h).sigmoid())
    kernel, place = getattr(torch.ops.edgeops, name).default, RESULT[name]
    wide = [x.to(torch.float64, copy=True) if x.is_floating_point() else x for x in args]
    theirs = [x.clone() for x in args]
    before = [x.clone() for x in args]

    def once(call: Callable[..., None]) -> Callable[[object], Tensor]:
        def view(_: object) -> Tensor:
            fresh = [x.clone() for x in before]
            call(*fresh)
            return fresh[place]

        return view

    def expected() -> Tensor:
        TWINS[name](*wide)
        return wide[place]

    return Built(
        candidates={
            OURS: Candidate(lambda: kernel(*args), view=once(kernel)),
            "torch": Candidate(lambda: TWINS[name](*theirs), view=once(TWINS[name]), note="the twin"),
        },
        expected=expected,
        tolerance=1e-5,
        shapes={"m": m, "H": h},
        bytes=4.0 * h * m * sum(2 if kind == "2x" else 1 if kind == "t" else int(kind) for kind in CELLS[name]),
    )


WORKLOADS = (
    Workload(
        "rows_linear",
        ("_rows_linear", "_rows_linear_pack"),
        "products of rows of tables with a packed weight",
        OURS,
        GATHER,
        _linear_cases,
        _build_linear,
    ),
    Workload(
        "rows_linear_wgrad",
        ("_rows_linear_wgrad",),
        "weight gradient over all rows of a mini-batch",
        OURS,
        GATHER,
        _wgrad_cases,
        _build_wgrad,
    ),
    Workload(
        "rows_sum",
        ("_rows_sum",),
        "sums of listed rows",
        OURS,
        "index_select + index_add",
        _sum_cases,
        _build_sum,
    ),
    Workload(
        "rows_add",
        ("_rows_add",),
        "rows added to listed rows of a table",
        OURS,
        "index_add_",
        _sum_cases,
        _build_add,
    ),
    Workload(
        "cells",
        tuple(CELLS),
        "pointwise parts of recurrent and tree cells, forward and backward",
        OURS,
        "torch",
        _cell_cases,
        _build_cell,
    ),
)
