# SPDX-License-Identifier: Apache-2.0
"""Differentiating twice: right, or refused. A gradient penalty that is silently wrong would be worse than none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgeops.ragged import RaggedLayout, add_layer_norm, bias_gelu, pack, ragged_attention, ragged_pool, unpack
from tests.peers import offsets_of

CU = offsets_of([2, 0, 3])
LAYOUT = RaggedLayout.from_lengths([2, 0, 3])
HOLES = RaggedLayout.from_padding_mask(torch.tensor([[0, 1, 1], [0, 0, 0], [1, 1, 1]]))


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


CASES: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "attention": (
        lambda q, k, v: ragged_attention(q, k, v, CU, CU, 3, 3),
        [normal(5, 2, 3, seed=i) for i in range(3)],
    ),
    "pack": (lambda x: pack(x, LAYOUT), [normal(3, 3, 2)]),
    "pack, holes": (lambda x: pack(x, HOLES), [normal(3, 3, 2)]),
    "unpack": (lambda x: unpack(x, LAYOUT), [normal(5, 2)]),
    "unpack, holes": (lambda x: unpack(x, HOLES), [normal(5, 2)]),
    "pool sum": (lambda x: ragged_pool(x, CU, "sum"), [normal(5, 2)]),
    "pool mean": (lambda x: ragged_pool(x, CU, "mean"), [normal(5, 2)]),
    "pool max": (lambda x: ragged_pool(x, CU, "max"), [normal(5, 2)]),
    "bias_gelu": (lambda x, b: bias_gelu(x, b), [normal(5, 3), normal(3, seed=1)]),
    "bias_gelu tanh": (lambda x, b: bias_gelu(x, b, "tanh"), [normal(5, 3), normal(3, seed=1)]),
    "add_layer_norm": (
        lambda x, r, w, b, a: add_layer_norm(x, r, w, b, x_bias=a),
        [normal(5, 3), normal(5, 3, seed=1), *(normal(3, seed=i) for i in range(2, 5))],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_second_order(name: str) -> None:
    """The gradient of the squared gradient, as finite differences have it, or an error that says it is not there."""
    call, inputs = CASES[name]

    def penalty(*leaves: Tensor) -> Tensor:
        grads = torch.autograd.grad(call(*leaves).sin().sum(), leaves, create_graph=True)
        return torch.stack([g.square().sum() for g in grads]).sum()

    if "pack" not in name:
        with pytest.raises(NotImplementedError, match=r"has first derivatives only"):
            torch.autograd.grad(penalty(*inputs), inputs)
        return
    assert torch.autograd.gradcheck(penalty, inputs)


def test_second_order_of_a_linear_loss_is_refused() -> None:
    """Here no gradient that comes in depends on the inputs; the saved tensors do."""
    x, b = normal(5, 3), normal(3, seed=1)
    (grad,) = torch.autograd.grad(bias_gelu(x, b).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"bias_gelu: has first derivatives only"):
        grad.square().sum().backward()


def test_second_order_under_functorch_is_refused() -> None:
    x, b = normal(5, 3), normal(3, seed=1)
    inner = torch.func.grad(lambda x: bias_gelu(x, b).sum())
    assert inner(x).shape == (5, 3)
    with pytest.raises(NotImplementedError, match=r"bias_gelu: has first derivatives only"):
        torch.func.grad(lambda x: inner(x).square().sum())(x)


def test_create_graph_gives_the_same_first_derivative() -> None:
    x, b = normal(5, 3), normal(3, seed=1)
    kept = torch.autograd.grad(bias_gelu(x, b).sum(), (x, b), create_graph=True)
    for one, other in zip(kept, torch.autograd.grad(bias_gelu(x, b).sum(), (x, b))):
        assert torch.equal(one, other)
