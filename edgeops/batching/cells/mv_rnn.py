# SPDX-License-Identifier: Apache-2.0
"""The MV-RNN: every node is a vector and a matrix that says how it changes its sibling. Spec, section 7.1."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeops.batching._runtime import runtime
from edgeops.batching.cell import FunctionBody


class MVRNN(nn.Module):
    """Cells of an MV-RNN; use `leaf` and `inner` inside a session.

    `leaf(word) -> (M, v)`: rows of two embeddings. `inner(M1, v1, M2, v2) -> (M, v)`:
    `v = tanh(W [v1 M2; v2 M1] + b)` with vectors as rows, `M = W_M [M1; M2] + b_M`.

    Args:
        num_embeddings: words.
        hidden_size: H; a node has H + H * H numbers.

    Attributes:
        vectors, matrices: `[num_embeddings, H]` and `[num_embeddings, H, H]`.
        weight, bias: W `[H, 2 H]` and b `[H]`.
        matrix_weight, matrix_bias: W_M `[H, 2 H]` and b_M `[H, H]`.

    >>> from edgeops import batching
    >>> tree = MVRNN(10, 3)
    >>> with batching.session() as s:
    ...     matrix, vector = tree.inner(*tree.leaf(1), *tree.leaf(2))
    >>> matrix.tensor().shape, vector.tensor().shape
    (torch.Size([3, 3]), torch.Size([3]))
    """

    def __init__(self, num_embeddings: int, hidden_size: int) -> None:
        super().__init__()
        h = hidden_size
        self.vectors = nn.Parameter(torch.empty(num_embeddings, h))
        self.matrices = nn.Parameter(torch.empty(num_embeddings, h, h))
        self.weight = nn.Parameter(torch.empty(h, 2 * h))
        self.bias = nn.Parameter(torch.empty(h))
        self.matrix_weight = nn.Parameter(torch.empty(h, 2 * h))
        self.matrix_bias = nn.Parameter(torch.empty(h, h))
        self.reset_parameters()
        self.leaf = runtime().Cell(FunctionBody(self.leaf_rows, "MVRNN.leaf", False))
        self.inner = runtime().Cell(FunctionBody(self.inner_rows, "MVRNN.inner", False))

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(hidden_size); vectors as `nn.Embedding`, matrices near the identity."""
        bound = 1 / math.sqrt(self.bias.shape[0])
        for p in (self.weight, self.bias, self.matrix_weight, self.matrix_bias, self.matrices):
            nn.init.uniform_(p, -bound, bound)
        nn.init.normal_(self.vectors)
        with torch.no_grad():
            self.matrices.mul_(0.1).add_(torch.eye(self.bias.shape[0]))

    def leaf_rows(self, word: Tensor) -> tuple[Tensor, Tensor]:
        """`leaf` of integers `[m]`: plain PyTorch."""
        matrices = F.embedding(word, self.matrices.flatten(1))
        return matrices.unflatten(1, self.matrices.shape[1:]), F.embedding(word, self.vectors)

    def inner_rows(self, m1: Tensor, v1: Tensor, m2: Tensor, v2: Tensor) -> tuple[Tensor, Tensor]:
        """`inner` on rows, matrices `[m, H, H]` and vectors `[m, H]`: plain PyTorch."""
        changed = [torch.bmm(v[:, None], other)[:, 0] for v, other in ((v1, m2), (v2, m1))]
        v = torch.tanh(F.linear(torch.cat(changed, 1), self.weight, self.bias))
        # a product a node and side: nothing is put together or turned
        (m, h), weight = v1.shape, self.matrix_weight
        left, right = (part.expand(m, -1, -1) for part in (weight[:, :h], weight[:, h:]))
        return torch.baddbmm(torch.baddbmm(self.matrix_bias, left, m1), right, m2), v
