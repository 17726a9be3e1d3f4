# SPDX-License-Identifier: Apache-2.0
"""An LSTM cell with `nn.LSTMCell`'s parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from edgeops.batching._program import Program
from edgeops.batching._runtime import runtime
from edgeops.batching.cell import CellOwner
from edgeops.batching.cells._native_body import GatesAhead, NativeBody


class LSTM(CellOwner, nn.LSTMCell):
    """`nn.LSTMCell` for sessions: `step(x, h, c) -> (h, c)` with rows of one instance.

    Constructor, parameters and `state_dict` are `nn.LSTMCell`'s; gates are in its order i, f, g, o.

    >>> import torch
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
        ahead = GatesAhead(module, ["bias_ih", "bias_hh"], "LSTM.step of x")
        self._parts = 0, runtime().Cell(ahead), runtime().Cell(_Rest(module))

    def parts(self) -> tuple[int, Any, Any]:
        return self._parts

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        p, m = program, self.module
        width = m.hidden_size
        x, h, c = p.operand(0, m.input_size), p.operand(1, width), p.operand(2, width)
        gates, dgates, dc = p.kept(4 * width), p.d_kept(4 * width), p.room(width)
        product = p.linear(gates, dgates, {"weight_ih": [x], "weight_hh": [h]}, ["bias_ih", "bias_hh"])
        p.cell(0, "lstm_fwd", width, gates, c, p.result(0), p.result(1))
        p.cell(1, "lstm_bwd", width, gates, c, p.result(1), p.d_result(0), p.d_result(1), dgates, dc)
        p.add(p.d_operand(2), dc)
        p.backprop(p.d_operand(0), x, [product])
        p.backprop(p.d_operand(1), h, [product])


class _Rest(NativeBody):
    """A step whose gates have had their part of x."""

    def __init__(self, module: LSTM) -> None:
        super().__init__(module, self.rest, "LSTM.step of h")

    def rest(self, gates: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of gates and states to states: plain PyTorch."""
        i, f, g, o = (gates + h @ self.module.weight_hh.T).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        p, width = program, self.module.hidden_size
        h, c = p.operand(1, width), p.operand(2, width)
        gates, dgates, dc = p.kept(4 * width), p.d_kept(4 * width), p.room(width)
        p.copy(gates, p.operand(0, 4 * width))
        product = p.linear(gates, dgates, {"weight_hh": [h]}, on=True)
        p.cell(0, "lstm_fwd", width, gates, c, p.result(0), p.result(1))
        p.cell(1, "lstm_bwd", width, gates, c, p.result(1), p.d_result(0), p.d_result(1), dgates, dc)
        p.add(p.d_operand(0), dgates)
        p.add(p.d_operand(2), dc)
        p.backprop(p.d_operand(1), h, [product])
