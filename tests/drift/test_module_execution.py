# SPDX-License-Identifier: Apache-2.0
"""How candidates run: stacked or one by one, compiled or not, with all that belongs to each; and when one diverges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from edgeops.drift import DriftMonitor, DriftSurf
from tests.drift.modules import CROSS, MODELS, adam, batches, mlp, run, surf

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "groups": lambda p: torch.optim.Adam([{"params": [q]} for q in p], lr=0.02),
}


def long(**settings):
    """A monitor whose trials go their whole length."""
    return DriftMonitor(early_z=1e9, **settings)


def states(drift):
    """Parameters, buffers and optimizer states of all candidates."""
    found = []
    for c in drift._bank.candidates.values():
        found += [t.double() for t in c.module.state_dict().values()]
        found += [t for s in c.optimizer.state_dict()["state"].values() for t in s.values() if torch.is_tensor(t)]
    return found


@pytest.mark.parametrize(
    ("model", "optimizer"), [("mlp", name) for name in OPTIMIZERS] + [("norm", "sgd"), ("cnn", "sgd")]
)
def test_stacked_and_one_by_one_agree(model, optimizer):
    both = [
        DriftSurf(MODELS[model], OPTIMIZERS[optimizer], CROSS, monitor=long(), minibatch=32, batched=batched)
        for batched in (True, False)
    ]
    seen = [run(drift, batches(14, (8,))) for drift in both]
    assert [drift.execution for drift in both] == ["batched", "one by one: batched=False"]
    assert seen[0][1] == seen[1][1]
    assert both[0].monitor.in_trial or both[0].monitor.trials
    for a, b in zip(states(both[0]), states(both[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, check_dtype=False)


def test_what_cannot_be_stacked_runs_one_by_one_and_says_so():
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(2, 2)

        def forward(self, x):
            return self.line(x) if float(self.line.weight.detach().sum()) > -1e9 else x

    drift = surf(Asks, monitor=long(delta=0.0))
    run(drift, batches(4))
    assert drift.monitor.trials
    assert drift.execution.startswith("one by one: ")
    drift = surf(Asks, batched=True, monitor=long(delta=0.0))
    with pytest.raises(ValueError, match=r"batched=True needs a module that torch\.func\.vmap takes"):
        run(drift, batches(4))


def test_a_module_that_acts_otherwise_when_stacked_is_found_out():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(2, 2)
            self.register_buffer("mean", torch.zeros(2))

        def forward(self, x):
            if self.training:  # replaces its buffer, which a stack would not see
                self.mean = self.mean * 0.9 + x.mean(0) * 0.1
            return self.line(x - self.mean)

    drift = surf(Counts, monitor=long(delta=0.0))
    run(drift, batches(4))
    assert "other outputs or statistics" in drift.execution


def test_steps_and_dropout_belong_to_a_candidate():
    drift = surf(MODELS["dropout"], monitor=long())
    for x, y in batches(9, (8,)):
        drift.observe(x, y)
    keep, fresh, warm = (drift._bank.candidates[name] for name in ("keep", "fresh", "warm"))
    count = lambda c: int(next(iter(c.optimizer.state.values()))["step"])  # noqa: E731
    assert count(fresh) < count(warm) == count(keep)
    assert not keep.random[0].equal(fresh.random[0])
    assert fresh.start == warm.start == 8 * 60
    assert keep.start == 0


def test_schedule_belongs_to_a_candidate():
    drift = surf(monitor=long(), scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9))
    run(drift, batches(10, (8,)))
    rates = {name: c.optimizer.param_groups[0]["lr"] for name, c in drift._bank.candidates.items()}
    assert drift.execution == "batched"
    # two calls of training on the batch that entered the trial, one on each other
    assert rates == {name: pytest.approx(0.02 * 0.9**n) for name, n in (("keep", 11), ("fresh", 3), ("warm", 11))}


def test_scaler_and_autocast_belong_to_a_candidate():
    drift = surf(
        monitor=long(),
        scaler=lambda: torch.amp.GradScaler("cpu", init_scale=2.0**8),
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
    )
    outputs, _ = run(drift, batches(12, (8,)))
    assert outputs[0].dtype == torch.bfloat16
    assert "scaler" in drift.execution
    assert len({id(c.scaler) for c in drift._bank.candidates.values()}) == 3
    other = surf(scaler=lambda: torch.amp.GradScaler("cpu"), autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    other.load_state_dict(drift.state_dict())
    assert other._bank.candidates["warm"].scaler.get_scale() == 2.0**8


class Wild(nn.Module):
    """Its gradients are not finite where a coordinate is beyond 100."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return self.body(x) * torch.where(x.abs().amax(1, keepdim=True) > 100, math.inf, 1.0)


