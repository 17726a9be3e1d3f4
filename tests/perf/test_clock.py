# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch

from edgeops.perf import clock, interleave


class Ticker:
    """A clock that only moves when a candidate says so, in place of the process clock."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(clock, "_reader", lambda name: lambda: self.now)

    def candidate(self, seconds, log=None, name=""):
        def run():
            self.now += seconds
            if log is not None:
                log.append(name)

        return run


def test_samples_are_seconds_per_call(monkeypatch):
    ticker = Ticker(monkeypatch)
    seen = interleave({"a": ticker.candidate(0.25), "b": ticker.candidate(0.001)}, rounds=4, min_block_s=0.02)
    assert seen["a"].seconds == pytest.approx([0.25] * 4)
    assert seen["b"].seconds == pytest.approx([0.001] * 4)


def test_blocks_are_long_enough_and_a_long_call_is_a_block(monkeypatch):
    ticker = Ticker(monkeypatch)
    seen = interleave({"long": ticker.candidate(1.0), "short": ticker.candidate(0.001)}, rounds=1, min_block_s=0.02)
    assert seen["long"].calls == 1
    assert 20 <= seen["short"].calls <= 40


def test_every_round_runs_every_candidate_once_in_rotated_order(monkeypatch):
    ticker, log = Ticker(monkeypatch), []
    names = ["a", "b", "c"]
    interleave({n: ticker.candidate(1.0, log, n) for n in names}, rounds=6, warmup=0, min_block_s=0.5)
    rounds = [tuple(log[i : i + 3]) for i in range(3, len(log), 3)]  # the first three are the calibration
    assert all(sorted(one) == names for one in rounds)
    assert [one[0] for one in rounds[:3]] == ["a", "b", "c"]
    assert rounds[3:] == [one[::-1] for one in rounds[:3]]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_order_gives_everybody_every_place_once_a_cycle(count):
    cycle = [clock._order(count, i) for i in range(count)]
    for place in range(count):
        assert sorted(order[place] for order in cycle) == list(range(count))


def test_progress_counts_to_the_end(monkeypatch):
    ticker, told = Ticker(monkeypatch), []
    interleave(
        {"a": ticker.candidate(1.0), "b": ticker.candidate(1.0)},
        rounds=3,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(i, 6) for i in range(1, 7)]


def test_warmup_runs_before_the_clock_is_read(monkeypatch):
    ticker, log = Ticker(monkeypatch), []
    interleave({"a": ticker.candidate(1.0, log, "a")}, rounds=1, warmup=3)
    assert len(log) == 3 + 1 + 1


def test_clock_that_stands_still_is_refused(monkeypatch):
    Ticker(monkeypatch)
    monkeypatch.setattr(clock, "_MAX_CALLS", 1000)
    with pytest.raises(ValueError, match=r"must advance while a candidate runs; got 0 s .* Use clock='wall'"):
        interleave({"waits": lambda: None})


def test_without_a_block_length_nothing_is_called_but_what_is_timed(monkeypatch):
    ticker, log = Ticker(monkeypatch), []
    seen = interleave({"a": ticker.candidate(0.001, log, "a")}, rounds=3, warmup=0, min_block_s=None)
    assert log == ["a", "a", "a"]
    assert seen["a"].calls == 1


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"warmup": -1}, {"min_block_s": 0.0}])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="rounds >= 1, warmup >= 0 and min_block_s > 0 are required; got"):
        interleave({"a": lambda: None}, **bad)


def test_no_candidate_is_refused():
    with pytest.raises(ValueError, match="at least one candidate is needed; got none"):
        interleave({})


def test_unknown_clock_is_refused():
    with pytest.raises(ValueError, match="clock must be one of process, wall, cuda; got 'sundial'"):
        interleave({"a": lambda: None}, clock="sundial")


@pytest.mark.parametrize("name", ["process", "wall"])
def test_real_clocks_give_positive_samples(name):
    seen = interleave({"sum": lambda: sum(range(2000))}, rounds=3, clock=name, min_block_s=1e-4)["sum"]
    assert len(seen.seconds) == 3
    assert seen.clock == name


def test_an_error_in_a_candidate_comes_through():
    calls = itertools.count()

    def fails():
        if next(calls) == 2:
            raise RuntimeError("on the third call")

    with pytest.raises(RuntimeError, match="on the third call"):
        interleave({"fails": fails})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_clock_waits_for_the_device():
    x = torch.randn(4096, 4096, device="cuda")
    seen = interleave({"mm": lambda: x @ x, "nothing": lambda: None}, rounds=3, clock="cuda")
    assert seen["mm"].median > seen["nothing"].median
