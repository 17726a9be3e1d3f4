# SPDX-License-Identifier: Apache-2.0
"""What a session says of itself."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from edgeops import batching
from edgeops.batching.cells import LSTM, BinaryTreeLSTM


class Clock:
    """A clock that only goes on when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for name in ("session", "report"):
        monkeypatch.setattr(sys.modules[f"edgeops.batching.{name}"], "time", clock)
    return clock


def test_time_in_the_block_is_recording_and_flushes_are_not(clock: Clock) -> None:
    def slow(x: torch.Tensor) -> torch.Tensor:
        clock.now += 8.0
        return 2 * x

    cell = batching.cell(slow)
    s = batching.session()
    with s:
        cell(torch.ones(1))  # tells its shape by running on zeros, which is recording
        assert clock.now == 108.0
        clock.now += 2.0
        y = cell(torch.ones(1))
        assert y.tensor().item() == 2.0
        assert (s.report.record_s, s.report.execute_s, s.report.schedule_s) == (10.0, 8.0, 0.0)
        clock.now += 4.0
        z = cell(torch.ones(1))
    assert s.report.record_s == 14.0
    clock.now += 32.0  # outside of the block
    z.tensor()
    assert (s.report.record_s, s.report.execute_s) == (14.0, 16.0)


def test_a_block_inside_of_its_own_block_counts_once(clock: Clock) -> None:
    with batching.session() as s:
        clock.now += 1.0
        with s:
            clock.now += 2.0
    with s:
        clock.now += 4.0
    assert s.report.record_s == 7.0


def test_a_failing_block_has_its_time_too(clock: Clock) -> None:
    def fail(s: batching.Session) -> None:
        with s:
            clock.now += 1.0
            raise KeyError

    s = batching.session()
    with pytest.raises(KeyError):
        fail(s)
    assert s.report.record_s == 1.0


def test_copies_by_class() -> None:
    width, calls = 8, 5
    cell = LSTM(width, width)
    double = batching.cell(lambda x: 2 * x)
    with batching.session() as s, torch.no_grad():
        x = double(torch.ones(width))
        zeros = double(torch.zeros(width))
        states = [cell.step(x, zeros, zeros) for _ in range(calls)]
        more = [double(h) for h, _ in states[::2]]
        s.stack(more)
    copied = s.report.copied_bytes
    assert list(copied) == ["weights", "activations", "products", "indices"]
    # the outside operands of the first doubles and every second state, which is no run of rows
    assert copied["activations"] == 4 * width * (2 + len(more)) == s.report.gathered_bytes
    # both matrices joined and both biases added, at the least
    assert copied["weights"] >= 4 * (4 * width * 2 * width + 4 * width)
    assert copied["indices"] >= 4 * len(more)


def test_cells_on_kernels_copy_weights_and_indices_alone() -> None:
    tree = BinaryTreeLSTM(4, 4, num_embeddings=10)
    with batching.session() as s:
        h, _ = tree.inner(*tree.leaf(1), *tree.leaf(2))
    h.tensor()
    assert s.report.copied_bytes["activations"] == 0
    assert s.report.copied_bytes["indices"] > 0


def test_plans_from_the_cache_are_counted() -> None:
    double, cache = batching.cell(lambda x: 2 * x), batching.PlanCache()
    hits = []
    for _ in range(3):
        with batching.session(cache=cache) as s:
            double(double(torch.ones(1))).tensor()
            double(torch.ones(1)).tensor()
        hits.append(s.report.cache_hits)
    assert hits == [0, 2, 2]
    assert cache.hits == 4
    with batching.session() as s:
        double(torch.ones(1)).tensor()
        double(torch.ones(1)).tensor()
    assert s.report.cache_hits == 0


def test_json_and_summary() -> None:
    double = batching.cell(lambda x: 2 * x)
    with batching.session() as s:
        xs = [double(torch.ones(3)) for _ in range(4)]
    s.stack(xs)
    facts = s.report.as_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert {"record_s", "schedule_s", "execute_s", "copied_bytes", "cache_hits", "lower_bound"} <= facts.keys()
    text = str(s.report)
    assert "calls     4 of 1 kinds" in text
    assert "batches   1, 0 of them of one call; 1.00x the lower bound 1" in text
    assert f"asked for at {__file__}:" in text
    assert "activations 48 B" in text
    assert "ms recording" in text


def test_summary_of_nothing_and_of_many_places() -> None:
    assert "nothing ran" in str(batching.Report())
    report = batching.Report(sites={f"a.py:{i}": i for i in range(1, 6)})
    assert "a.py:5 (5x), a.py:4 (4x), a.py:3 (3x) and 2 more places" in str(report)
