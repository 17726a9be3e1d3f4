# SPDX-License-Identifier: Apache-2.0
"""Pointwise parts of cells: error bounds of the activations, torch's own cells, gradients, threads, refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.batching.cells import CELLS
from edgeops._native import translate
from edgeops.batching._ops import TWINS
from tests.messages import refused

OPS = torch.ops.edgeops
NONE = torch.empty(0, dtype=torch.int32)  # rows in order


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_error_bounds_of_activations() -> None:
    """Through the leaf cell: sigmoid 2e-7 absolute, tanh 3e-7 relative in float32, with their limits and NaN."""
    x = torch.cat([torch.linspace(-30, 30, 60001), torch.logspace(-30, 2, 5001), -torch.logspace(-30, 2, 5001)])
    x = torch.cat([x, torch.tensor([0.0, torch.inf, -torch.inf, 1e30, -1e30, torch.nan])])[:, None]
    gates = torch.cat([x, x, x], 1)
    OPS._treelstm_leaf_fwd(gates, torch.empty_like(x), torch.empty_like(x))
    sigmoid, tanh = gates[:, 0].double(), gates[:, 2].double()
    exact = x[:, 0].double()
    finite = ~exact.isnan()
    assert bool(gates[-1].isnan().all())
    assert float((sigmoid - exact.sigmoid())[finite].abs().max()) <= 2e-7
    assert bool((((tanh - exact.tanh()).abs() <= 3e-7 * exact.tanh().abs()) | ~finite).all())
    assert float(tanh[finite].abs().max()) <= 1.0
    wide = torch.cat([x, x, x], 1).double()
    OPS._treelstm_leaf_fwd(wide, torch.empty_like(x).double(), torch.empty_like(x).double())
    torch.testing.assert_close(wide[:, 0], exact.sigmoid(), rtol=1e-15, atol=1e-16, equal_nan=True)
    torch.testing.assert_close(wide[:, 2], exact.tanh(), rtol=4e-16, atol=0.0, equal_nan=True)


def test_lstm_is_that_of_torch() -> None:
    cell, x, h, c = nn.LSTMCell(7, 13).double(), normal(5, 7), normal(5, 13, seed=1), normal(5, 13, seed=2)
    want_h, want_c = cell(x, (h, c))
    gates = (x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh).detach()
    got_h, got_c = torch.empty(5, 13).double(), torch.empty(5, 13).double()
    order = torch.tensor([3, 1, 4, 0, 2])
    OPS._lstm_cell_fwd(gates, c[order], order.argsort().int(), got_h, got_c)
    torch.testing.assert_close(got_h, want_h.detach())
    torch.testing.assert_close(got_c, want_c.detach())


def test_gru_is_that_of_torch() -> None:
    cell, x, h = nn.GRUCell(7, 13).double(), normal(5, 7), normal(5, 13, seed=1)
    x_gates = (x @ cell.weight_ih.T + cell.bias_ih).detach()
    h_gates = (h @ cell.weight_hh.T + cell.bias_hh).detach()
    out = torch.empty(5, 13).double()
    OPS._gru_cell_fwd(x_gates, h_gates, h, NONE, out)
    torch.testing.assert_close(out, cell(x, h).detach())


def lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, 1)
    state = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * state.tanh(), state


def treelstm(gates: Tensor, c1: Tensor, c2: Tensor) -> tuple[Tensor, Tensor]:
    i, o, u, f1, f2 = gates.chunk(5, 1)
    state = i.sigmoid() * u.tanh() + f1.sigmoid() * c1 + f2.sigmoid() * c2
    return o.sigmoid() * state.tanh(), state


def leaf(gates: Tensor) -> tuple[Tensor, Tensor]:
    i, o, u = gates.chunk(3, 1)
    state = i.sigmoid() * u.tanh()
    return o.sigmoid() * state.tanh(), state


STATES: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], int, int]] = {
    "_lstm_cell": (lstm, 4, 1),
    "_treelstm_cell": (treelstm, 5, 2),
    "_treelstm_leaf": (leaf, 3, 0),
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("native", [True, False], ids=["native", "twin"])
def test_gradients_of_cells_with_states(name: str, native: bool) -> None:
    """Against autograd through the same formulas; children read through row lists."""
    formula, parts, children = STATES[name]

    def run(op: str) -> Callable[..., None]:
        return getattr(OPS, op).default if native else TWINS[op]  # type: ignore[no-any-return]

    m, h, rows = 6, 11, torch.tensor([4, 4, 0, 2, 1, 3], dtype=torch.int32)
    gates = normal(m, parts * h).requires_grad_()
    tables = [normal(5, h, seed=i + 1) for i in range(children)]
    picks = [table.index_select(0, rows).requires_grad_() for table in tables]
    dh, dc = normal(m, h, seed=8), normal(m, h, seed=9)
    outs = formula(gates, *picks)
    want = torch.autograd.grad(outs, [gates, *picks], [dh, dc])
    kept, lists = gates.detach().clone(), [x for table in tables for x in (table, rows)]
    h_out, c_out = normal(2, m, h)
    run(f"{name}_fwd")(kept, *lists, h_out, c_out)
    torch.testing.assert_close((h_out, c_out), tuple(x.detach() for x in outs))
    got = [torch.empty_like(x) for x in want]
    run(f"{name}_bwd")(kept, *lists, c_out, dh, dc, *got)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)
    run(f"{name}_bwd")(kept, *lists, c_out, dh, dc, kept, *got[1:])  # gradients in place of the gates
    torch.testing.assert_close(kept, want[0])


@pytest.mark.parametrize("native", [True, False], ids=["native", "twin"])
def test_gradients_of_gru(native: bool) -> None:
    def run(op: str) -> Callable[..., None]:
        return getattr(OPS, op).default if native else TWINS[op]  # type: ignore[no-any-return]

    m, h = 5, 9
    xg, hg, state = (normal(m, size, seed=i).requires_grad_() for i, size in enumerate((3 * h, 3 * h, h)))
    xr, xz, xn, hr, hz, hn = (*xg.chunk(3, 1), *hg.chunk(3, 1))
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    new = (1 - z) * (xn + r * hn).tanh() + z * state
    dh = normal(m, h, seed=5)
    want = torch.autograd.grad(new, [xg, hg, state], dh)
    kept, out = xg.detach().clone(), torch.empty(m, h).double()
    run("_gru_cell_fwd")(kept, hg.detach(), state.detach(), NONE, out)
    torch.testing.assert_close(out, new.detach())
    got = [torch.empty_like(x) for x in want]
    run("_gru_cell_bwd")(kept, hg.detach(), state.detach(), NONE, dh, *got)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("native", [True, False], ids=["native", "twin"])
def test_gradients_of_treegru(native: bool) -> None:
    """Both steps and the product between them: `c_k = tanh(U (r_k h_k) + b)`."""

    def run(op: str) -> Callable[..., None]:
        return getattr(OPS, op).default if native else TWINS[op]  # type: ignore[no-any-return]

    m, h = 5, 9
    gates = normal(m, 4 * h).requires_grad_()
    h1, h2 = normal(m, h, seed=1).requires_grad_(), normal(m, h, seed=2).requires_grad_()
    u, bias = normal(h, h, seed=3), normal(h, seed=4)
    r1, r2, z1, z2 = gates.sigmoid().chunk(4, 1)
    c1, c2 = ((r * x @ u.T + bias).tanh() for r, x in ((r1, h1), (r2, h2)))
    new = (z1 * h1 + (1 - z1) * c1 + z2 * h2 + (1 - z2) * c2) / 2
    dh = normal(m, h, seed=5)
    want = torch.autograd.grad(new, [gates, h1, h2], dh)
    kept, reset, out = gates.detach().clone(), torch.empty(2 * m, h).double(), torch.empty(m, h).double()
    children = (h1.detach(), NONE, h2.detach(), NONE)
    run("_treegru_reset_fwd")(kept, *children, reset)
    cand = reset @ u.T + bias
    run("_treegru_cell_fwd")(cand, kept, *children, out)
    torch.testing.assert_close(out, new.detach())
    got, dcand = [torch.full_like(x, torch.nan) for x in want], torch.empty_like(cand)
    run("_treegru_cell_bwd")(cand, kept, *children, dh, dcand, *got)
    run("_treegru_reset_bwd")(kept, *children, dcand @ u, *got)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", CELLS)
def test_threads_and_tables_in_place(name: str, threads: Callable[[int], None]) -> None:
    """Any number of threads gives the same bits, in segments of one table as in tensors of their own."""
    m, h = 700, 70

    def arguments() -> list[Tensor]:
        args: list[Tensor] = []
        for kind in CELLS[name]:
            seed = len(args)
            if kind == "t":
                rows = torch.randint(0, 90, (m,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
                args += [normal(90, h, seed=seed, dtype=torch.float32), rows]
            else:
                size = (2 * m, h) if kind == "2x" else (m, int(kind) * h)
                args.append(normal(*size, seed=seed, dtype=torch.float32))
        return args

    expected, got = arguments(), arguments()
    getattr(OPS, name)(*expected)
    threads(2)
    getattr(OPS, name)(*got)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_states_of_one_table() -> None:
    """The new states are further rows of the table that the old ones are read from."""
    table, gates, h_out = torch.cat([normal(4, 8), torch.zeros(2, 8)]), normal(2, 40), torch.empty(2, 8).double()
    rows = torch.tensor([1, 3], dtype=torch.int32)
    want = treelstm(gates, table[[1, 3]], table[[3, 1]])
    OPS._treelstm_cell_fwd(gates, table, rows, table, rows.flip(0), h_out, table[4:])
    torch.testing.assert_close((h_out, table[4:]), want)


def test_refusals() -> None:
    gates, c, rows, out = normal(2, 12), normal(4, 3), torch.tensor([0, 3], dtype=torch.int32), normal(2, 3)
    cases: list[tuple[type[Exception], str, tuple[object, ...]]] = [
        (ValueError, "gates must have 4 parts", (gates[:, :10], c, rows, out, out.clone())),
        (TypeError, "c must have dtype Double", (gates, c.float(), rows, out, out.clone())),
        (ValueError, r"c must have shape \(any, 3\)", (gates, normal(4, 4), rows, out, out.clone())),
        (ValueError, "c_rows must hold row numbers from 0 to 3", (gates, c, rows + 1, out, out.clone())),
        (ValueError, r"h_out must have shape \(2, 3\)", (gates, c, rows, out[:1], out.clone())),
        (ValueError, "c_out must have rows that do not overlap", (gates, c, rows, out, out[:1].expand(2, 3))),
        (ValueError, "gates must have dense rows", (normal(12, 2).T, c, rows, out, out.clone())),
        (TypeError, "gates must be float32", (gates.to(torch.int32), c, rows, out, out.clone())),
    ]
    for kind, rule, args in cases:
        with refused(kind, "lstm_cell", rule):
            try:
                OPS._lstm_cell_fwd(*args)
            except RuntimeError as error:
                raise translate(error) from None
