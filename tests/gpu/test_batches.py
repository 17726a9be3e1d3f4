# SPDX-License-Identifier: Apache-2.0
"""Sessions on a GPU: built-in cells and cells of the user's, results and gradients against the CPU's."""

import copy

import pytest
import torch

from bench.batching.batches import SESSIONS
from edgeops import batching
from edgeops.batching.cells import BinaryTreeLSTM


@pytest.mark.parametrize("name", sorted(SESSIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_sessions_run(name, dtype):
    """Parameters are made on the GPU; sums of rows and of gradients are finite and there."""
    with torch.device("cuda"):
        torch.manual_seed(0)
        out = SESSIONS[name](24, 4, dtype)
    assert out.is_cuda
    out.float().square().sum().backward()
    assert bool(out.isfinite().all())


def test_trees_agree_with_the_cpu():
    torch.manual_seed(0)
    cells = BinaryTreeLSTM(32, 32, num_embeddings=9).double()
    others = copy.deepcopy(cells).cuda()
    found = []
    for tree in (cells, others):
        classes = torch.nn.Linear(32, 5, dtype=torch.float64)
        torch.nn.init.constant_(classes.weight, 0.1)
        torch.nn.init.zeros_(classes.bias)
        classes = batching.cell(classes.to(tree.leaf_weight.device))
        with batching.session() as s:
            states = [tree.leaf(word) for word in (1, 2, 3, 1)]
            top = tree.inner(*tree.inner(*states[0], *states[1]), *tree.inner(*states[2], *states[3]))
            scores = [classes(h) for h, _ in (*states, top)]
        loss = s.stack(scores).square().sum()
        found.append((loss.cpu(), *(g.cpu() for g in torch.autograd.grad(loss, list(tree.parameters())))))
    torch.testing.assert_close(*found)
