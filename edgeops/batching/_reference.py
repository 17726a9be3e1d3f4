# SPDX-License-Identifier: Apache-2.0
"""The readable twins of the batching ops: plain PyTorch. They are the specification.

Every op writes into tensors of the caller, which are segments of tables, and returns nothing. A list of row numbers
that is empty stands for all rows of its table in order. ED-Batch (ICML 2023), section 5, for the cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _rows(table: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """The rows of a table that a list names, as many as `like` has, in the dtype that results are computed in."""
    chosen = table[: len(like)] if rows.numel() == 0 else table.index_select(0, rows)
    return chosen.to(_wide(table))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _parts(x: Tensor, count: int) -> list[Tensor]:
    return list(x.to(_wide(x)).chunk(count, 1)) if x.shape[1] else [x.to(_wide(x))] * count


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.to(_wide(x))
    return wide[: len(x) // 2], wide[len(x) // 2 :]


def rows_linear_pack_reference(weights: Sequence[Tensor]) -> Tensor:
    """Weights `[N, K_i]` side by side as panels of 64 bytes of columns of their transpose, zeros behind N.

    The result is `[ceil(N / w), K, w]` in the compute dtype.
    """
    weight = torch.cat(list(weights), 1)
    wide = weight.to(_wide(weight))
    width = 64 // wide.element_size()
    panels = -(-weight.shape[0] // width)
    room = wide.new_zeros(panels * width, weight.shape[1])
    room[: weight.shape[0]] = wide
    return room.view(panels, width, weight.shape[1]).mT.contiguous()


def rows_linear_reference(
    tables: Sequence[Tensor], rows: Sequence[Tensor], weight: Tensor, bias: Tensor | None, out: Tensor
) -> None:
    """`out = concat(tables[k][rows[k]]) @ weight.T + bias`; the weight is `[N, K]` or packed."""
    x = torch.cat([_rows(table, each, out) for table, each in zip(tables, rows, strict=True)], 1)
    matrix = weight.mT.flatten(0, 1)[: out.shape[1]] if weight.dim() == 3 else weight
    result = x @ matrix.to(x.dtype).mT
    out.copy_(result if bias is None else result + bias)


def rows_linear_wgrad_reference(
    grad: Tensor, tables: Sequence[Tensor], rows: Sequence[Tensor], dweight: Tensor, dbias: Tensor | None
) -> None:
    """`dweight += grad.T @ concat(tables[k][rows[k]])` and `dbias += grad.sum(0)`, in the compute dtype."""
    x = torch.cat([_rows(table, each, grad) for table, each in zip(tables, rows, strict=True)], 1)
    wide = grad.to(x.dtype)
    dweight.add_(wide.mT @ x)
    if dbias is not None:
        dbias.add_(wide.sum(0))


def rows_add_reference(src: Tensor, rows: Tensor, out: Tensor) -> None:
    """`out[rows[i]] += src[i]`, in the order of i."""
    out.index_add_(0, torch.arange(len(src), device=src.device) if rows.numel() == 0 else rows, src)


def rows_sum_reference(src: Tensor, starts: Tensor, index: Tensor, out: Tensor, add: bool = False) -> None:
    """`out[i] (+)= sum of src[index[j]] for j in starts[i]:starts[i + 1]`."""
    lists = torch.repeat_interleave(torch.arange(len(out), device=out.device), starts.diff())
    used = index[int(starts[0]) : int(starts[-1])]
    sums = out.to(_wide(out)) if add else torch.zeros_like(out, dtype=_wide(out))
    out.copy_(sums.index_add(0, lists, src.to(_wide(src)).index_select(0, used)))


def lstm_cell_fwd_reference(gates: Tensor, c: Tensor, c_rows: Tensor, h_out: Tensor, c_out: Tensor) -> None:
    """An LSTM cell from its gates (i, f, g, o), which become activated: `c' = f c + i g`, `h = o tanh(c')`."""
    i, f, g, o = _parts(gates, 4)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    state = f * _rows(c, c_rows, gates) + i * g
    h_out.copy_(o * state.tanh())
    c_out.copy_(state)
    gates.copy_(torch.cat([i, f, g, o], 1))


def lstm_cell_bwd_reference(
    gates: Tensor, c: Tensor, c_rows: Tensor, c_out: Tensor, dh: Tensor, dc: Tensor, dgates: Tensor, dc_in: Tensor
) -> None:
    """Gradients of the gates before activation and of the old state; `gates` are the activated ones."""
    i, f, g, o = _parts(gates, 4)
    t, dh = c_out.to(i.dtype).tanh(), dh.to(i.dtype)
    total = dc + dh * o * (1 - t * t)
    di, df = total * g * i * (1 - i), total * _rows(c, c_rows, gates) * f * (1 - f)
    dg, do = total * i * (1 - g * g), dh * t * o * (1 - o)
    dgates.copy_(torch.cat([di, df, dg, do], 1))
    dc_in.copy_(total * f)


def treelstm_cell_fwd_reference(
    gates: Tensor, c1: Tensor, rows1: Tensor, c2: Tensor, rows2: Tensor, h_out: Tensor, c_out: Tensor
) -> None:
    """The inner cell of a binary TreeLSTM, gates (i, o, u, f1, f2): `c = i u + f1 c1 + f2 c2`, `h = o tanh(c)`."""
    i, o, u, f1, f2 = _parts(gates, 5)
    i, o, u, f1, f2 = i.sigmoid(), o.sigmoid(), u.tanh(), f1.sigmoid(), f2.sigmoid()
    state = i * u + f1 * _rows(c1, rows1, gates) + f2 * _rows(c2, rows2, gates)
    h_out.copy_(o * state.tanh())
    c_out.copy_(state)
    gates.copy_(torch.cat([i, o, u, f1, f2], 1))


def treelstm_cell_bwd_reference(
    gates: Tensor,
    c1: Tensor,
    rows1: Tensor,
    c2: Tensor,
    rows2: Tensor,
    c_out: Tensor,
    dh: Tensor,
    dc: Tensor,
    dgates: Tensor,
    dc1: Tensor,
    dc2: Tensor,
) -> None:
    """Gradients of the gates before activation and of both child states."""
    i, o, u, f1, f2 = _parts(gates, 5)
    t, dh = c_out.to(i.dtype).tanh(), dh.to(i.dtype)
    total = dc + dh * o * (1 - t * t)
    df1 = total * _rows(c1, rows1, gates) * f1 * (1 - f1)
    df2 = total * _rows(c2, rows2, gates) * f2 * (1 - f2)
    di, do, du = total * u * i * (1 - i), dh * t * o * (1 - o), total * i * (1 - u * u)
    dgates.copy_(torch.cat([di, do, du, df1, df2], 1))
    dc1.copy_(total * f1)
    dc2.copy_(total * f2)


def treelstm_leaf_fwd_reference(gates: Tensor, h_out: Tensor, c_out: Tensor) -> None:
    """The leaf cell of a TreeLSTM, gates (i, o, u): `c = i u`, `h = o tanh(c)`."""
    i, o, u = _parts(gates, 3)
    i, o, u = i.sigmoid(), o.sigmoid(), u.tanh()
    h_out.copy_(o * (i * u).tanh())
    c_out.copy_(i * u)
    gates.copy_(torch.cat([i, o, u], 1))


def treelstm_leaf_bwd_reference(gates: Tensor, c_out: Tensor, dh: Tensor, dc: Tensor, dgates: Tensor) -> None:
    """Gradients of the gates before activation."""
    i, o, u = _parts(gates, 3)
    t, dh = c_out.to(i.dtype).tanh(), dh.to(i.dtype)
    total = dc + dh * o * (1 - t * t)
    dgates.copy_(torch.cat([total * u * i * (1 - i), dh * t * o * (1 - o), total * i * (1 - u * u)], 1))


def gru_cell_fwd_reference(x_gates: Tensor, h_gates: Tensor, h: Tensor, h_rows: Tensor, h_out: Tensor) -> None:
    """A GRU cell by torch's convention, parts (r, z, n) of the products with the input and with the old state.

    `n = tanh(x_n + r h_n)`, `h' = (1 - z) n + z h`; x_gates become the activated r, z, n.
    """
    (xr, xz, xn), (hr, hz, hn) = _parts(x_gates, 3), _parts(h_gates, 3)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    n = (xn + r * hn).tanh()
    h_out.copy_((1 - z) * n + z * _rows(h, h_rows, x_gates))
    x_gates.copy_(torch.cat([r, z, n], 1))


def gru_cell_bwd_reference(
    x_gates: Tensor,
    h_gates: Tensor,
    h: Tensor,
    h_rows: Tensor,
    dh: Tensor,
    dx_gates: Tensor,
    dh_gates: Tensor,
    dh_in: Tensor,
) -> None:
    """Gradients of both products and of the old state where it enters directly."""
    (r, z, n), hn = _parts(x_gates, 3), _parts(h_gates, 3)[2]
    dh = dh.to(r.dtype)
    dn, dz = dh * (1 - z) * (1 - n * n), dh * (_rows(h, h_rows, x_gates) - n) * z * (1 - z)
    dr = dn * hn * r * (1 - r)
    dx_gates.copy_(torch.cat([dr, dz, dn], 1))
    dh_gates.copy_(torch.cat([dr, dz, dn * r], 1))
    dh_in.copy_(dh * z)


def treegru_reset_fwd_reference(
    gates: Tensor, h1: Tensor, rows1: Tensor, h2: Tensor, rows2: Tensor, reset: Tensor
) -> None:
    """First step of a binary TreeGRU's inner cell: gates (r1, r2, z1, z2) become activated, `reset = [r1 h1; r2 h2]`.

    One product of `reset` `[2m, H]` with the shared U, bias added, gives the candidates of `treegru_cell`.
    """
    r1, r2, z1, z2 = (x.sigmoid() for x in _parts(gates, 4))
    reset.copy_(torch.cat([r1 * _rows(h1, rows1, gates), r2 * _rows(h2, rows2, gates)]))
    gates.copy_(torch.cat([r1, r2, z1, z2], 1))


def treegru_reset_bwd_reference(
    gates: Tensor,
    h1: Tensor,
    rows1: Tensor,
    h2: Tensor,
    rows2: Tensor,
    dreset: Tensor,
    dgates: Tensor,
    dh1: Tensor,
    dh2: Tensor,
) -> None:
    """Gradients of r1 and r2 before activation, into their half of dgates; adds to dh1 and dh2."""
    r1, r2, _, _ = _parts(gates, 4)
    d1, d2 = _halves(dreset)
    dr1, dr2 = d1 * _rows(h1, rows1, gates) * r1 * (1 - r1), d2 * _rows(h2, rows2, gates) * r2 * (1 - r2)
    dgates[:, : dgates.shape[1] // 2].copy_(torch.cat([dr1, dr2], 1))
    dh1.copy_(dh1 + d1 * r1)
    dh2.copy_(dh2 + d2 * r2)


def treegru_cell_fwd_reference(
    cand: Tensor, gates: Tensor, h1: Tensor, rows1: Tensor, h2: Tensor, rows2: Tensor, h_out: Tensor
) -> None:
    """Second step: `h = (z1 h1 + (1 - z1) tanh(c1) + z2 h2 + (1 - z2) tanh(c2)) / 2`; cand `[2m, H]` become tanh."""
    (c1, c2), (_, _, z1, z2) = _halves(cand), _parts(gates, 4)
    c1, c2 = c1.tanh(), c2.tanh()
    h_out.copy_(((z1 * _rows(h1, rows1, gates) + (1 - z1) * c1) + (z2 * _rows(h2, rows2, gates) + (1 - z2) * c2)) / 2)
    cand.copy_(torch.cat([c1, c2]))


def treegru_cell_bwd_reference(
    cand: Tensor,
    gates: Tensor,
    h1: Tensor,
    rows1: Tensor,
    h2: Tensor,
    rows2: Tensor,
    dh: Tensor,
    dcand: Tensor,
    dgates: Tensor,
    dh1: Tensor,
    dh2: Tensor,
) -> None:
    """Gradients of the candidates before tanh, of z1 and z2 into their half of dgates, of the children directly."""
    (c1, c2), (_, _, z1, z2) = _halves(cand), _parts(gates, 4)
    half = dh.to(c1.dtype) / 2
    dcand.copy_(torch.cat([half * (1 - z1) * (1 - c1 * c1), half * (1 - z2) * (1 - c2 * c2)]))
    dz1, dz2 = (
        half * (_rows(h1, rows1, gates) - c1) * z1 * (1 - z1),
        half * (_rows(h2, rows2, gates) - c2) * z2 * (1 - z2),
    )
    dgates[:, dgates.shape[1] // 2 :].copy_(torch.cat([dz1, dz2], 1))
    dh1.copy_(half * z1)
    dh2.copy_(half * z2)
