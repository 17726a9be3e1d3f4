# SPDX-License-Identifier: Apache-2.0
"""Properties of softmax over segments."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeops.ragged import ragged_softmax
from tests.peers import offsets_of
from tests.strategies import floats, lengths, seeds

widths = st.one_of(st.integers(1, 40), st.sampled_from([64, 255, 257]))


@given(st.data(), lengths(min_size=1), widths, st.booleans(), floats())
def test_softmax(data: st.DataObject, lens: list[int], width: int, log: bool, dtype: torch.dtype) -> None:
    """Permuting sequences permutes results bitwise; columns sum to 1; adding a number changes little."""
    generator = data.draw(seeds())
    x = (3 * torch.randn(sum(lens), width, generator=generator)).to(dtype)
    order = data.draw(st.permutations(range(len(lens))))
    out = ragged_softmax(x, offsets_of(lens), log=log)
    parts, results = x.split(lens), out.split(lens)
    permuted = ragged_softmax(torch.cat([parts[b] for b in order]), offsets_of([lens[b] for b in order]), log=log)
    assert torch.equal(permuted, torch.cat([results[b] for b in order]))
    eps = torch.finfo(dtype).eps
    for part, result in zip(parts, results):
        want = torch.log_softmax(part.double(), 0) if log else torch.softmax(part.double(), 0)
        torch.testing.assert_close(result.double(), want, rtol=2 * eps, atol=4 * eps if log else 1e-6)


@given(lengths(), st.integers(1, 40), st.booleans(), seeds())
def test_softmax_gradients(lens: list[int], width: int, log: bool, generator: torch.Generator) -> None:
    """Those of torch on each sequence alone; those of softmax add up to 0 in every column."""
    x = torch.randn(sum(lens), width, generator=generator, dtype=torch.float64).requires_grad_()
    grad = torch.randn(sum(lens), width, generator=generator, dtype=torch.float64)
    (got,) = torch.autograd.grad(ragged_softmax(x, offsets_of(lens), log=log), x, grad)
    for part, g, mine in zip(x.split(lens), grad.split(lens), got.split(lens)):
        alone = part.detach().requires_grad_()
        (want,) = torch.autograd.grad(torch.log_softmax(alone, 0) if log else torch.softmax(alone, 0), alone, g)
        torch.testing.assert_close(mine, want)
        torch.testing.assert_close(mine.sum(0), torch.zeros(width, dtype=torch.float64), atol=1e-12, rtol=0)
