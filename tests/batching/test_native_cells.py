# SPDX-License-Identifier: Apache-2.0
"""Built-in cells in a session against their readable forms, run eagerly: results and gradients."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeops import batching
from edgeops.batching.cells import LSTM, BinaryTreeLSTM
from tests.batching.models import random_trees


def run_tree(module: BinaryTreeLSTM, tree: Any, vectors: Tensor | None, states: list[Any]) -> Any:
    if isinstance(tree[1], int):
        state = module.leaf(tree[1] if vectors is None else vectors[tree[1]])
    else:
        state = module.inner(*run_tree(module, tree[1], vectors, states), *run_tree(module, tree[2], vectors, states))
    states.append(state)
    return state


def eager_tree(module: BinaryTreeLSTM, tree: Any, vectors: Tensor | None, states: list[Any]) -> Any:
    if isinstance(tree[1], int):
        x = torch.tensor([tree[1]]) if vectors is None else vectors[tree[1]][None]
        state = module.leaf_rows(x)
    else:
        children = (eager_tree(module, child, vectors, states) for child in tree[1:])
        (h1, c1), (h2, c2) = children
        state = module.inner_rows(h1, c1, h2, c2)
    states.append(state)
    return state


def run_lstm(module: LSTM, words: Tensor, states: list[Any]) -> None:
    h = c = torch.zeros(module.hidden_size, dtype=words.dtype)
    for x in words:
        h, c = module.step(x, h, c)
        states.append((h, c))


def eager_lstm(module: LSTM, words: Tensor, states: list[Any]) -> None:
    h = c = torch.zeros(1, module.hidden_size, dtype=words.dtype)
    for x in words:
        h, c = module.step_rows(x[None], h, c)
        states.append((h, c))


def compare(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(ours, leaves, upstream)
    want = torch.autograd.grad(theirs, leaves, upstream)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("which", ["h", "c", "both"])
def test_tree_lstm(dtype: torch.dtype, embedded: bool, which: str) -> None:
    torch.manual_seed(0)
    module = BinaryTreeLSTM(5, 7, num_embeddings=30 if embedded else None).to(dtype)
    vectors = None if embedded else torch.randn(30, 5, dtype=dtype, requires_grad=True)
    ours: list[Any] = []
    theirs: list[Any] = []
    trees = random_trees(4, 6)
    with batching.session() as s:
        for tree in trees:
            run_tree(module, tree, vectors, ours)
    for tree in trees:
        eager_tree(module, tree, vectors, theirs)
    parts = {"h": (0,), "c": (1,), "both": (0, 1)}[which]
    a = torch.cat([s.stack([state[p] for state in ours]) for p in parts])
    b = torch.cat([torch.cat([state[p] for state in theirs]) for p in parts])
    leaves = [*module.parameters(), *([] if vectors is None else [vectors])]
    compare(a, b, leaves)


@pytest.mark.parametrize("bias", [True, False])
def test_lstm(bias: bool) -> None:
    torch.manual_seed(0)
    module = LSTM(4, 6, bias=bias).double()
    rng = random.Random(0)
    texts = [torch.randn(rng.randrange(1, 9), 4, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    ours: list[Any] = []
    theirs: list[Any] = []
    with batching.session() as s:
        for text in texts:
            run_lstm(module, text, ours)
    for text in texts:
        eager_lstm(module, text, theirs)
    compare(s.stack([h for h, _ in ours]), torch.cat([h for h, _ in theirs]), [*module.parameters(), *texts])
    assert s.report.batches == max(len(t) for t in texts)


def test_a_gradient_goes_only_where_it_belongs() -> None:
    module = BinaryTreeLSTM(3, 4, num_embeddings=9)
    with batching.session() as s:
        h, _ = module.leaf(1)
        module.inner(*module.leaf(2), *module.leaf(3))
    s.tensor(h).sum().backward()
    assert module.inner_weight.grad is None
    assert module.embedding is not None
    assert module.embedding.grad is not None
    assert module.embedding.grad.abs().sum(1).nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("module", [LSTM(3, 4), BinaryTreeLSTM(3, 4)])
def test_copies_are_modules_of_their_own(module: nn.Module) -> None:
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        for a, b in zip(module.parameters(), again.parameters(), strict=True):
            assert a is not b
            assert torch.equal(a, b)
        cell = again.step if isinstance(again, LSTM) else again.leaf
        assert cell.owner.module is again


def test_lstm_has_the_parameters_of_torch() -> None:
    assert list(LSTM(3, 4).state_dict()) == list(nn.LSTMCell(3, 4).state_dict())


def test_wrong_dtype_is_refused() -> None:
    module = LSTM(2, 2)
    zero = torch.zeros(2, dtype=torch.float64)
    with batching.session(), pytest.raises(TypeError, match=r"LSTM.step: operands must have the parameters' dtype"):
        module.step(zero, zero, zero)
