# SPDX-License-Identifier: Apache-2.0
"""Conjugate gradients of the fit: slopes and lines against autograd, and what they reach."""

import itertools

import pytest
import torch

from edgeops.offload import Pair, SparseProjector, fit
from edgeops.offload._descent import _Line, descend, gram, point, slopes

SIZES = ((24, 17, 8, 3), (9, 30, 7, 7), (16, 16, 1, 1))


def start(m, n, d, r, dtype=torch.float64):
    g = torch.Generator().manual_seed(m + n)
    grad = torch.randn(m, 4, generator=g, dtype=dtype) @ torch.randn(4, n, generator=g, dtype=dtype)
    grad += 0.1 * torch.randn(m, n, generator=g, dtype=dtype)
    left, right = (SparseProjector.draw(rows, d, r, generator=g, dtype=dtype) for rows in (m, n))
    return left, right, grad / grad.norm()


def objective(left, right, values, grad, beta):
    p, q = (x.new_zeros(side.rows, side.width).scatter_add(1, side.index.long(), x)
            for side, x in zip((left, right), values))  # fmt: skip
    return ((p @ p.T @ grad @ q @ q.T - grad).norm() + beta * (p.norm() + q.norm())) ** 2


@pytest.mark.parametrize(("size", "beta"), list(itertools.product(SIZES, (0.0, 0.3))))
def test_slopes_and_lines_are_those_of_the_objective(size, beta):
    left, right, grad = start(*size)
    values = [left.value.clone().requires_grad_(), right.value.clone().requires_grad_()]
    want = objective(left, right, values, grad, beta)
    want.backward()
    p, q = left, right
    x, y = p.project(grad), q.project(grad.T)
    here = point(q.project(x.T).T, gram(p, p), gram(q, q), beta)
    assert here.objective == pytest.approx(float(want.detach()), rel=1e-9)
    found = slopes(here, p, q, x, y)
    for (slope, _), value in zip(found, values):
        torch.testing.assert_close(slope, value.grad)
    along = tuple(-z for _, z in found)
    assert sum(float((s * a).sum()) for (s, _), a in zip(found, along)) < 0
    line = _Line(here, p, q, x, y, grad, along)
    for t in (0.0, 0.2, 1.5):
        moved = [v.detach() + t * a for v, a in zip(values, along)]
        assert line.at(t).objective == pytest.approx(float(objective(left, right, moved, grad, beta)), rel=1e-8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_step_is_one_down(size, dtype):
    left, right, grad = start(*size, dtype)
    biases = []
    for steps in range(8):
        p, q, taken = descend(left, right, grad, steps, 0.0, 0.0)
        assert (taken, p.dtype) == (steps, dtype)
        biases.append(float(Pair(left.with_value(p), right.with_value(q)).bias(grad)))
    assert all(b <= a * 1.000001 for a, b in itertools.pairwise(biases))
    assert biases[-1] < biases[0]


def test_a_gradient_that_fits_is_found():
    """Rank 1 in a subspace wide enough for it: nothing is lost in the end."""
    g = torch.Generator().manual_seed(0)
    grad = torch.outer(torch.randn(20, generator=g), torch.randn(12, generator=g))
    left, right = (SparseProjector.draw(rows, 6, 4, generator=g) for rows in (20, 12))
    assert fit(Pair(left, right), grad, steps=60).bias < 0.02


def test_beta_holds_the_norms_down():
    left, right, grad = start(24, 17, 8, 3)
    free, held = (fit(Pair(left, right), grad, beta=beta).pair for beta in (0.0, 0.2))
    assert held.left.norm() + held.right.norm() < 0.9 * (free.left.norm() + free.right.norm())


def test_better_than_as_many_steps_of_adam():
    """On real gradients than 100 of Adam's, too: `bench.check O9`."""
    for size in ((96, 64, 24, 4), (64, 128, 16, 4)):
        left, right, grad = start(*size, torch.float32)
        assert fit(Pair(left, right), grad).bias <= fit(Pair(left, right), grad, lr=0.1).bias


def test_a_learned_pair_stays():
    left, right, grad = start(16, 16, 4, 2)
    once = fit(Pair(left, right), grad, steps=400)
    again = fit(once.pair, grad, steps=5)
    assert again.bias <= once.bias
    assert fit(once.pair, grad, stop_at=0.999).steps == 0
