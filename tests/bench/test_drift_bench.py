# SPDX-License-Identifier: Apache-2.0
"""The commands about false alarms and recovery, on short streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.drift.alarms import SETS, Alarms, alarms
from bench.drift.real import text, united_states
from bench.drift.recovery import recovered, waits
from edgeops.drift.evaluation import Run
from tests.messages import refused


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


def test_phrases_as_a_stream(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the sklearn extra is not installed")
    file = shared_data("text") / "sst2_train.tsv"
    stream, other = (text(file, phrases=2000, words=64, seed=seed) for seed in (0, 1))
    assert (stream.x.shape, stream.drifts, stream.batch_size) == ((2000, 64), (30, 60), 20)
    lengths = stream.x.norm(dim=1)
    assert bool(((lengths - 1).abs() < 1e-9).logical_or(lengths == 0).all())
    share = float((stream.inverted(30, 60).y > 0).double().mean())
    assert share == pytest.approx(0.56, abs=0.04)
    assert not stream.x.equal(other.x)
    small = tmp_path / "a.tsv"
    small.write_text("sentence\tlabel\ngood\t1\n")
    with refused(ValueError, "text", "needs 5 phrases", "1"):
        text(small, phrases=5)


def test_flights_of_many_airports(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="the drift extra is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow, which reads Parquet, is not installed")
    days = pandas.to_datetime(["2001-01-02", "2001-01-01", "2001-01-03"])
    table = pandas.DataFrame(
        {"date": days, "delay": [5, -5, 1], "distance": [100, 200, 300], "origin": ["ATL", "XYZ", "ABC"]}
    )
    table.to_parquet(tmp_path / "f.parquet")
    stream = united_states(tmp_path / "f.parquet", None, batches=3)
    assert (stream.y.tolist(), stream.x[:, -2:].tolist()) == ([-1, 1, 1], [[0, 1], [1, 0], [0, 1]])
    assert len(united_states(tmp_path / "f.parquet", 2, batches=1).x) == 2
