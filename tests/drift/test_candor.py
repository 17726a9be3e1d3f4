# SPDX-License-Identifier: Apache-2.0
"""Candor: the minimum that an expert is, who votes, what is saved."""

from __future__ import annotations

import io

import pytest
import torch

from edgeops.drift import prequential
from edgeops.drift.linear.candor import Candor, minimum
from edgeops.drift.linear.logistic import Logistic
from edgeops.drift.streams import synthetic

SETTINGS = {"eta": 0.2, "mu": 1e-3, "seed": 0}


@pytest.mark.parametrize("mu", [1e-5, 1e-2, 1.0])
def test_an_expert_is_the_minimum(mu: float) -> None:
    """The gradient by autograd is zero there, for labels that a plane separates too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator).double()
    for y in (x[:, 0].sign(), torch.randn(60, generator=generator).double().sign()):
        centre = torch.tensor([1.0, -2.0, 0.5]).double()
        w = minimum(x, y, centre, mu, steps=60).requires_grad_()
        loss = torch.nn.functional.softplus(-y * (x @ w)).mean() + mu / 2 * (w - centre).square().sum()
        (slope,) = torch.autograd.grad(loss, w)
        assert float(slope.abs().max()) < 1e-6


def test_recovers_from_swaps_of_labels() -> None:
    stream = synthetic.sine1(seed=1).with_constant()
    learner = Candor(3, **SETTINGS)
    ours, never = prequential(learner, stream), prequential(Logistic(3, **SETTINGS), stream)
    assert float(ours.mean()) < min(0.2, float(never.mean()) - 0.03)
    assert learner.alive == 25
    assert float(learner.weight.sum()) == pytest.approx(1.0)


def test_saved_and_restored_at_every_step() -> None:
    stream = synthetic.sine1(seed=2, n=2000, batches=40, width=10).with_constant()
    ours, other = Candor(3, experts=5, **SETTINGS), Candor(3, experts=5, **SETTINGS)
    for x, y in stream:
        file = io.BytesIO()
        torch.save(other.state_dict(), file)
        file.seek(0)
        other = Candor(3, experts=5, **{**SETTINGS, "seed": 9})
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(ours.predict(x), other.predict(x))
        ours.observe(x, y)
        other.observe(x, y)
        assert torch.equal(ours.bank.w, other.bank.w)
    before = ours.bank.w.clone()
    ours.observe(x[:0], y[:0])
    assert torch.equal(before, ours.bank.w)
