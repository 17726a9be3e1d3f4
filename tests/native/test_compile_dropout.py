# SPDX-License-Identifier: Apache-2.0
"""Dropout of attention in compiled graphs: the seed is drawn inside, so one graph serves every step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from edgeops.ragged import RaggedLayout, RaggedTransformerEncoderLayer, ragged_attention
from tests.native.test_compile import Counting, normal
from tests.peers import offsets_of

pytestmark = [  # torch warns about its own internals while it traces
    pytest.mark.usefixtures("clean_memory"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning"),
]
BATCHES = ([2, 1, 4], [5, 3], [1, 7, 2, 6, 3], [1, 7, 2, 6, 3], [4, 4, 9])


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def training_layer(dropout: float = 0.3) -> RaggedTransformerEncoderLayer:
    torch.manual_seed(0)
    return RaggedTransformerEncoderLayer(8, 2, 16, dropout, "gelu", batch_first=True).train()


def step(layer: torch.nn.Module, x: Tensor, layout: RaggedLayout) -> list[Tensor]:
    layer.zero_grad()
    out = layer(x, layout=layout)
    out.square().sum().backward()
    return [out.detach(), *(p.grad for p in layer.parameters() if p.grad is not None)]


def test_training_steps_share_a_graph_and_differ_in_their_masks() -> None:
    """Five steps over four lists of lengths: at most two graphs, new numbers each time, the same as eager."""
    layer, backend = training_layer(), Counting()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for i, lengths in enumerate(BATCHES):
        x, layout = normal(sum(lengths), 8, seed=i), RaggedLayout.from_lengths(lengths)
        torch.manual_seed(i)
        first, second = step(compiled, x, layout), step(compiled, x, layout)
        assert not torch.equal(first[0], second[0])
        torch.manual_seed(i)
        repeated = step(compiled, x, layout)
        torch.manual_seed(i)
        for got, again, want in zip(first, repeated, step(layer, x, layout), strict=True):
            assert torch.equal(got, again)
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)  # sums that cancel
    assert 1 <= backend.graphs <= 2


@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_a_given_seed_gives_the_mask_of_eager(kind: str) -> None:
    def call(x: Tensor, cu: Tensor, seed: int | Tensor) -> Tensor:
        out: Tensor = ragged_attention(x, 2 * x, -x, cu, cu, 9, 9, dropout_p=0.4, seed=seed)
        return out

    backend = Counting()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
    for number, lengths in zip((5, -(2**50), 2**63 - 1, 8, 9), BATCHES):
        x, cu = normal(sum(lengths), 2, 4).requires_grad_(), offsets_of(lengths)
        seed = number if kind == "number" else torch.tensor(number)
        got, want = compiled(x, cu, seed), call(x, cu, seed)
        assert torch.equal(got, want)
        for one, other in zip(torch.autograd.grad(got.sum(), x), torch.autograd.grad(want.sum(), x)):
            torch.testing.assert_close(one, other)
    assert backend.graphs <= 2


@pytest.mark.slow
def test_inductor_draws_anew_in_each_step() -> None:
    """The default backend draws by numbers of its own; expectation and repeatability are what can be asked of it."""
    layer = training_layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for lengths in BATCHES[:2]:
        x, layout = normal(sum(lengths), 8), RaggedLayout.from_lengths(lengths)
        torch.manual_seed(1)
        first, second = step(compiled, x, layout), step(compiled, x, layout)
        assert not torch.equal(first[0], second[0])
        torch.manual_seed(1)
        for got, again in zip(first, step(compiled, x, layout), strict=True):
            torch.testing.assert_close(got, again)
