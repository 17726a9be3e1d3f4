# SPDX-License-Identifier: Apache-2.0
"""The population against a `Trial` of its own for each learner, with modules and torch's optimizers."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from edgeops.drift.monitor import KEEP, DriftMonitor
from edgeops.drift.population import SGD, Adam, DriftSurfPopulation
from edgeops.drift.population._monitors import EVENTS
from edgeops.drift.population._stacked import draw
from edgeops.drift.trial import Trial

LOSS = partial(nn.functional.cross_entropy, reduction="none")
D, M = 3, 24


def wrong(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs.argmax(-1) != y).double()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def batches(learners: int, steps: int, seed: int = 0, m: int = M) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Linear concepts that change at each learner's own times and come back, and who has a batch."""
    g = torch.Generator().manual_seed(seed)
    concepts = torch.randn(learners, 2, D, generator=g, dtype=torch.float64)
    period = torch.randint(7, 16, (learners,), generator=g)
    found = []
    for t in range(steps):
        x = torch.randn(learners, m, D, generator=g, dtype=torch.float64)
        now = concepts[torch.arange(learners), (t // period) % 2]
        y = (torch.einsum("lmd,ld->lm", x, now) > 0).long()
        present = torch.rand(learners, generator=g) < (0.9 if t % 5 else 0.3)
        found.append((x, y, present))
    return found


class Modules:
    """A bank of one learner's models: plain modules, torch's optimizers, whole batches for replay."""

    def __init__(self, population: DriftSurfPopulation, learner: int, optimizer) -> None:
        self.population, self.learner, self.optimizer, self.trials = population, torch.tensor([learner]), optimizer, 0
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.part: list[tuple[Tensor, Tensor]] = []
        self.models: dict[str, tuple[nn.Module, torch.optim.Optimizer, int]] = {}
        self.open(KEEP, None)

    def open(self, name: str, like: str | None) -> None:
        model = mlp()
        if like is None:
            pick = draw(self.population.seed, self.learner, torch.tensor([self.trials]))
            self.population.architecture.fill(model, self.population.inits[int(pick) % len(self.population.inits)])
        else:
            model.load_state_dict(self.models[like][0].state_dict())
        optimizer = self.optimizer(model.parameters())
        if like is not None:
            optimizer.load_state_dict(copy.deepcopy(self.models[like][1].state_dict()))
        self.models[name] = (model, optimizer, len(self.batches))

    @torch.no_grad()
    def losses(self, names, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([self.population.risk_fn(self.models[name][0](x), y) for name in names])

    def train(self, names, x: Tensor, y: Tensor) -> None:
        self._step(names, lambda _: (x, y))
        self.part.append((x, y))
        if sum(len(x) for x, _ in self.part) < M:
            return
        self.batches.append(tuple(torch.cat(both) for both in zip(*self.part)))
        self.part = []
        count = len(self.batches)
        for turn in range(self.population.replay):
            drawn = int(draw(self.population.seed, self.learner, torch.tensor([count]), torch.tensor([turn])))

            def old(start: int, drawn: int = drawn) -> tuple[Tensor, Tensor]:
                first = max(start, count - self.population.window)
                return self.batches[first + drawn % (count - first)]

            self._step(names, old)

    def _step(self, names, batch) -> None:
        for name in names:
            model, optimizer, start = self.models[name]
            x, y = batch(start)
            optimizer.zero_grad()
            LOSS(model(x), y).mean().backward()
            optimizer.step()

    def rename(self, name: str, new: str) -> None:
        self.models[new] = self.models.pop(name)

    def drop(self, name: str) -> None:
        del self.models[name]


def told(name: str, trial: Trial) -> str:
    return f"again {trial.past.index(name.removeprefix('again '))}" if name.startswith("again ") else name


@pytest.mark.parametrize(
    ("ours", "theirs", "given"),
    [
        (SGD(0.5), partial(torch.optim.SGD, lr=0.5), {"archive": 2, "chunk": 3}),
        (SGD(0.2, 0.9, 1e-3), partial(torch.optim.SGD, lr=0.2, momentum=0.9, weight_decay=1e-3), {"replay": 2}),
        (Adam(0.05, weight_decay=0.01), partial(torch.optim.AdamW, lr=0.05), {"archive": 0, "replay": 1, "window": 3}),
    ],
)
def test_decisions_and_models_are_those_of_single_trials(ours, theirs, given) -> None:
    learners = 10
    monitor = DriftMonitor(r=3, longest=6, z=1.5, memory=6, challenge=9)
    population = DriftSurfPopulation(
        mlp, learners, LOSS, optimizer=ours, risk_fn=wrong, monitor=monitor, inits=4, seed=3, **given
    )
    banks = [Modules(population, i, theirs) for i in range(learners)]
    trials = [
        Trial(bank, copy.deepcopy(monitor), archive=len(population.columns) - 3)  # type: ignore[arg-type]
        for bank in banks
    ]
    happened: set[str] = set()
    served: set[str] = set()
    for x, y, present in batches(learners, 45):
        out = population.predict(x)
        for i, (trial, bank) in enumerate(zip(trials, banks)):
            served.add(told(trial.serve, trial))
            assert population.columns[int(population.serve[i])] == told(trial.serve, trial)
            torch.testing.assert_close(out[i], bank.models[trial.serve][0](x[i]), rtol=1e-9, atol=1e-9)
        events = population.observe(x, y, present)
        for i, (trial, bank) in enumerate(zip(trials, banks)):
            if present[i]:
                bank.trials = trial.monitor.trials + 1  # of the trial that this batch may start
                assert EVENTS[int(events[i])] == trial.observe(x[i], y[i])
            happened.add(EVENTS[int(events[i])])
            assert int(population.monitors.switches[i]) == trial.monitor.switches
    assert happened >= {"none", "enter", "reenter", "keep", "switch"}
    assert len(served) >= 3


def population_of(**given) -> DriftSurfPopulation:
    arguments = {"optimizer": SGD(0.3, 0.9), "monitor": DriftMonitor(delta=0.1, z=1.5), "inits": 4, "replay": 1}
    return DriftSurfPopulation(mlp, 12, LOSS, **{**arguments, **given})


def run(population: DriftSurfPopulation, given: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
    seen = []
    for x, y, present in given:
        seen += [population.predict(x), population.observe(x, y, present)]
    return seen


def test_state_in_the_middle_of_trials_goes_on_to_the_bit() -> None:
    given = batches(12, 30, seed=1)
    whole = run(population_of(), given)
    first = population_of()
    run(first, given[:17])
    assert first.report()["in_trial"] > 0
    second = population_of(seed=9)
    second.load_state_dict(first.state_dict())
    second.seed = 0
    for got, want in zip(run(second, given[17:]), whole[2 * 17 :], strict=True):
        assert torch.equal(got, want)
    other = DriftSurfPopulation(mlp, 11, LOSS, optimizer=SGD(0.1), inits=1)
    with pytest.raises(ValueError, match="needs the state of 11 models of 50 numbers; got 12 and 50"):
        other.load_state_dict(first.state_dict())


def test_slots_come_and_go() -> None:
    population = population_of(archive=0, monitor=DriftMonitor(delta=0.0, r=2, longest=3))  # always in a trial
    row = 8 * 50 * 2 + 8
    given = batches(12, 20, seed=2)
    lent = []
    for turn, (x, y, _) in enumerate(given):
        population.observe(x, y)
        memory, use = population.memory(), population.report()
        assert memory["models"] == (12 + memory["slots"]) * row
        assert use["slots in use"] == 2 * use["in_trial"] <= memory["slots"]
        lent.append(memory["slots"])
        if turn == 10:
            population.monitors.settings["delta"] = math.inf  # and never again
    assert population.memory()["stored"] == sum(8 * t.numel() * t.element_size() for t in given[0][:2])
    assert max(lent) >= 24
    assert population.report()["in_trial"] == 0
    assert lent[-1] == 16


def test_a_learner_whose_data_is_no_number_harms_nobody() -> None:
    given = batches(12, 25, seed=4)
    clean, broken = population_of(), population_of()
    for x, y, present in given:
        clean.observe(x, y, present)
        bad = x.clone()
        bad[5] = math.nan
        broken.observe(bad, y, present)
        others = torch.arange(12) != 5
        torch.testing.assert_close(broken.predict(x)[others], clean.predict(x)[others], rtol=0, atol=1e-12)


def test_who_has_no_batch_does_not_change() -> None:
    population = population_of()
    given = batches(12, 12, seed=5)
    run(population, given)
    (x, y, _), before = given[0], population.state_dict()
    assert population.observe(x, y, torch.zeros(12, dtype=torch.bool)).tolist() == [0] * 12
    assert population.observe(x[:, :0], y[:, :0]).tolist() == [0] * 12
    for some in (torch.arange(12) < 3, torch.arange(12) < 9):
        absent = ~some
        population.observe(torch.full_like(x, math.nan).where(absent[:, None, None], x), y, some)
        assert torch.equal(population.home.values[absent], before["home"][0][absent])
        assert torch.equal(population.monitors.history[absent], before["monitors"]["history"][absent])


def test_the_model_of_a_learner() -> None:
    population = population_of()
    for x, y, _ in batches(12, 30, seed=6):
        population.observe(x, y)
        if int(population.serve.max()):
            break
    learner = int(population.serve.argmax())
    torch.testing.assert_close(population.model(learner)(x[learner]), population.predict(x)[learner])
    assert repr(population).startswith("DriftSurfPopulation(12 x Sequential, 50 parameters, keep, fresh, warm")


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="learners, inits, window and chunk must be at least 1"):
        population_of(chunk=0)
    with pytest.raises(ValueError, match="must not keep running statistics; got BatchNorm1d at '0'"):
        DriftSurfPopulation(lambda: nn.Sequential(nn.BatchNorm1d(3)), 2, LOSS, optimizer=SGD(0.1))
    with pytest.raises(ValueError, match="needs parameters of one floating dtype; got no parameters"):
        DriftSurfPopulation(nn.ReLU, 2, LOSS, optimizer=SGD(0.1))
    population = population_of()
    x, y, _ = batches(12, 1)[0]
    with pytest.raises(ValueError, match=r"x must be \[12, n, ...\], one batch for each learner"):
        population.observe(x[:3], y[:3])
    with pytest.raises(ValueError, match=r"y must be \[12, 24, ...\], one entry for each point"):
        population.observe(x, y[:, 1:])
    population.observe(x, y)
    with pytest.raises(ValueError, match=r"batches must have the shape \(24, 3\) of those that are stored"):
        population.observe(x[:, 1:], y[:, 1:])
    mean = DriftSurfPopulation(mlp, 12, nn.functional.cross_entropy, optimizer=SGD(0.1))
    with pytest.raises(ValueError, match="loss_fn must give one number a point"):
        mean.observe(x, y)
