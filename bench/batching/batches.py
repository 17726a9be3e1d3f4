# SPDX-License-Identifier: Apache-2.0
"""Whole programs: the batches of small sessions as calls of `_batches_run`, against its twin."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bench.registry import Built, Candidate, Case, Workload
from edgeops import batching
from edgeops.batching._reference_batches import batches_run_reference
from edgeops.batching._runner import Runner
from edgeops.batching.cells import (
    GRU,
    LSTM,
    BinaryTreeGRU,
    BinaryTreeLSTM,
    Classifier,
    DecisionLoss,
    Dense,
    Embedding,
    RaggedSum,
)

OURS = "edgeops"
Call = tuple[Any, ...]


def _tree(rng: random.Random, leaves: int, leaf: Callable[[], Any], inner: Callable[[Any, Any], Any]) -> Any:
    if leaves == 1:
        return leaf()
    left = rng.randrange(1, leaves)
    return inner(_tree(rng, left, leaf, inner), _tree(rng, leaves - left, leaf, inner))


def tree_lstm(width: int, trees: int, dtype: torch.dtype) -> Tensor:
    """TreeLSTMs over words; the sum of their roots and of their losses."""
    rng, cells = random.Random(0), BinaryTreeLSTM(width, width, num_embeddings=9).to(dtype)
    classes = Classifier(width, 5).to(dtype)
    with batching.session() as s:
        roots = [
            _tree(rng, rng.randrange(1, 9), lambda: cells.leaf(rng.randrange(9)), lambda a, b: cells.inner(*a, *b))
            for _ in range(trees)
        ]
        losses = [classes.loss(h, rng.randrange(5)) for h, _ in roots]
    return s.sum([h for h, _ in roots]) + s.sum(losses)


def tree_gru(width: int, trees: int, dtype: torch.dtype) -> Tensor:
    """TreeGRUs over vectors from outside that want gradients; the sum of their roots."""
    rng, cells = random.Random(1), BinaryTreeGRU(width, width).to(dtype)
    vectors = torch.randn(9, width, dtype=dtype, requires_grad=True)
    with batching.session() as s:
        roots = [
            _tree(rng, rng.randrange(1, 9), lambda: cells.leaf(vectors[rng.randrange(9)]), cells.inner)
            for _ in range(trees)
        ]
    return s.sum(roots)


def lattice(width: int, sentences: int, dtype: torch.dtype) -> Tensor:
    """An LSTM and a GRU over words with sums of one to three states between steps."""
    rng, total = random.Random(2), RaggedSum()
    words, long, short = (m.to(dtype) for m in (Embedding(9, width), LSTM(width, width), GRU(width, width)))
    ends = []
    with batching.session() as s:
        for _ in range(sentences):
            states = [(torch.zeros(width, dtype=dtype),) * 2]
            for _ in range(rng.randrange(1, 6)):
                arcs = [long.step(words.look_up(rng.randrange(9)), *state) for state in states[-rng.randrange(1, 4) :]]
                h, c = total([h for h, _ in arcs], [c for _, c in arcs])
                states.append((short.step(words.look_up(0), h), c))
            ends.append(states[-1][0])
    return s.sum(ends)


def parser(width: int, sentences: int, dtype: torch.dtype) -> Tensor:
    """Layers of two and of one row, with every activation, and losses of decisions."""
    rng, decided = random.Random(3), DecisionLoss()
    words, score = Embedding(9, width).to(dtype), Dense(width, 2).to(dtype)
    layers = [Dense(2 * width, width, name).to(dtype) for name in ("tanh", "sigmoid", "relu")]
    losses = []
    with batching.session() as s:
        for _ in range(sentences):
            h = words.look_up(rng.randrange(9))
            for _ in range(rng.randrange(1, 6)):
                h = rng.choice(layers).mix(h, words.look_up(rng.randrange(9)))
                losses.append(decided(score.mix(h), rng.randrange(2), rng.randrange(2)))
    return s.sum(losses)


SESSIONS: dict[str, Callable[[int, int, torch.dtype], Tensor]] = {
    "TreeLSTM": tree_lstm,
    "TreeGRU": tree_gru,
    "lattice": lattice,
    "parser": parser,
}


def _tame(x: Any) -> Any:
    """Memory without content may hold anything: a copy that can be compared."""
    if not isinstance(x, Tensor):
        return x
    if not x.is_floating_point():
        return x.clone()
    copy = x.detach().nan_to_num(0, 0, 0)
    return torch.where(copy.abs() < 1e4, copy, 0)


@functools.cache
def _calls(session: str, width: int, instances: int, dtype: torch.dtype, train: bool) -> tuple[Call, ...]:
    found: list[Call] = []
    run = Runner._run

    def spy(self: Runner, *what: Any) -> None:
        found.append(pytree.tree_map(_tame, self.arguments(*what)))
        run(self, *what)

    with torch.random.fork_rng(devices=[]), mock.patch.object(Runner, "_run", spy), torch.set_grad_enabled(train):
        torch.manual_seed(0)
        result = SESSIONS[session](width, instances, dtype)
        if train:
            result.square().sum().backward()
    return tuple(found)


def calls(
    session: str, width: int = 5, instances: int = 3, dtype: torch.dtype = torch.float32, train: bool = True
) -> list[Call]:
    """Arguments of all calls of `_batches_run` that a session makes, forward, backward and for the parameters."""
    return [
        pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, call)
        for call in _calls(session, width, instances, dtype, train)
    ]


def _cases(suite: str) -> list[Case]:
    if suite == "smoke":
        return [Case("TreeLSTM, H 8, 2 trees", "drawn", params={"session": "TreeLSTM", "h": 8, "count": 2})]
    return [
        Case(f"{name}, H {h}, 32 instances", "drawn", params={"session": name, "h": h, "count": 32})
        for name in SESSIONS
        for h in (64, 256)
    ]


def _build(case: Case, device: torch.device) -> Built:
    name, h, count = case.params["session"], case.params["h"], case.params["count"]
    _, call, *_ = calls(name, h, count, train=False)
    exact = pytree.tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, call)
    place = 9  # of the list of tensors

    def written(op: Callable[..., None]) -> Callable[[object], Tensor]:
        def view(_: object) -> Tensor:
            fresh = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, call)
            op(*fresh)
            return torch.cat([x.flatten() for x in fresh[place]])

        return view

    def expected() -> Tensor:
        batches_run_reference(*exact)
        return torch.cat([x.flatten() for x in exact[place]])

    kernel = torch.ops.edgeops._batches_run.default
    return Built(
        candidates={
            OURS: Candidate(lambda: kernel(*call), view=written(kernel)),
            "torch": Candidate(
                lambda: batches_run_reference(*call), view=written(batches_run_reference), note="the twin"
            ),
        },
        expected=expected,
        tolerance=1e-4,
        shapes={"H": h, "instances": count},
    )


WORKLOADS = (
    Workload(
        "batches_run",
        ("_batches_run",),
        "the batches of a session of built-in cells, forward",
        OURS,
        "torch",
        _cases,
        _build,
    ),
)
