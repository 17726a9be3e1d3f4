# SPDX-License-Identifier: Apache-2.0
"""The trial around a bank whose models are written down: who is made, trained, kept and forgotten, in which order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeops.drift import DriftMonitor, DriftSurfLogistic, prequential
from edgeops.drift.streams import DriftStream, synthetic
from edgeops.drift.trial import Trial
from tests.messages import refused


class Majority:
    """Models that predict the class they saw most often; keeps a diary."""

    def __init__(self) -> None:
        self.counts = {"keep": torch.zeros(2)}
        self.diary: list[str] = []
        self.most = 1

    def open(self, name: str, like: str | None) -> None:
        self.counts[name] = torch.zeros(2) if like is None else self.counts[like].clone()
        self.diary.append(f"open {name} like {like}")
        self.most = max(self.most, len(self.counts))

    def losses(self, names: Sequence[str], x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([(y != self.counts[name].argmax()).double() for name in names])

    def train(self, names: Sequence[str], x: Tensor, y: Tensor) -> None:
        for name in names:
            self.counts[name] += torch.bincount(y.long(), minlength=2)
        self.diary.append(f"train {' '.join(names)}: {len(y)}")

    def rename(self, name: str, new: str) -> None:
        self.counts[new] = self.counts.pop(name)

    def drop(self, name: str) -> None:
        self.counts.pop(name)
        self.diary.append(f"drop {name}")


def feed(trial: Trial, labels: Sequence[int], n: int = 40) -> list[str]:
    """Batches of one class each."""
    return [trial.observe(torch.zeros(n, 1), torch.full((n,), label)) for label in labels]


def test_entry_trains_on_the_first_half_and_decides_on_the_second() -> None:
    bank = Majority()
    trial = Trial(bank, DriftMonitor())
    assert feed(trial, [0, 0, 0, 1]) == ["none", "none", "none", "enter"]
    assert bank.diary[3:] == [
        "open fresh like None",
        "open warm like keep",
        "train keep fresh warm: 20",
        "open past 0 like keep",  # the one that is replaced
        "drop warm",
        "train keep: 20",
    ]
    assert trial.serve == "keep"
    assert bank.counts["keep"].tolist() == [0, 40]
    assert trial.past == ["past 0"]
    assert bank.counts["past 0"].tolist() == [120, 20]


def test_a_concept_that_comes_back_finds_its_model() -> None:
    bank = Majority()
    trial = Trial(bank, DriftMonitor(), fresh=False, warm=False, archive=1)
    trial.past = ["past 0"]
    bank.counts["past 0"] = torch.tensor([1.0, 1000.0])
    assert feed(trial, [0, 0, 0, 1]) == ["none", "none", "none", "enter"]
    assert bank.counts["keep"][1] > 1000  # the old one, trained on the batch


def test_the_archive_holds_no_more_than_asked() -> None:
    for archive in (0, 1, 2):
        bank = Majority()
        trial = Trial(bank, DriftMonitor(), warm=False, archive=archive)
        feed(trial, [0] * 4 + [1] * 4 + [0] * 30 + [1] * 40)
        assert trial.monitor.switches >= 2
        assert len(trial.past) <= archive
        assert sorted(bank.counts) == sorted(["keep", *trial.past, *trial.monitor.candidates[1:]])
        assert bank.most <= 2 + 2 * archive + 1


def test_nothing_is_left_of_a_trial_that_kept_the_model() -> None:
    bank = Majority()
    trial = Trial(bank, DriftMonitor(challenge=3))
    assert feed(trial, [0] * 7) == ["none", "none", "enter", "none", "none", "none", "keep"]
    assert list(bank.counts) == ["keep"]
    assert trial.past == []


def test_a_batch_of_one_point_and_an_empty_one() -> None:
    bank = Majority()
    trial = Trial(bank, DriftMonitor(delta=0.0))
    assert feed(trial, [0, 0, 1], n=1)[1] == "enter"
    before = list(bank.diary)
    assert feed(trial, [0], n=0) == ["none"]
    assert bank.diary == before


def constant(labels: Sequence[float]) -> DriftStream:
    y = torch.tensor(labels, dtype=torch.float64).repeat_interleave(50)
    x = torch.cat([y[:, None] * 0 + 1, torch.linspace(-1, 1, len(y), dtype=torch.float64)[:, None]], dim=1)
    return DriftStream("one class a batch", x, y, len(labels))


def test_batches_of_one_class_are_as_good_as_others() -> None:
    learner = DriftSurfLogistic(2, eta=0.5, mu=0.0, seed=0)
    errors = prequential(learner, constant([1.0] * 6 + [-1.0] * 6))
    assert errors[6] == 1.0
    assert float(errors[8:].mean()) < 0.1


def test_form_d_is_back_after_every_swap_and_finds_old_concepts_again() -> None:
    stream = synthetic.sine1(seed=3).with_constant()
    learner = DriftSurfLogistic(3, eta=0.2, mu=1e-3, seed=0)
    errors = prequential(learner, stream)
    for drift in stream.drifts:
        before = float(errors[drift - 10 : drift].mean())
        assert float(errors[drift + 6 : drift + 10].mean()) < before + 0.05
    alone = DriftSurfLogistic(3, eta=0.2, mu=1e-3, seed=0, archive=0)
    assert float(errors.mean()) < float(prequential(alone, stream).mean()) + 0.01


def test_a_shared_budget_is_not_exceeded() -> None:
    stream = synthetic.sine1(seed=3, n=2000, batches=20).with_constant()
    learner = DriftSurfLogistic(3, eta=0.2, mu=1e-3, seed=0, budget="all")
    prequential(learner, stream)
    assert learner.monitor.trials > 0
    assert 0.98 * 2 * 2000 <= learner.models.steps <= 2 * 2000
    with refused(ValueError, "DriftSurfLogistic", "budget must be one of each, all"):
        DriftSurfLogistic(3, eta=0.2, mu=1e-3, seed=0, budget="some")
