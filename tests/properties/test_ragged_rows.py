# SPDX-License-Identifier: Apache-2.0
"""Properties of pooling, bias + GELU and residual + LayerNorm over random rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeops.ragged import add_layer_norm, bias_gelu, ragged_pool
from tests.peers import offsets_of
from tests.strategies import floats, lengths, seeds

widths = st.one_of(st.integers(1, 40), st.sampled_from([64, 100, 1023, 1025]))


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "min", "logsumexp"])
@given(data=st.data())
def test_pool(data: st.DataObject, reduction: str) -> None:
    """Permuting sequences permutes results bitwise; one sequence is the plain reduction of its rows."""
    lens = data.draw(lengths(min_size=1))
    generator = data.draw(seeds())
    x = normal(generator, sum(lens), data.draw(widths), dtype=data.draw(floats()))
    order = data.draw(st.permutations(range(len(lens))))
    parts = x.split(lens)
    out = ragged_pool(x, offsets_of(lens), reduction)
    permuted = ragged_pool(torch.cat([parts[b] for b in order]), offsets_of([lens[b] for b in order]), reduction)
    assert torch.equal(permuted, out[list(order)])
    for row, part in zip(out, parts):
        if len(part) == 0:
            assert (row == (-torch.inf if reduction == "logsumexp" else 0.0)).all()
            continue
        wide = part.double()
        name = {"max": "amax", "min": "amin"}.get(reduction, reduction)
        want = wide.logsumexp(0) if name == "logsumexp" else getattr(wide, name)(0)
        room = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps * wide.abs().sum(0)
        half = torch.finfo(x.dtype).eps * want.abs()
        assert ((row.double() - want).abs() <= room + half).all()


@given(st.integers(0, 9), widths, st.sampled_from(["none", "tanh"]), floats(), seeds())
def test_bias_gelu(rows: int, width: int, approximate: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Each row alone gives the same bits; the values are those of torch."""
    x, bias = 4 * normal(generator, rows, width, dtype=dtype), normal(generator, width, dtype=dtype)
    out = bias_gelu(x, bias, approximate)
    for r in range(rows):
        assert torch.equal(bias_gelu(x[r : r + 1], bias, approximate), out[r : r + 1])
    want = F.gelu(x.double() + bias.double(), approximate=approximate)
    eps = torch.finfo(dtype).eps
    # a rounding of the result, and one of the argument, through a slope of at most 1.13
    room = eps * want.abs() + 4 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert ((out.double() - want).abs() <= room).all()


@given(st.integers(0, 9), widths.filter(lambda n: n > 1), floats(), seeds())
def test_add_layer_norm(rows: int, width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Rows alone give the same bits; unscaled rows have mean 0 and variance 1; the bias may be added beforehand."""
    x, residual = normal(generator, rows, width, dtype=dtype), normal(generator, rows, width, dtype=dtype)
    one, zero = torch.ones(width, dtype=dtype), torch.zeros(width, dtype=dtype)
    out = add_layer_norm(x, residual, one, zero)
    for r in range(rows):
        assert torch.equal(add_layer_norm(x[r : r + 1], residual[r : r + 1], one, zero), out[r : r + 1])
    assert torch.equal(add_layer_norm(residual, x, one, zero), out)
    assert torch.equal(add_layer_norm(x, residual, one, zero, x_bias=zero), out)
    eps = torch.finfo(dtype).eps
    assert (out.double().mean(1).abs() <= 8 * eps).all()
    variance = _variance(x.double() + residual.double())
    assert ((_variance(out.double()) - variance / (variance + 1e-5)).abs() <= 20 * eps).all()


def _variance(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)).square().mean(1)
