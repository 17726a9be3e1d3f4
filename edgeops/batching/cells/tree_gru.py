# SPDX-License-Identifier: Apache-2.0
"""The binary TreeGRU of the ED-Batch benchmark: a leaf cell and an inner cell."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeops.batching._execute import ALL
from edgeops.batching._runtime import runtime
from edgeops.batching.cell import FunctionBody
from edgeops.batching.cells._native_body import NativeBody, joined, product, weight_grad

_ops = torch.ops.edgeops


class BinaryTreeGRU(nn.Module):
    """Cells of a binary TreeGRU; use `leaf` and `inner` inside a session. ED-Batch, section 5; spec section 7.1.

    `leaf(x) -> h`: `z = sigmoid(W x + b)`, `c = tanh(W x + b)`, `h = (1 - z) c`.
    `inner(h1, h2) -> h`: r1, r2, z1 and z2 are sigmoids of `[h1; h2]`; `c_k = tanh(U (r_k h_k) + b)`, and h is the mean
    of `z_k h_k + (1 - z_k) c_k` over both children.

    Args:
        input_size: width of x.
        hidden_size: width of h.

    Attributes:
        leaf_weight: `[2 H, input_size]`, rows z, c, and `leaf_bias` `[2 H]`.
        gate_weight: `[4 H, 2 H]`, rows r1, r2, z1, z2, and `gate_bias` `[4 H]`.
        candidate_weight: `[H, H]`, and `candidate_bias` `[H]`.

    >>> from edgeops import batching
    >>> tree = BinaryTreeGRU(4, 3)
    >>> with batching.session() as s:
    ...     h = tree.inner(tree.leaf(torch.ones(4)), tree.leaf(torch.zeros(4)))
    >>> h.tensor().shape
    torch.Size([3])
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        h = hidden_size
        self.leaf_weight = nn.Parameter(torch.empty(2 * h, input_size))
        self.leaf_bias = nn.Parameter(torch.empty(2 * h))
        self.gate_weight = nn.Parameter(torch.empty(4 * h, 2 * h))
        self.gate_bias = nn.Parameter(torch.empty(4 * h))
        self.candidate_weight = nn.Parameter(torch.empty(h, h))
        self.candidate_bias = nn.Parameter(torch.empty(h))
        self.reset_parameters()
        self.leaf = runtime().Cell(FunctionBody(self.leaf_rows, "BinaryTreeGRU.leaf", False))
        self.inner = runtime().Cell(_Inner(self))

    def reset_parameters(self) -> None:
        """As `nn.GRU`: uniform in +-1/sqrt(hidden_size)."""
        bound = 1 / math.sqrt(self.candidate_bias.shape[0])
        for p in self.parameters():
            nn.init.uniform_(p, -bound, bound)

    def leaf_rows(self, x: Tensor) -> Tensor:
        """`leaf` on rows `[m, input_size]`: plain PyTorch."""
        z, c = F.linear(x, self.leaf_weight, self.leaf_bias).chunk(2, -1)
        return (1 - z.sigmoid()) * c.tanh()

    def inner_rows(self, h1: Tensor, h2: Tensor) -> Tensor:
        """`inner` on rows `[m, hidden_size]`: plain PyTorch."""
        gates = F.linear(torch.cat([h1, h2], -1), self.gate_weight, self.gate_bias).sigmoid()
        r1, r2, z1, z2 = gates.chunk(4, -1)
        c1, c2 = (F.linear(r * h, self.candidate_weight, self.candidate_bias).tanh() for r, h in ((r1, h1), (r2, h2)))
        return ((z1 * h1 + (1 - z1) * c1) + (z2 * h2 + (1 - z2) * c2)) / 2


class _Inner(NativeBody):
    def __init__(self, module: BinaryTreeGRU) -> None:
        super().__init__(module, module.inner_rows, "BinaryTreeGRU.inner")

    def forward(self, batch: Any, training: bool) -> Any:
        m, flush = self.module, batch.flush
        out = batch.out(0)
        count, width = out.shape
        gates = out.new_empty(count, 4 * width)
        reset, candidates = out.new_empty(2, 2 * count, width).unbind()
        children = (*batch.rows(0), *batch.rows(1))
        product(flush, [batch.rows(0), batch.rows(1)], m.gate_weight, m.gate_bias, gates)
        _ops._treegru_reset_fwd.default(gates, *children, reset)
        product(flush, [(reset, ALL)], m.candidate_weight, m.candidate_bias, candidates)
        _ops._treegru_cell_fwd.default(candidates, gates, *children, out)
        return (gates, reset, candidates) if training else None

    def backward(self, batch: Any, saved: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        m = self.module
        gates, reset, candidates = saved
        count, width = reset.shape[0] // 2, reset.shape[1]
        dgates, dcandidates = torch.empty_like(gates), torch.empty_like(candidates)
        d1, d2 = gates.new_empty(2, count, width).unbind()
        children = (*batch.rows(0), *batch.rows(1))
        _ops._treegru_cell_bwd.default(candidates, gates, *children, batch.grad_out(0), dcandidates, dgates, d1, d2)
        _ops._treegru_reset_bwd.default(gates, *children, dcandidates @ m.candidate_weight, dgates, d1, d2)
        both = dgates @ m.gate_weight
        batch.add_grad(0, d1.add_(both[:, :width]))
        batch.add_grad(1, d2.add_(both[:, width:]))
        return dgates, dcandidates, reset

    def finish(self, flush: Any, batches: list[Any]) -> None:
        m = self.module
        dgates, dcandidates, reset = (torch.cat([kept[i] for _, kept in batches]) for i in range(3))
        children = [joined([b.rows(slot) for b, _ in batches]) for slot in (0, 1)]
        for grad, parts, weight, bias in (
            (dgates, children, m.gate_weight, m.gate_bias),
            (dcandidates, [(reset, ALL)], m.candidate_weight, m.candidate_bias),
        ):
            dweight, dbias = weight_grad(grad, parts, weight, bias)
            flush.add_captured(weight, dweight)
            flush.add_captured(bias, dbias)
