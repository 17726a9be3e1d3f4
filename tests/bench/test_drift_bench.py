# SPDX-License-Identifier: Apache-2.0
"""The commands about false alarms and recovery, on short streams."""

from __future__ import annotations

import pytest

from bench.drift.alarms import SETS, Alarms, alarms
from bench.drift.recovery import recovered, waits
from edgeops.drift.evaluation import Run


def test_an_aggressive_detector_alone_replaces_good_models_and_a_trial_does_not() -> None:
    ours, alone = alarms("SINE1", ["DS-D", "Standard"], 2, n=4000, batches=40)
    assert (ours.wrong, ours.kept) == (0, True)
    assert alone.wrong == 1
    assert alone.switches > 2
    assert alone.trials == 0


@pytest.mark.parametrize("name", SETS)
def test_sets_without_a_drift(name: str) -> None:
    stream = SETS[name][1](seed=0, n=200, batches=10)
    assert stream.drifts == ()


def test_limits() -> None:
    assert Alarms("m", 0.05, 0, 0, 0.3).kept
    assert not Alarms("m", 0.1, 0, 0, 0.0).kept
    assert not Alarms("m", 0.0, 0, 0, 0.4).kept


def test_waits_by_hand() -> None:
    run = Run("m", 0, (0.1, 0.1, 0.9, 0.1, 0.5, 0.1, 0.1, 0.1), (1, 0, 0, 0))
    assert waits(run, (2,)) == [1]
    assert waits(run, (2,), 3) == [3]  # batches 5 to 7
    assert waits(run, (7,), 3) == [float("inf")]


def test_swapped_labels_are_recovered_from() -> None:
    ours, never = recovered("SINE1", ["DS-D", "Oblivious"], 1, n=10_000)
    assert ours.soon == 1
    assert ours.error < never.error - 0.03
