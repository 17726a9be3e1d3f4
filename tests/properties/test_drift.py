# SPDX-License-Identifier: Apache-2.0
"""STRSAGA steps: against the twin in float64; models in one call are independent of one another."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeops.drift._reference import strsaga_run_reference
from edgeops.drift.linear.strsaga import visits
from tests.strategies import seeds

RUN = torch.ops.edgeops._strsaga_run


@given(
    seeds(),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 4),
    st.integers(0, 12),
    st.one_of(st.integers(0, 9), st.sampled_from([15, 16, 17, 33, 70])),
    st.booleans(),
)
def test_strsaga(g: torch.Generator, dtype: torch.dtype, models: int, points: int, d: int, shared: bool) -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    x, y = normal(1 if shared else models, points, d), normal(1 if shared else models, points) + 3e-3
    x, y = x.expand(models, -1, -1), torch.where(y > 0, 1.0, -1.0).to(dtype).expand(models, -1)
    start = torch.randint(0, points + 1, (models,), generator=g)
    window = torch.stack([start, torch.minimum(start + 2, torch.tensor(points))], dim=1)
    orders = [visits(int(a), int(b), points, 3 * points, g) for a, b in window]
    starts = torch.tensor([0, *map(len, orders)]).cumsum(0)
    order = torch.cat([torch.empty(0, dtype=torch.int32), *orders])
    state = [normal(models, d), normal(models, d) / 8, normal(models, points) / 4, window]
    args = (x, y, order, starts)

    ours = [t.clone() for t in state]
    RUN(*args, *ours, 0.1, 1e-2)
    exact = [t.clone() if t.dtype == torch.int64 else t.to(torch.float64, copy=True) for t in state]
    strsaga_run_reference(x.double(), y.double(), order, starts, *exact, 0.1, 1e-2)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-4
    for got, want in zip(ours, exact):
        torch.testing.assert_close(got.to(want.dtype), want, rtol=tolerance, atol=tolerance)

    for j in range(models):
        alone = [t[j : j + 1].clone() for t in state]
        RUN(x[j : j + 1], y[j : j + 1], orders[j], torch.tensor([0, len(orders[j])]), *alone, 0.1, 1e-2)
        assert all(torch.equal(a[0], t[j]) for a, t in zip(alone, ours))


@given(seeds(), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 40))
def test_visits(g: torch.Generator, start: int, size: int, backlog: int, steps: int) -> None:
    """New points in order at even steps; revisits stay in the window as it is by then."""
    end, got = start + size, visits(start, start + size, start + size + backlog, steps, g).tolist()
    assert len(got) == (0 if size == backlog == 0 else steps)
    for s, i in enumerate(got):
        if s % 2 == 0 and end < start + size + backlog:
            assert i == end
            end += 1
        else:
            assert start <= i < end