@pytest.mark.parametrize("trial", [False, True])
def test_a_step_that_is_not_finite_is_skipped_and_counted(trial):
    drift = surf(Wild, monitor=DriftMonitor(delta=0.0 if trial else math.inf, early_z=1e9))
    stream = list(batches(3))
    run(drift, stream)
    x, y = stream[0]
    x = x.clone()
    x[0] = 200.0
    report = drift.observe(x, y)
    assert report.skipped > 0
    assert all(c.finite for c in drift._bank.candidates.values())
    out = drift.predict(stream[1][0])
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("batched", [True, False])
def test_a_candidate_that_diverges_is_never_served(batched):
    made = []

    def optimizer(params):
        params = list(params)
        made.append(params)
        # the second model that is made, the first trial's new one, takes steps that blow up
        return torch.optim.SGD(params, lr=1e38 if len(made) == 2 else 0.1)

    drift = DriftSurf(mlp, optimizer, CROSS, monitor=long(), batched=batched, minibatch=32)
    outputs, events = run(drift, batches(14, (8,)))
    assert drift.monitor.trials >= 1
    assert all(bool(out.isfinite().all()) for out in outputs)
    assert "fresh" not in [served for _, served in events[8:12]]


def test_a_model_that_diverges_is_replaced_and_a_trial_follows():
    made = []

    def optimizer(params):
        made.append(1)
        return torch.optim.SGD(params, lr=1e38 if len(made) == 1 else 0.1)

    drift = DriftSurf(mlp, optimizer, CROSS, minibatch=32)
    tests = []
    for x, y in batches(12):
        assert bool(drift.predict(x).isfinite().all())
        tests.append(drift.observe(x, y).test)
    assert "diverged" in tests
    assert drift.step_report().risk < 0.2


def five_drifts():
    return batches(36, (6, 12, 18, 24, 30))


@pytest.mark.parametrize("model", ["norm", pytest.param("mlp", marks=pytest.mark.slow)])
def test_compiled_serves_the_same_with_two_graphs(model):
    """Item 13: five drifts, one graph for one model and one for several, the same decisions as without."""
    torch._dynamo.reset()
    counter = CompileCounter()
    settings = {"monitor": None, "minibatch": 32, "fresh": True}
    compiled = surf(MODELS[model], compile=counter, **{**settings, "monitor": long()})
    eager = surf(MODELS[model], **{**settings, "monitor": long()})
    first, second = run(compiled, five_drifts()), run(eager, five_drifts())
    assert compiled.monitor.switches >= 3
    assert first[1] == second[1]
    assert compiled.execution == "batched"
    assert counter.frame_count == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_by_the_compiler_serves_the_same():
    torch._dynamo.reset()
    compiled, eager = surf(monitor=long(), compile=True), surf(monitor=long())
    first, second = run(compiled, five_drifts()), run(eager, five_drifts())
    assert first[1] == second[1]
    for a, b in zip(first[0], second[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_saved_and_moved():
    drift = surf(MODELS["norm"]().cuda(), monitor=long())
    stream = [(x.cuda(), y.cuda()) for x, y in batches(14, (8,))]
    run(drift, stream)
    other = surf(MODELS["norm"], monitor=long()).to("cuda")
    other.load_state_dict(drift.state_dict())
    assert other.predict(stream[0][0]).equal(drift.predict(stream[0][0]))
    assert adam(drift.module.parameters()) is not None
