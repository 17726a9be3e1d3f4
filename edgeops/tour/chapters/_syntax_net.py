# SPDX-License-Identifier: Apache-2.0
"""A tree network for nodes with any number of children, run in a session or one node at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeops import batching
from edgeops.batching.cells import LSTM, Embedding, RaggedSum

from ._syntax_trees import KINDS, Numbered


class SyntaxNet(nn.Module):
    """A child-sum TreeLSTM whose gates know which field holds a child.

    Every child's state passes a gate of its own (`edge`), what passes is summed, and an LSTM step on the node's symbol
    follows. The states of the comparison and of the root tell its kind.

    Args:
        symbols, fields: sizes of the vocabulary.
        width: numbers in a state.
    """

    def __init__(self, symbols: int, fields: int, width: int) -> None:
        super().__init__()
        self.symbols = Embedding(symbols, width)
        self.fields = nn.Embedding(fields, 2 * width)
        self.gates = nn.Linear(width, 2 * width)
        self.cell = LSTM(width, width)
        self.classes = nn.Linear(2 * width, len(KINDS))
        self.total = RaggedSum()
        self.leaf, self.edge = batching.cell(self.leaf_rows), batching.cell(self.edge_rows)

    def leaf_rows(self, symbol: Tensor) -> tuple[Tensor, Tensor]:
        """State of nodes without children, from symbols `[m]`."""
        zero = self.classes.weight.new_zeros(len(symbol), self.cell.hidden_size)
        return self.cell.step_rows(self.symbols.rows(symbol), zero, zero)

    def edge_rows(self, field: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """What of children's states `[m, width]` passes to their parents."""
        of_h, of_c = (self.gates(h) + self.fields(field)).sigmoid().chunk(2, -1)
        return of_h * h, of_c * c

    def _recorded(self, tree: Numbered, marked: list[Any]) -> tuple[Any, Any]:
        if not tree.children:
            return self.leaf(tree.symbol)
        passed = [self.edge(child.field, *self._recorded(child, marked)) for child in tree.children]
        h, c = self.total([h for h, _ in passed], [c for _, c in passed])
        state = self.cell.step(self.symbols.look_up(tree.symbol), h, c)
        if tree.masked:
            marked.append(state[0])
        return state

    def batched(self, trees: Sequence[Numbered]) -> Tensor:
        """Logits `[n, 4]`: the program as it is, inside a session."""
        with batching.session() as s:
            marked: list[Any] = []
            roots = [self._recorded(tree, marked)[0] for tree in trees]
        return self.classes(torch.cat([s.stack(roots), s.stack(marked)], 1))

    def _eager(self, tree: Numbered, marked: list[Tensor]) -> tuple[Tensor, Tensor]:
        symbol = torch.tensor([tree.symbol])
        if not tree.children:
            return self.leaf_rows(symbol)
        passed = [self.edge_rows(torch.tensor([child.field]), *self._eager(child, marked)) for child in tree.children]
        h, c = (torch.stack(part).sum(0) for part in zip(*passed))
        state = self.cell.step_rows(self.symbols.rows(symbol), h, c)
        if tree.masked:
            marked.append(state[0])
        return state

    def eager(self, trees: Sequence[Numbered]) -> Tensor:
        """The same, one node at a time."""
        marked: list[Tensor] = []
        roots = [self._eager(tree, marked)[0] for tree in trees]
        return self.classes(torch.cat([torch.cat(roots), torch.cat(marked)], 1))

    def loss(self, way: str, trees: Sequence[Numbered], kinds: Tensor) -> Tensor:
        """Cross entropy; `way` is `"batched"` or `"eager"`."""
        return F.cross_entropy(getattr(self, way)(trees), kinds)
