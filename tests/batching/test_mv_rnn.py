# SPDX-License-Identifier: Apache-2.0
"""MV-RNN cells against the formulas of the specification, node by node."""

from __future__ import annotations

import copy

import torch

from edgeops import batching
from edgeops.batching.cells import MVRNN


def test_cells_are_the_formulas() -> None:
    torch.manual_seed(0)
    tree = MVRNN(7, 4).double()
    with batching.session() as s:
        (m1, v1), (m2, v2) = tree.leaf(3), tree.leaf(5)
        got = tree.inner(m1, v1, m2, v2)
    assert torch.equal(m1.tensor(), tree.matrices[3])
    assert torch.equal(v2.tensor(), tree.vectors[5])
    left, right = tree.vectors[3] @ tree.matrices[5], tree.vectors[5] @ tree.matrices[3]
    vector = torch.tanh(tree.weight @ torch.cat([left, right]) + tree.bias)
    matrix = tree.matrix_weight @ torch.cat([tree.matrices[3], tree.matrices[5]]) + tree.matrix_bias
    torch.testing.assert_close(got[0].tensor(), matrix)
    torch.testing.assert_close(got[1].tensor(), vector)
    torch.testing.assert_close(tree.inner(*tree.leaf(3), *tree.leaf(5)), (matrix, vector))
    assert s.report.flushes == 1


def test_state_and_copies() -> None:
    tree = MVRNN(3, 2)
    assert list(tree.state_dict()) == ["vectors", "matrices", "weight", "bias", "matrix_weight", "matrix_bias"]
    again = copy.deepcopy(tree)
    with torch.no_grad():
        again.vectors.zero_()
    assert again.leaf(1)[1].abs().max() == 0
    assert tree.leaf(1)[1].abs().max() > 0
