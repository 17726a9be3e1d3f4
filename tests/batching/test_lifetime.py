# SPDX-License-Identifier: Apache-2.0
"""What a session holds goes when it is not needed any more, without waiting for the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from edgeops import batching
from edgeops.batching.cells import BinaryTreeLSTM


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def tree_session(tree: BinaryTreeLSTM, outside: bool) -> tuple[Any, batching.Session]:
    last = batching.cell(torch.nn.Linear(4, 2))
    with batching.session() as s:
        h, _ = tree.inner(*tree.leaf(1), *tree.leaf(2))
        if outside:
            h, _ = tree.inner(h, torch.zeros(4), h, torch.zeros(4))
        return last(h), s


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_a_session_goes_with_its_last_value_and_gradient(train: bool, outside: bool) -> None:
    tree = BinaryTreeLSTM(3, 4, num_embeddings=9)
    with torch.set_grad_enabled(train):
        value, session = tree_session(tree, outside)
        gone = weakref.ref(session)
        del session
        result = value.tensor()  # values keep their session
        del value
        if train:
            result.sum().backward()
    del result
    assert gone() is None
    program = next(iter(tree.inner.owner._programs.values()))
    assert len(program._idle[0]) == 1  # the buffers came back
    assert len(program._idle[1]) == int(train)


def test_values_keep_their_session() -> None:
    tree = BinaryTreeLSTM(3, 4, num_embeddings=9)
    values = [tree_session(tree, False)[0] for _ in range(3)]
    gc.collect()
    assert all(value.tensor().shape == (2,) for value in values)
