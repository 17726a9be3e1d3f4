# SPDX-License-Identifier: Apache-2.0
"""A GRU cell with `nn.GRUCell`'s parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from edgeops.batching._program import Program
from edgeops.batching._runtime import runtime
from edgeops.batching.cell import CellOwner
from edgeops.batching.cells._native_body import GatesAhead, NativeBody


class GRU(CellOwner, nn.GRUCell):
    """`nn.GRUCell` for sessions: `step(x, h) -> h` with rows of one instance.

    Constructor, parameters and `state_dict` are `nn.GRUCell`'s; gates are in its order r, z, n.

    >>> import torch
    >>> from edgeops import batching
    >>> cell = GRU(4, 3)
    >>> with batching.session() as s:
    ...     h = cell.step(torch.ones(4), torch.zeros(3))
    >>> h.shape
    torch.Size([3])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step = runtime().Cell(_Step(self))

    def step_rows(self, x: Tensor, h: Tensor) -> Tensor:
        """`step` on rows `[m, input_size]` and `[m, hidden_size]`: plain PyTorch."""
        state: Tensor = self(x, h)
        return state


class _Step(NativeBody):
    def __init__(self, module: GRU) -> None:
        super().__init__(module, module.step_rows, "GRU.step")
        self._parts = 0, runtime().Cell(GatesAhead(module, ["bias_ih"], "GRU.step of x")), runtime().Cell(_Rest(module))

    def parts(self) -> tuple[int, Any, Any]:
        return self._parts

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        p, m = program, self.module
        width = m.hidden_size
        x, h = p.operand(0, m.input_size), p.operand(1, width)
        (of_x, d_of_x), (of_h, d_of_h) = ((p.kept(3 * width), p.d_kept(3 * width)) for _ in range(2))
        before = p.room(width)
        products = [
            p.linear(of_x, d_of_x, {"weight_ih": [x]}, ["bias_ih"]),
            p.linear(of_h, d_of_h, {"weight_hh": [h]}, ["bias_hh"]),
        ]
        p.cell(0, "gru_fwd", width, of_x, of_h, h, p.result(0))
        p.cell(1, "gru_bwd", width, of_x, of_h, h, p.d_result(0), d_of_x, d_of_h, before)
        p.add(p.d_operand(1), before)
        p.backprop(p.d_operand(0), x, products)
        p.backprop(p.d_operand(1), h, products)


class _Rest(NativeBody):
    """A step with the part of x in its gates."""

    def __init__(self, module: GRU) -> None:
        super().__init__(module, self.rest, "GRU.step of h")

    def rest(self, gates: Tensor, h: Tensor) -> Tensor:
        """Rows of gates and states to states: plain PyTorch."""
        m = self.module
        (xr, xz, xn), (hr, hz, hn) = gates.chunk(3, 1), F.linear(h, m.weight_hh, m.bias_hh).chunk(3, 1)
        z, n = (xz + hz).sigmoid(), (xn + (xr + hr).sigmoid() * hn).tanh()
        return (1 - z) * n + z * h

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        p, width = program, self.module.hidden_size
        h, before = p.operand(1, width), p.room(width)
        (of_x, d_of_x), (of_h, d_of_h) = ((p.kept(3 * width), p.d_kept(3 * width)) for _ in range(2))
        p.copy(of_x, p.operand(0, 3 * width))
        product = p.linear(of_h, d_of_h, {"weight_hh": [h]}, ["bias_hh"])
        p.cell(0, "gru_fwd", width, of_x, of_h, h, p.result(0))
        p.cell(1, "gru_bwd", width, of_x, of_h, h, p.d_result(0), d_of_x, d_of_h, before)
        p.add(p.d_operand(0), d_of_x)
        p.add(p.d_operand(1), before)
        p.backprop(p.d_operand(1), h, [product])
