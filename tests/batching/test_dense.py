# SPDX-License-Identifier: Apache-2.0
"""Layers of several rows, and losses of decisions, as native cells against PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeops import batching
from edgeops.batching.cells import DecisionLoss, Dense
from tests.messages import refused

ACTIVATIONS = ["tanh", "sigmoid", "relu", None]


def mixed(layer: Dense, rows: list[Tensor]) -> Tensor:
    with batching.session() as s:
        values = [layer.mix(*each) for each in zip(*rows, strict=True)]
    assert s.report.gathered_bytes == 0
    return s.stack(values)


def scored(loss: DecisionLoss, scores: Tensor, taken: list[list[int]]) -> Tensor:
    with batching.session() as s:
        values = [loss(x, *each) for x, each in zip(scores, taken, strict=True)]
    return s.stack(values)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [(5,), (3, 1, 18), (2, 2)])
def test_mix(activation: str | None, bias: bool, widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = Dense(sum(widths), 19, activation, bias=bias).double()
    rows = [torch.randn(7, width, dtype=torch.float64, requires_grad=True) for width in widths]
    ours, theirs = mixed(layer, rows), layer(torch.cat(rows, 1))
    torch.testing.assert_close(ours, theirs)
    leaves, upstream = [*rows, *layer.parameters()], torch.randn_like(theirs)
    for a, b in zip(*(torch.autograd.grad(y, leaves, upstream) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(activation: str | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, rows = Dense(6, 21, activation).to(dtype), torch.randn(9, 6).to(dtype).requires_grad_()
    twin = Dense(6, 21, activation).double()
    twin.load_state_dict(layer.state_dict())
    ours, exact = mixed(layer, [rows]), twin(rows.double())
    assert ours.dtype == dtype
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)
    got, want = (torch.autograd.grad(y.sum(), [rows, p])
                 for y, p in ((ours, layer.weight), (exact, twin.weight)))  # fmt: skip
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=2 * tolerance)


def test_rows_of_values_that_stand_scattered() -> None:
    torch.manual_seed(0)
    layer, first = Dense(8, 4, "tanh").double(), Dense(4, 4, "relu").double()
    rows = torch.randn(6, 4, dtype=torch.float64)
    with batching.session() as s:
        values = [first.mix(x) for x in rows]
        ours = s.stack([layer.mix(values[i], values[j]) for i, j in ((3, 1), (0, 0), (5, 2))])
        made = first(rows)
        theirs = layer(torch.cat([made[[3, 0, 5]], made[[1, 0, 2]]], 1))
        parameters = [*layer.parameters(), *first.parameters()]
        for a, b in zip(*(torch.autograd.grad(y.square().sum(), parameters) for y in (ours, theirs)), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_no_number_stays_in_its_row(activation: str | None) -> None:
    torch.manual_seed(0)
    layer = Dense(3, 9, activation)
    rows = torch.randn(4, 3)
    clean = mixed(layer, [rows])
    rows[1, 0] = float("nan")
    with torch.no_grad():
        spoilt = mixed(layer, [rows])
    assert spoilt[1].isnan().all()
    assert torch.equal(spoilt[[0, 2, 3]], clean[[0, 2, 3]])


def test_state_is_that_of_a_linear() -> None:
    layer, plain = Dense(5, 4, "tanh"), torch.nn.Linear(5, 4)
    plain.load_state_dict(layer.state_dict())
    row = torch.randn(5)
    torch.testing.assert_close(layer.mix(row[:2], row[2:]), torch.tanh(plain(row)))


def test_mix_refuses() -> None:
    layer = Dense(5, 4)
    with refused(ValueError, "batching.cells.Dense", "activation must be one of", "'gelu'"):
        Dense(5, 4, "gelu")
    with batching.session():
        with refused(ValueError, "batching cell Dense.mix", "rows must be 5 wide together", "4"):
            layer.mix(torch.ones(2), torch.ones(2))
        with refused(TypeError, "batching cell Dense.mix", "operands must be rows", "2 operands"):
            layer.mix(torch.ones(5), 3)
        with refused(TypeError, "batching cell Dense.mix", "operands must be rows", "0 operands"):
            layer.mix()
        with refused(TypeError, "batching cell Dense.mix", "must have the parameters' dtype", "float64"):
            layer.mix(torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_decisions(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    scores = (4 * torch.randn(8, width)).to(dtype)
    scores[0], scores[1] = 80, -80
    scores.requires_grad_()
    taken = torch.randint(0, 2, (8, width))
    ours = scored(DecisionLoss(), scores, taken.tolist())
    exact = scores.detach().double().requires_grad_()
    theirs = F.binary_cross_entropy_with_logits(exact, taken.double(), reduction="none").sum(1)
    assert ours.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
    upstream = torch.rand(8).to(dtype)
    (a,), (b,) = torch.autograd.grad(ours, scores, upstream), torch.autograd.grad(theirs, exact, upstream.double())
    torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


def test_decisions_of_one_score_add_up() -> None:
    scores = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    double, loss = batching.cell(lambda x: 2 * x), DecisionLoss()
    with batching.session() as s:
        x = double(scores)
        total = s.sum([loss(x, 1, 0), loss(x, 0, 0), loss(x, 1, 0)])
    wanted = torch.tensor([[1, 0], [0, 0], [1, 0]], dtype=torch.float64)
    theirs = F.binary_cross_entropy_with_logits((2 * scores).expand(3, 2), wanted, reduction="sum")
    torch.testing.assert_close(total, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(y, scores)[0] for y in (total, theirs)))


def test_decisions_refuse() -> None:
    loss = DecisionLoss()
    with refused(ValueError, "batching cell DecisionLoss", "decisions must lie in 0..1", "2"):
        scored(loss, torch.zeros(1, 2), [[0, 2]])
    with batching.session():
        with refused(ValueError, "batching cell DecisionLoss", "scores must have shape", r"\(2,\)"):
            loss(torch.zeros(2), 1)
        with refused(TypeError, "batching cell DecisionLoss", "takes a row of scores", "1 operands"):
            loss(3)
        with refused(TypeError, "batching cell DecisionLoss", "scores must be floating point", "int64"):
            loss(torch.zeros(1, dtype=torch.int64), 1)
