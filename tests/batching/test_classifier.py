# SPDX-License-Identifier: Apache-2.0
"""Scores and their cross entropy as native cells, against PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeops import batching
from edgeops.batching.cells import Classifier
from tests.messages import refused


def losses(module: Classifier, rows: Tensor, labels: list[int]) -> Tensor:
    with batching.session() as s:
        values = [module.loss(x, label) for x, label in zip(rows, labels, strict=True)]
    return s.stack(values)


@pytest.mark.parametrize("classes", [1, 2, 5, 8, 19, 70])
@pytest.mark.parametrize("bias", [True, False])
def test_loss(classes: int, bias: bool) -> None:
    torch.manual_seed(0)
    module = Classifier(6, classes, bias=bias).double()
    rows = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    labels = [i % classes for i in range(9)]
    ours, theirs = losses(module, rows, labels), F.cross_entropy(module(rows), torch.tensor(labels), reduction="none")
    torch.testing.assert_close(ours, theirs)
    upstream, leaves = torch.randn(9, dtype=torch.float64), [rows, *module.parameters()]
    got, want = (torch.autograd.grad(y, leaves, upstream) for y in (ours, theirs))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, rows = Classifier(6, 21).to(dtype), (3 * torch.randn(7, 6)).to(dtype)
    labels = [20, 0, 3, 7, 8, 15, 16]
    exact = F.cross_entropy(F.linear(rows.double(), module.weight.double(), module.bias.double()), torch.tensor(labels))
    ours = losses(module, rows, labels)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double().mean(), exact, rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_scores() -> None:
    torch.manual_seed(0)
    module = Classifier(6, 4).double()
    rows = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    with batching.session() as s:
        values = [module.scores(x) for x in rows]
    ours, theirs = s.stack(values), module(rows)
    torch.testing.assert_close(ours, theirs)
    leaves = [rows, *module.parameters()]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_far_and_broken_scores_stay_in_their_row() -> None:
    module = Classifier(1, 3, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0], [0.0], [-1.0]]))
    rows = torch.tensor([[1e30], [float("nan")], [float("inf")], [0.0], [-200.0]])
    with torch.no_grad():
        ours = losses(module, rows, [0, 1, 0, 2, 0])
        theirs = F.cross_entropy(module(rows), torch.tensor([0, 1, 0, 2, 0]), reduction="none")
    torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_equal_losses_are_computed_once() -> None:
    torch.manual_seed(0)
    module, double = Classifier(3, 4).double(), batching.cell(lambda x: 2 * x)
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    with batching.session() as s:
        h = double(x)
        values = [module.loss(h, label) for label in (1, 2, 1, 1)]
    ours = s.sum(values)
    assert s.report.nodes == 1 + 2
    theirs = F.cross_entropy(module(2 * x).expand(4, -1), torch.tensor([1, 2, 1, 1]), reduction="sum")
    for a, b in zip(*(torch.autograd.grad(y, [x, *module.parameters()]) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("label", [-1, 4, -100, 2**40])
def test_labels_outside_are_refused(label: int) -> None:
    module = Classifier(3, 4)
    with batching.session() as s:
        loss = module.loss(torch.zeros(3), label)
    with refused(ValueError, "batching cell Classifier.loss", "labels must lie in 0..3", str(label)):
        s.tensor(loss)


def test_refusals() -> None:
    module = Classifier(3, 4)
    with batching.session():
        with refused(ValueError, "batching cell Classifier.loss", r"x must have shape \(3,\)", r"\(2, 3\)"):
            module.loss(torch.zeros(2, 3), 1)
        with refused(ValueError, "batching cell Classifier.scores", r"x must have shape \(3,\)", r"\(5,\)"):
            module.scores(torch.zeros(5))
        with refused(TypeError, "batching cell Classifier.loss", "takes a row, and its loss an integer", "2 operands"):
            module.loss(torch.zeros(3), torch.zeros(3))
