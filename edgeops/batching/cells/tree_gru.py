# SPDX-License-Identifier: Apache-2.0
"""The binary TreeGRU of the ED-Batch benchmark: a leaf cell and an inner cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeops.batching._program import Place, Program
from edgeops.batching._runtime import runtime
from edgeops.batching.cell import CellOwner, FunctionBody
from edgeops.batching.cells._native_body import NativeBody


class BinaryTreeGRU(CellOwner):
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

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        p = program
        width = self.module.candidate_bias.shape[0]
        children = [p.operand(slot, width) for slot in range(2)]
        gates, dgates = p.kept(4 * width), p.d_kept(4 * width)
        reset, candidates, dcandidates = p.kept(2 * width), p.kept(2 * width), p.d_kept(2 * width)
        dreset, before = p.room(4 * width).columns(0, 2 * width), p.room(4 * width).columns(2 * width, 4 * width)

        def halves(place: Place) -> list[Place]:
            return [place.columns(0, width), place.columns(width, 2 * width)]

        products = [p.linear(gates, dgates, {"gate_weight": children}, ["gate_bias"])]
        p.cell(0, "reset_fwd", width, gates, *children, *halves(reset))
        inner = [
            p.linear(candidate, grad, {"candidate_weight": [of]}, ["candidate_bias"])
            for candidate, grad, of in zip(halves(candidates), halves(dcandidates), halves(reset), strict=True)
        ]
        p.cell(0, "treegru_fwd", width, *halves(candidates), gates, *children, p.result(0))
        p.cell(
            1,
            "treegru_bwd",
            width,
            *halves(candidates),
            gates,
            *children,
            p.d_result(0),
            *halves(dcandidates),
            dgates,
            *halves(before),
        )
        for product, to, of in zip(inner, halves(dreset), halves(reset), strict=True):
            p.backprop(to, of, [product], add=False)
        p.cell(1, "reset_bwd", width, gates, *children, *halves(dreset), dgates, *halves(before))
        for slot, (child, grad) in enumerate(zip(children, halves(before), strict=True)):
            p.add(p.d_operand(slot), grad)
            p.backprop(p.d_operand(slot), child, products)
