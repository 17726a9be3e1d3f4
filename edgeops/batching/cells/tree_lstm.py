# SPDX-License-Identifier: Apache-2.0
"""The binary TreeLSTM of the ED-Batch benchmark: a leaf cell and an inner cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeops._common.errors import message
from edgeops.batching._runtime import runtime
from edgeops.batching.cell import NUMBER
from edgeops.batching.cells._native_body import NativeBody, ids, joined, product, weight_grad

_ops = torch.ops.edgeops


class BinaryTreeLSTM(nn.Module):
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

    def _input(self, batch: Any) -> tuple[Tensor, Tensor]:
        if batch.operands[0][0] != NUMBER:
            return batch.rows(0)
        embedding = self.module.embedding
        return embedding, ids(batch, 0, len(embedding), self.name).int()

    def forward(self, batch: Any, training: bool) -> Any:
        m = self.module
        h = batch.out(0)
        gates = h.new_empty(batch.count, 3 * h.shape[1])
        product(batch.flush, [self._input(batch)], m.leaf_weight, m.leaf_bias, gates)
        _ops._treelstm_leaf_fwd.default(gates, h, batch.out(1))
        return gates if training else None

    def backward(self, batch: Any, gates: Tensor) -> Tensor:
        dgates = torch.empty_like(gates)
        _ops._treelstm_leaf_bwd.default(gates, batch.out(1), batch.grad_out(0), batch.grad_out(1), dgates)
        if batch.operands[0][0] != NUMBER:
            batch.add_grad(0, dgates @ self.module.leaf_weight)
        return dgates

    def finish(self, flush: Any, batches: list[Any]) -> None:
        m = self.module
        dgates = torch.cat([d for _, d in batches])
        x = joined([self._input(b) for b, _ in batches])
        dweight, dbias = weight_grad(dgates, [x], m.leaf_weight, m.leaf_bias)
        flush.add_captured(m.leaf_weight, dweight)
        flush.add_captured(m.leaf_bias, dbias)
        if m.embedding is not None:
            dx = dgates @ m.leaf_weight
            flush.add_captured(m.embedding, torch.zeros_like(m.embedding).index_add_(0, x[1], dx))


class _Inner(NativeBody):
    def __init__(self, module: BinaryTreeLSTM) -> None:
        super().__init__(module, module.inner_rows, "BinaryTreeLSTM.inner")

    def forward(self, batch: Any, training: bool) -> Any:
        m, flush = self.module, batch.flush
        h = batch.out(0)
        width = h.shape[1]
        gates = h.new_empty(batch.count, 5 * width)
        left, right = batch.rows(0), batch.rows(2)
        product(flush, [left, right], m.inner_weight, m.inner_bias, gates[:, : 3 * width])
        product(flush, [left], m.forget_left, m.forget_bias, gates[:, 3 * width : 4 * width])
        product(flush, [right], m.forget_right, m.forget_bias, gates[:, 4 * width :])
        _ops._treelstm_cell_fwd.default(gates, *batch.rows(1), *batch.rows(3), h, batch.out(1))
        return gates if training else None

    def backward(self, batch: Any, gates: Tensor) -> Tensor:
        m = self.module
        width = gates.shape[1] // 5
        dgates = torch.empty_like(gates)
        dc1, dc2 = gates.new_empty(2, batch.count, width).unbind()
        _ops._treelstm_cell_bwd.default(
            gates, *batch.rows(1), *batch.rows(3), batch.out(1), batch.grad_out(0), batch.grad_out(1), dgates, dc1, dc2
        )
        both = dgates[:, : 3 * width] @ m.inner_weight
        batch.add_grad(0, both[:, :width].addmm_(dgates[:, 3 * width : 4 * width], m.forget_left))
        batch.add_grad(2, both[:, width:].addmm_(dgates[:, 4 * width :], m.forget_right))
        batch.add_grad(1, dc1)
        batch.add_grad(3, dc2)
        return dgates

    def finish(self, flush: Any, batches: list[Any]) -> None:
        m = self.module
        width = m.forget_bias.shape[0]
        dgates = torch.cat([d for _, d in batches])
        left, right = (joined([b.rows(slot) for b, _ in batches]) for slot in (0, 2))
        dweight, dbias = weight_grad(dgates[:, : 3 * width], [left, right], m.inner_weight, m.inner_bias)
        dleft, dforget1 = weight_grad(dgates[:, 3 * width : 4 * width], [left], m.forget_left, m.forget_bias)
        dright, dforget2 = weight_grad(dgates[:, 4 * width :], [right], m.forget_right, m.forget_bias)
        for parameter, grad in (
            (m.inner_weight, dweight),
            (m.inner_bias, dbias),
            (m.forget_left, dleft),
            (m.forget_right, dright),
            (m.forget_bias, dforget1 + dforget2),
        ):
            flush.add_captured(parameter, grad)
