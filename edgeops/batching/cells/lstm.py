# SPDX-License-Identifier: Apache-2.0
"""An LSTM cell with `nn.LSTMCell`'s parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeops.batching._runtime import runtime
from edgeops.batching.cells._native_body import NativeBody, joined, product, weight_grad

_ops = torch.ops.edgeops


class LSTM(nn.LSTMCell):
    """`nn.LSTMCell` for sessions: `step(x, h, c) -> (h, c)` with rows of one instance.

    Constructor, parameters and `state_dict` are `nn.LSTMCell`'s; gates are in its order i, f, g, o.

    >>> from edgeops import batching
    >>> cell = LSTM(4, 3)
    >>> with batching.session() as s:
    ...     h, c = cell.step(torch.ones(4), torch.zeros(3), torch.zeros(3))
    >>> h.shape
    torch.Size([3])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step = runtime().Cell(_Step(self))

    def step_rows(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """`step` on rows `[m, input_size]` and `[m, hidden_size]`: plain PyTorch."""
        state: tuple[Tensor, Tensor] = self(x, (h, c))
        return state


class _Step(NativeBody):
    def __init__(self, module: LSTM) -> None:
        super().__init__(module, module.step_rows, "LSTM.step")

    def forward(self, batch: Any, training: bool) -> Any:
        m, flush = self.module, batch.flush
        weight, bias = flush.once(("lstm", id(m)), lambda: _joined_parameters(m))
        h = batch.out(0)
        gates = h.new_empty(batch.count, 4 * h.shape[1])
        product(flush, [batch.rows(0), batch.rows(1)], weight, bias, gates)
        _ops._lstm_cell_fwd.default(gates, *batch.rows(2), h, batch.out(1))
        return gates if training else None

    def backward(self, batch: Any, gates: Tensor) -> Tensor:
        m = self.module
        dgates, dc = torch.empty_like(gates), torch.empty_like(batch.out(1))
        _ops._lstm_cell_bwd.default(
            gates, *batch.rows(2), batch.out(1), batch.grad_out(0), batch.grad_out(1), dgates, dc
        )
        batch.add_grad(0, dgates @ m.weight_ih)
        batch.add_grad(1, dgates @ m.weight_hh)
        batch.add_grad(2, dc)
        return dgates

    def finish(self, flush: Any, batches: list[Any]) -> None:
        m = self.module
        dgates = torch.cat([d for _, d in batches])
        x, h = (joined([b.rows(slot) for b, _ in batches]) for slot in (0, 1))
        dx, dbias = weight_grad(dgates, [x], m.weight_ih, m.bias_ih)
        dh, _ = weight_grad(dgates, [h], m.weight_hh, None)
        flush.add_captured(m.weight_ih, dx)
        flush.add_captured(m.weight_hh, dh)
        if dbias is not None:
            flush.add_captured(m.bias_ih, dbias)
            flush.add_captured(m.bias_hh, dbias.clone())


def _joined_parameters(m: nn.LSTMCell) -> tuple[Tensor, Any]:
    weight = torch.cat([m.weight_ih, m.weight_hh], 1)
    return weight, None if m.bias_ih is None else m.bias_ih + m.bias_hh
