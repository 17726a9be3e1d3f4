# SPDX-License-Identifier: Apache-2.0
"""A graph, node by node and edge by edge: an outer GRU over nodes, an inner RNN over each node's edges. ACRoBat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from edgeops.batching.cell import cell
from edgeops.batching.cells import GRU, Classifier, Embedding
from edgeops.batching.models.model import Model

_FIRST = 2  # what stands where there is no edge before


class NestedRNN(Model):
    """The likelihood of a graph under an autoregressive generator of graphs.

    Instances: by node, whether it has an edge (1) or none (0) to each of the nodes before it, nearest first; how many
    of them are told may differ. The inner RNN starts from the outer state, reads a node's edges one by one and gives a
    loss for each; its last state is the outer GRU's input.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edges, self.start = Embedding(3, width), Embedding(1, width)
        self.outer = GRU(width, width)
        self.inner = cell(nn.RNNCell(width, width))
        self.classes = Classifier(width, 2)

    async def program(self, instance: Sequence[Sequence[int]]) -> list[Any]:
        """One loss an edge that may be."""
        node = self.start.look_up(0)
        losses = []
        for edges in instance:
            state, before = node, _FIRST
            for edge in edges:
                state = self.inner(self.edges.look_up(before), state)
                losses.append(self.classes.loss(state, edge))
                before = edge
            node = self.outer.step(state, node)
        return losses
