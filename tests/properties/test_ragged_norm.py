# SPDX-License-Identifier: Apache-2.0
"""Properties of segment normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from edgeops.ragged import ragged_instance_norm
from tests.peers import offsets_of
from tests.strategies import floats, lengths, seeds

widths = st.one_of(st.integers(1, 40), st.sampled_from([255, 257]))


@given(lengths(), widths, floats(), seeds())
def test_instance_norm(lens: list[int], width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Each sequence alone gives the same bits, and what torch gives in float64."""
    x = torch.randn(sum(lens), width, generator=generator).to(dtype)
    weight, bias = torch.randn(2, width, generator=generator).to(dtype)
    out = ragged_instance_norm(x, offsets_of(lens), weight, bias)
    eps = torch.finfo(dtype).eps
    for part, result in zip(x.split(lens), out.split(lens)):
        assert torch.equal(ragged_instance_norm(part, offsets_of([len(part)]), weight, bias), result)
        if len(part) > 1:
            want = F.instance_norm(part.double().T[None], weight=weight.double(), bias=bias.double())[0].T
            torch.testing.assert_close(result.double(), want, rtol=2 * eps, atol=2 * eps + 2e-4)
        else:
            torch.testing.assert_close(result, bias.expand_as(result))


@given(lengths(), st.integers(1, 40), seeds())
def test_instance_norm_gradients(lens: list[int], width: int, generator: torch.Generator) -> None:
    """Those of torch; those in x add up to 0 over every sequence."""
    lens = [n for n in lens if n > 1]
    x = torch.randn(sum(lens), width, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(width, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(width, generator=generator, dtype=torch.float64).requires_grad_()
    grad = torch.randn(sum(lens), width, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad(ragged_instance_norm(x, offsets_of(lens), weight, bias), (x, weight, bias), grad)
    if not lens:
        assert not any(g.any() for g in got)
        return
    parts = [F.instance_norm(part.T[None], weight=weight, bias=bias)[0].T for part in x.split(lens)]
    for mine, theirs in zip(got, torch.autograd.grad(torch.cat(parts), (x, weight, bias), grad)):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
    for part in got[0].split(lens):
        torch.testing.assert_close(part.sum(0), torch.zeros(width, dtype=torch.float64), atol=1e-6, rtol=0)
