# SPDX-License-Identifier: Apache-2.0
"""The logistic learners: what they do at a drift, saved and restored in mid-trial, threads, refusals of the op."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeops._native import translate
from edgeops.drift import PublishedLogistic, PublishedMonitor, StrsagaBank, prequential
from edgeops.drift.linear.learners import LEARNERS
from edgeops.drift.linear.logistic import Aue, Aware
from edgeops.drift.linear.strsaga import PointStore, visits
from edgeops.drift.streams import DriftStream, read_stream, synthetic
from tests.messages import refused

OPS = torch.ops.edgeops
SETTINGS = {"eta": 0.2, "mu": 1e-3, "seed": 0}


def short(n: int = 2000) -> DriftStream:
    """SINE1 with four swaps of labels, 20 batches."""
    return synthetic.sine1(seed=2, n=n, batches=20, width=10).with_constant()


@pytest.mark.parametrize("name", list(LEARNERS))
def test_saved_and_restored_at_every_step(name: str) -> None:
    """Through a file, in the middle of trials too; predictions afterwards have the same bits."""
    stream = short()
    ours, other = (LEARNERS[name](3, (4, 8, 12, 16), **SETTINGS) for _ in range(2))
    for x, y in stream:
        fresh = LEARNERS[name](3, (4, 8, 12, 16), **{**SETTINGS, "seed": 99})
        file = io.BytesIO()
        torch.save(other.state_dict(), file)
        file.seek(0)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        other = fresh
        for learner in (ours, other):
            learner.begin()
        assert torch.equal(ours.predict(x), other.predict(x))
        ours.observe(x, y)
        other.observe(x, y)
        assert torch.equal(ours.bank.w, other.bank.w)


@pytest.mark.parametrize("form", ["A", "B"])
def test_driftsurf_recovers_where_never_resetting_does_not(form: str) -> None:
    stream = synthetic.sine1(seed=1).with_constant()
    surf = PublishedLogistic(3, PublishedMonitor(form), **SETTINGS)
    ours, never = prequential(surf, stream), prequential(LEARNERS["Oblivious"](3, (), **SETTINGS), stream)
    assert surf.monitor.switches >= 4
    for drift in stream.drifts:
        assert float(ours[drift + 7 : drift + 20].mean()) < 0.2
    assert float(ours.mean()) < float(never.mean()) - 0.03


def test_listed_figures_of_sine1(shared_data: Callable[[str], Path]) -> None:
    """Section 14, item 1: the mean of five seeds within 0.006 of section 9.2, on the same file."""
    stream = read_stream("SINE1", shared_data("streams")).with_constant()
    for name, listed in (("DS-A", 0.1932), ("DS-B", 0.1932), ("Aware", 0.1701), ("MDDM-G", 0.1772), ("AUE", 0.2104)):
        learners = [LEARNERS[name](3, stream.drifts, **{**SETTINGS, "seed": seed}) for seed in range(5)]
        mean = sum(float(prequential(learner, stream).mean()) for learner in learners) / 5
        assert mean == pytest.approx(listed, abs=0.006), name


def test_an_empty_batch_changes_nothing() -> None:
    learner = LEARNERS["DS-A"](3, (), **SETTINGS)
    x, y = short().batch(0)
    learner.observe(x, y)
    before = learner.bank.w.clone()
    learner.observe(x[:0], y[:0])
    assert torch.equal(learner.bank.w, before)
    assert learner.t == 1


def test_aware_starts_anew_before_it_predicts() -> None:
    learner = Aware(3, (1,), **SETTINGS)
    x, y = short().batch(0)
    learner.observe(x, y)
    old = learner.bank.w.clone()
    learner.begin()
    assert not torch.equal(learner.bank.w, old)
    assert learner.bank.window.tolist() == [[100, 100]]


def test_aue_has_no_expert_before_the_first_batch_and_at_most_its_number() -> None:
    learner, stream = Aue(3, experts=3, **SETTINGS), short()
    assert bool((learner.predict(stream.batch(0)[0]) == -1).all())
    prequential(learner, stream)
    assert learner.alive == 3
    assert float(learner.weight.sum()) == pytest.approx(1)


def test_any_number_of_threads_gives_the_same_bits(threads: Callable[[int], None]) -> None:
    g = torch.Generator().manual_seed(0)
    models, points, d = 40, 300, 17
    x, y = torch.randn(models, points, d, generator=g), torch.randn(models, points, generator=g).sign()
    orders = [visits(0, 0, points, 600, g) for _ in range(models)]
    starts = torch.tensor([0, *map(len, orders)]).cumsum(0)

    def run() -> list[Tensor]:
        state = [torch.zeros(models, k) for k in (d, d, points)] + [torch.zeros(models, 2, dtype=torch.int64)]
        OPS._strsaga_run(x, y, torch.cat(orders), starts, *state, 0.05, 1e-3)
        return state

    want = run()
    for count in (2, 3):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(run(), want))


def test_nan_stays_in_its_model() -> None:
    x, y = torch.ones(2, 2, 3), torch.ones(2, 2)
    x[0, 1, 1] = torch.nan
    state = [torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64)]
    OPS._strsaga_run(x, y, torch.tensor([0, 1, 0, 1]).int(), torch.tensor([0, 2, 4]), *state, 0.1, 0.0)
    assert state[0].isnan().any(1).tolist() == [True, False]


def native(*args: object) -> None:
    try:
        OPS._strsaga_run(*args)
    except RuntimeError as error:
        raise translate(error) from None


def test_the_op_refuses_and_leaves_everything_as_it_was() -> None:
    x, y = torch.ones(1, 4, 2), torch.ones(1, 4)
    order, starts = torch.tensor([0, 1]).int(), torch.tensor([0, 2])
    w, total, alpha, window = torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 4), torch.tensor([[0, 0]])
    state = (w, total, alpha, window)
    with refused(ValueError, "strsaga_run", r"order must name points of the window \[0, 1\)", "2 for model 0"):
        native(x, y, torch.tensor([0, 2]).int(), starts, *state, 0.1, 0.0)
    with refused(ValueError, "strsaga_run", "starts must run from 0 to the length of order, 2", "0 to 3"):
        native(x, y, order, torch.tensor([0, 3]), *state, 0.1, 0.0)
    with refused(ValueError, "strsaga_run", "each window must be 0 <= start <= end <= 4", "3, 5"):
        native(x, y, order, starts, w, total, alpha, torch.tensor([[3, 5]]), 0.1, 0.0)
    with refused(TypeError, "strsaga_run", "x must be float32 or float64", "Half"):
        native(x.half(), y, order, starts, *state, 0.1, 0.0)
    with refused(TypeError, "strsaga_run", "y must be Float", "Double"):
        native(x, y.double(), order, starts, *state, 0.1, 0.0)
    with refused(ValueError, "strsaga_run", r"alpha must have shape \(1, 4\)", r"shape \(1, 3\)"):
        native(x, y, order, starts, w, total, alpha[:, :3], window, 0.1, 0.0)
    with refused(ValueError, "strsaga_run", "eta must be positive and mu not negative", "nan"):
        native(x, y, order, starts, *state, float("nan"), 0.0)
    with refused(ValueError, "strsaga_run", "the points of a model must lie dense"):
        native(torch.ones(1, 2, 4).mT, y, order, starts, *state, 0.1, 0.0)
    with refused(ValueError, "strsaga_run", "w must be contiguous"):
        rest = torch.zeros(2, 2), torch.zeros(2, 4), torch.zeros(2, 2, dtype=torch.int64), 0.1, 0.0
        native(torch.ones(2, 4, 2), torch.ones(2, 4), order, torch.tensor([0, 2, 2]), w.expand(2, -1), *rest)
    assert torch.equal(w, torch.ones(1, 2))
    assert window.tolist() == [[0, 0]]


def test_refusals() -> None:
    with refused(ValueError, "PublishedLogistic", "risk must be 'regularised' or 'zero-one'", "'loss'"):
        PublishedLogistic(3, PublishedMonitor(), risk="loss", **SETTINGS)
    with refused(ValueError, "StrsagaBank", "eta, rate and slots must be positive"):
        StrsagaBank(PointStore(2), 1, eta=0.0, mu=0.0, generator=torch.Generator())
    with refused(ValueError, "PointStore.append", "labels must be -1 or 1"):
        PointStore(2).append(torch.zeros(1, 2), torch.zeros(1))
    with refused(ValueError, "PointStore.append", r"x must have shape .n, 2. and y shape .n."):
        PointStore(2).append(torch.zeros(1, 3), torch.ones(1))
