# SPDX-License-Identifier: Apache-2.0
"""A GRU cell with `nn.GRUCell`'s parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeops.batching._runtime import runtime
from edgeops.batching.cells._native_body import NativeBody, joined, product, weight_grad

_ops = torch.ops.edgeops


class GRU(nn.GRUCell):
    """`nn.GRUCell` for sessions: `step(x, h) -> h` with rows of one instance.

    Constructor, parameters and `state_dict` are `nn.GRUCell`'s; gates are in its order r, z, n.

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

    def forward(self, batch: Any, training: bool) -> Any:
        m, flush = self.module, batch.flush
        out = batch.out(0)
        of_x, of_h = out.new_empty(2, batch.count, 3 * out.shape[1]).unbind()
        product(flush, [batch.rows(0)], m.weight_ih, m.bias_ih, of_x)
        product(flush, [batch.rows(1)], m.weight_hh, m.bias_hh, of_h)
        _ops._gru_cell_fwd.default(of_x, of_h, *batch.rows(1), out)
        return (of_x, of_h) if training else None

    def backward(self, batch: Any, saved: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        m = self.module
        of_x, of_h = saved
        dx, dh = torch.empty_like(of_x), torch.empty_like(of_h)
        before = torch.empty_like(batch.out(0))
        _ops._gru_cell_bwd.default(of_x, of_h, *batch.rows(1), batch.grad_out(0), dx, dh, before)
        batch.add_grad(0, dx @ m.weight_ih)
        batch.add_grad(1, before.addmm_(dh, m.weight_hh))
        return dx, dh

    def finish(self, flush: Any, batches: list[Any]) -> None:
        m = self.module
        for slot, weight, bias in ((0, m.weight_ih, m.bias_ih), (1, m.weight_hh, m.bias_hh)):
            grad = torch.cat([kept[slot] for _, kept in batches])
            dweight, dbias = weight_grad(grad, [joined([b.rows(slot) for b, _ in batches])], weight, bias)
            flush.add_captured(weight, dweight)
            if bias is not None:
                flush.add_captured(bias, dbias)
