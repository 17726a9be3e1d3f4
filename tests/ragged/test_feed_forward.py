# SPDX-License-Identifier: Apache-2.0
"""The feed-forward step that computes its GELU again: gradients, pieces, what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeops.ragged import _feed_forward, convert
from edgeops.ragged._feed_forward import feed_forward, feed_forward_bare
from tests.budget import assert_within_budget


def inputs(rows: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, 6), (10, 6), (10,), (5, 10))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def plain(x: Tensor, first: Tensor, bias: Tensor, second: Tensor, approximate: str) -> Tensor:
    return F.linear(F.gelu(F.linear(x, first, bias), approximate=approximate), second)


@pytest.mark.parametrize("rows", [0, 1, 4, 5, 17])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_against_the_composition(rows: int, approximate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_feed_forward, "_ROWS", 4)
    leaves = inputs(rows)
    ours, theirs = feed_forward(*leaves, approximate), plain(*leaves, approximate)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(ours.shape, dtype=torch.float64)
    for got, want in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(theirs, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("rows", [0, 1, 4, 5, 17])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_inference_against_the_composition(rows: int, approximate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_feed_forward, "_ROWS", 4)
    leaves = [x.detach() for x in inputs(rows)]
    torch.testing.assert_close(feed_forward_bare(*leaves, approximate), plain(*leaves, approximate))


@pytest.mark.parametrize("rows", [3, 7])
def test_gradcheck(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_feed_forward, "_ROWS", 4)
    assert torch.autograd.gradcheck(lambda *x: feed_forward(*x, "none"), inputs(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    leaves = inputs(700, dtype)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    upstream = torch.randn(700, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = [
        [out.detach(), *torch.autograd.grad(out, on, upstream.to(out.dtype))]
        for out, on in (
            (feed_forward(*leaves, "none"), leaves),
            (plain(*leaves, "none"), leaves),
            (plain(*wide, "none"), wide),
        )
    ]
    for i, (got, same, exact) in enumerate(zip(*results, strict=True)):
        # two pieces of rows: sums of 700 terms are rounded once more
        noise = 4 * torch.finfo(dtype).eps * float(exact.abs().max()) if i else 0.0
        assert_within_budget(str(i), got, same, exact, 3.0, noise)


def test_under_functorch() -> None:
    leaves = [x.detach() for x in inputs(3)]
    rows = torch.randn(4, 3, 6, dtype=torch.float64)

    def loss(x: Tensor, function: Any) -> Tensor:
        result: Tensor = function(x, *leaves[1:], "none").square().sum()
        return result

    got = torch.func.vmap(torch.func.grad(lambda x: loss(x, feed_forward)))(rows)
    want = torch.func.vmap(torch.func.grad(lambda x: loss(x, plain)))(rows)
    torch.testing.assert_close(got, want)


def test_a_layer_keeps_the_inner_width_once() -> None:
    """Of the 8 M + 2 FF numbers a token that the plain composition keeps, one FF is gone."""
    width, inner, tokens = 16, 256, 60
    layer = convert(nn.TransformerEncoderLayer(width, 2, inner, 0.0, "gelu", batch_first=True))
    kept: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in layer.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (kept.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()), x)[1], lambda x: x
    ):
        out = layer(torch.randn(3, tokens // 3, width))
    assert out.shape == (3, tokens // 3, width)
    wide = sum(size == tokens * inner * 4 for size in kept.values())
    assert wide == 1
    statistics = 6  # means, deviations, log-sum-exp of two heads; and the offsets
    assert sum(kept.values()) <= 4 * tokens * (inner + 8 * width + statistics) + 100
