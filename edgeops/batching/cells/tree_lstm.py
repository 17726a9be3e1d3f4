# SPDX-License-Identifier: Apache-2.0
"""The binary TreeLSTM of the ED-Batch benchmark: a leaf cell and an inner cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeops._common.errors import message
from edgeops.batching._program import Program
from edgeops.batching._runtime import runtime
from edgeops.batching.cell import NUMBER, CellOwner
from edgeops.batching.cells._native_body import NativeBody


class BinaryTreeLSTM(CellOwner):
    """Cells of a binary TreeLSTM; use `leaf` and `inner` inside a session. ED-Batch, section 5; spec section 7.1.

    `leaf(x) -> (h, c)`: `i, o = sigmoid(W x + b)`, `u = tanh(W x + b)`, `c = i u`, `h = o tanh(c)`.
    `inner(h1, c1, h2, c2) -> (h, c)`: i, o and u from `[h1; h2]`; `f1 = sigmoid(U1 h1 + b_f)`,
    `f2 = sigmoid(U2 h2 + b_f)`; `c = i u + f1 c1 + f2 c2`, `h = o tanh(c)`.

    Args:
        input_size: width of x.
        hidden_size: width of h and c.
        num_embeddings: leaves take integers, rows of an embedding of the module's own; otherwise vectors.

    Attributes:
        leaf_weight: `[3 H, input_size]`, rows i, o, u, and `leaf_bias` `[3 H]`.
        inner_weight: `[3 H, 2 H]`, rows i, o, u, and `inner_bias` `[3 H]`.
        forget_left, forget_right: `[H, H]`, and `forget_bias` `[H]`.
        embedding: `[num_embeddings, input_size]` or `None`.

    >>> from edgeops import batching
    >>> tree = BinaryTreeLSTM(4, 3, num_embeddings=10)
    >>> with batching.session() as s:
    ...     h, c = tree.inner(*tree.leaf(1), *tree.leaf(2))
    >>> h.tensor().shape
    torch.Size([3])
    """

    def __init__(self, input_size: int, hidden_size: int, num_embeddings: int | None = None) -> None:
        super().__init__()
        h = hidden_size
        self.leaf_weight = nn.Parameter(torch.empty(3 * h, input_size))
        self.leaf_bias = nn.Parameter(torch.empty(3 * h))
        self.inner_weight = nn.Parameter(torch.empty(3 * h, 2 * h))
        self.inner_bias = nn.Parameter(torch.empty(3 * h))
        self.forget_left = nn.Parameter(torch.empty(h, h))
        self.forget_right = nn.Parameter(torch.empty(h, h))
        self.forget_bias = nn.Parameter(torch.empty(h))
        self.embedding = None if num_embeddings is None else nn.Parameter(torch.empty(num_embeddings, input_size))
        self.reset_parameters()
        self.leaf = runtime().Cell(_Leaf(self))
        self.inner = runtime().Cell(_Inner(self))

    def reset_parameters(self) -> None:
        """As `nn.LSTM`: uniform in +-1/sqrt(hidden_size); embeddings as `nn.Embedding`."""
        bound = 1 / math.sqrt(self.forget_bias.shape[0])
        for name, p in self.named_parameters():
            nn.init.normal_(p) if name == "embedding" else nn.init.uniform_(p, -bound, bound)

    def leaf_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`leaf` on rows `[m, input_size]`, or on integers `[m]`: plain PyTorch."""
        x = x if self.embedding is None else F.embedding(x, self.embedding)
        i, o, u = F.linear(x, self.leaf_weight, self.leaf_bias).chunk(3, -1)
        c = i.sigmoid() * u.tanh()
        return o.sigmoid() * c.tanh(), c

    def inner_rows(self, h1: Tensor, c1: Tensor, h2: Tensor, c2: Tensor) -> tuple[Tensor, Tensor]:
        """`inner` on rows `[m, hidden_size]`: plain PyTorch."""
        i, o, u = F.linear(torch.cat([h1, h2], -1), self.inner_weight, self.inner_bias).chunk(3, -1)
        f1 = F.linear(h1, self.forget_left, self.forget_bias).sigmoid()
        f2 = F.linear(h2, self.forget_right, self.forget_bias).sigmoid()
        c = i.sigmoid() * u.tanh() + f1 * c1 + f2 * c2
        return o.sigmoid() * c.tanh(), c


class _Leaf(NativeBody):
    def __init__(self, module: BinaryTreeLSTM) -> None:
        super().__init__(module, module.leaf_rows, "BinaryTreeLSTM.leaf")

    def infer(self, operands: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        number = len(operands) == 1 and operands[0][0] == NUMBER
        if number == (self.module.embedding is None):
            rule, advice = "leaves take integers with num_embeddings, vectors without", "See BinaryTreeLSTM."
            got = "an integer" if number else "something else"
            raise TypeError(message(f"batching cell {self.name}", rule, got, advice))
        return super().infer(operands)

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        p, m = program, self.module
        h, width = m.forget_bias.shape[0], m.leaf_weight.shape[1]
        named = operands[0][0] == NUMBER
        x = p.named(0, "embedding", width) if named else p.operand(0, width)
        gates, dgates = p.kept(3 * h), p.d_kept(3 * h)
        product = p.linear(gates, dgates, {"leaf_weight": [x]}, ["leaf_bias"])
        p.cell(0, "leaf_fwd", h, gates, p.result(0), p.result(1))
        p.cell(1, "leaf_bwd", h, gates, p.result(1), p.d_result(0), p.d_result(1), dgates)
        if named:
            p.backprop(p.named(0, "embedding", width, grad=True), x, [product], section=2)
        else:
            p.backprop(p.d_operand(0), x, [product])


class _Inner(NativeBody):
    def __init__(self, module: BinaryTreeLSTM) -> None:
        super().__init__(module, module.inner_rows, "BinaryTreeLSTM.inner")

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        p = program
        h = self.module.forget_bias.shape[0]
        left, c1, right, c2 = (p.operand(slot, h) for slot in range(4))
        gates, dgates, states = p.kept(5 * h), p.d_kept(5 * h), p.room(2 * h)
        dc1, dc2 = states.columns(0, h), states.columns(h, 2 * h)
        products = [
            p.linear(gates.columns(a * h, b * h), dgates.columns(a * h, b * h), {weight: parts}, [bias])
            for a, b, weight, parts, bias in (
                (0, 3, "inner_weight", [left, right], "inner_bias"),
                (3, 4, "forget_left", [left], "forget_bias"),
                (4, 5, "forget_right", [right], "forget_bias"),
            )
        ]
        p.cell(0, "treelstm_fwd", h, gates, c1, c2, p.result(0), p.result(1))
        p.cell(1, "treelstm_bwd", h, gates, c1, c2, p.result(1), p.d_result(0), p.d_result(1), dgates, dc1, dc2)
        p.add(p.d_operand(1), dc1)
        p.add(p.d_operand(3), dc2)
        p.backprop(p.d_operand(0), left, products)
        p.backprop(p.d_operand(2), right, products)
