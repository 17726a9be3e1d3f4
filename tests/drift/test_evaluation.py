# SPDX-License-Identifier: Apache-2.0
"""The evaluator: what is counted, against counting by hand; late labels; putting a run away and going on; reports."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from torch import Tensor

from edgeops.drift.evaluation import Evaluation, Run, batches_to_recover, recovery, size_of, wrong_switches
from edgeops.drift.evaluation.methods import METHODS, STREAMS, Settings, fixed_policies, learner_of
from edgeops.drift.evaluation.plots import error_over_time, plot_report
from edgeops.drift.evaluation.prequential import majority, no_change, prequential
from edgeops.drift.evaluation.report import COLUMNS, Report
from edgeops.drift.linear.logistic import Logistic
from edgeops.drift.linear.policies import Periodic
from edgeops.drift.streams import DriftStream, synthetic
from tests.messages import refused

SETTINGS = Settings(0.2, 1e-3)


@pytest.fixture(scope="module")
def stream() -> DriftStream:
    return synthetic.sine1(seed=0, n=4000, batches=40, drifts=(10, 25)).with_constant()


def finished(method: str, stream: DriftStream, **more: int) -> Run:
    return Evaluation(learner_of(method, stream, SETTINGS, 0), stream, method, **more).advance()


class Scripted:
    """Says what it is told to, and has a monitor of form B whose fields are set before each batch's labels."""

    def __init__(self, said: Tensor, states: list[dict]) -> None:
        self.said, self.states, self.t = said, states, 0
        self.monitor = type("M", (), {"trials": 0, "switches": 0, "reactive_mode": False, "serve": "model"})()
        self.monitor.form = "B"

    def begin(self) -> None:
        pass

    def predict(self, x: Tensor) -> Tensor:
        return self.said[self.t * len(x) : (self.t + 1) * len(x)]

    def observe(self, x: Tensor, y: Tensor) -> None:
        vars(self.monitor).update(self.states[self.t])
        self.t += 1


def test_what_is_counted() -> None:
    stream = DriftStream("t", torch.zeros(8, 1), torch.tensor([1.0, 1, -1, -1, 1, 1, 1, -1]), 4, (1,))
    said = torch.tensor([1.0, -1, 1, -1, 1, 1, 1, 1])
    states = [
        {"trials": 1, "reactive_mode": True},
        {"serve": "reactive"},
        {"switches": 1, "reactive_mode": False, "serve": "model"},
        {},
    ]
    run = Evaluation(Scripted(said, states), stream, "s").advance()
    assert run.errors == (0.5, 0.5, 0.0, 0.5)
    assert run.counts == (4, 2, 1, 1)
    assert (run.trials, run.testing, run.switches, run.dated) == ((0,), (0, 1, 2), (2,), (2,))
    n, agree = 8, 5 / 8
    chance = (6 * 5 + 2 * 3) / n**2
    assert run.kappa == pytest.approx((agree - chance) / (1 - chance))
    assert (run.bytes, run.steps) == (None, None)


def test_a_switch_of_form_b_is_dated_back() -> None:
    stream = DriftStream("t", torch.zeros(6, 1), torch.ones(6), 6)
    states = [
        {"trials": 1, "reactive_mode": True, "serve": "reactive"},
        {"serve": "model"},
        {"serve": "reactive"},
        {},
        {"switches": 1, "reactive_mode": False, "serve": "model"},
        {},
    ]
    run = Evaluation(Scripted(torch.ones(6), states), stream).advance()
    assert (run.switches, run.dated) == ((4,), (3,))


def test_switches_by_hand() -> None:
    assert wrong_switches((3, 12, 14, 30), (10, 25), 40) == 2
    assert recovery((3, 12, 14), (10, 25), 40) == [2, 15]
    assert batches_to_recover((0.1, 0.2, 0.9, 0.2, 0.1, 0.8, 0.8), (2, 5), window=2) == [2, None]
    assert batches_to_recover((0.1, 0.11), (1,)) == [0]


@pytest.mark.parametrize("method", METHODS)
def test_errors_are_those_of_prequential(method: str, stream: DriftStream) -> None:
    expected = prequential(learner_of(method, stream, SETTINGS, 0), stream)
    run = finished(method, stream)
    assert list(run.errors) == expected.tolist()
    assert sum(run.counts) == 4000
    assert run.error == pytest.approx(float(expected.mean()))
    assert (run.steps or 0) >= 2 * 4000
    assert (run.bytes or 0) >= stream.x.numel() * 8


def test_switches_of_methods_with_and_without_a_monitor(stream: DriftStream) -> None:
    assert finished("Aware", stream).switches == (10, 25)
    assert finished("Oblivious", stream).switches == ()
    for method in ("MDDM-G", "DS-D"):
        run = finished(method, stream)
        assert wrong_switches(run.switches, stream.drifts, 40) <= 1
        assert max(recovery(run.switches, stream.drifts, 40)) <= 3
    ours = finished("DS-D", stream)
    assert set(ours.trials) <= set(ours.testing)
    assert {10, 25} & set(ours.trials)


@pytest.mark.parametrize("method", ["Oblivious", "MDDM-G", "AUE", "DS-A", "DS-B", "DS-D"])
@pytest.mark.parametrize("at", [11, 26])
def test_a_run_put_away_goes_on_with_the_same_bits(method: str, at: int, stream: DriftStream) -> None:
    whole = finished(method, stream)
    first = Evaluation(learner_of(method, stream, SETTINGS, 0), stream, method)
    first.advance(at)
    kept = pickle.loads(pickle.dumps(first.state_dict()))
    second = Evaluation(learner_of(method, stream, SETTINGS, 7), stream, method)
    second.load_state_dict(kept)
    run = second.advance()
    # the spare room of buffers, which bytes include, differs
    for name in ("errors", "counts", "trials", "testing", "switches", "dated", "steps"):
        assert getattr(run, name) == getattr(whole, name), name


@pytest.mark.parametrize("method", ["Oblivious", "MDDM-G", "DS-A", "DS-D"])
def test_labels_five_batches_late_do_not_leak(method: str, stream: DriftStream) -> None:
    """Predictions of batch t stay when labels from t - 5 on are turned round."""
    changed = stream.inverted(20, 40)

    def said(which: DriftStream) -> list[Tensor]:
        learner, found = learner_of(method, stream, SETTINGS, 0), []
        predict = learner.predict
        learner.predict = lambda x: found.append(predict(x)) or found[-1]  # type: ignore[method-assign]
        Evaluation(learner, which, delay=5).advance()
        return found

    a, b = said(stream), said(changed)
    same = [torch.equal(one, other) for one, other in zip(a, b, strict=True)]
    assert all(same[:26])  # batch 25 rests on labels up to 19
    assert not all(same[26:])


def test_no_delay_is_the_usual_protocol(stream: DriftStream) -> None:
    late = prequential(learner_of("Oblivious", stream, SETTINGS, 0), stream, delay=3)
    soon = prequential(learner_of("Oblivious", stream, SETTINGS, 0), stream)
    assert soon.tolist() == list(finished("Oblivious", stream, delay=0).errors)
    assert late.tolist() == list(finished("Oblivious", stream, delay=3).errors)
    assert float(late[:10].mean()) > float(soon[:10].mean())


def test_a_report(stream: DriftStream) -> None:
    plain = synthetic.sine1(seed=0, n=4000, batches=40, drifts=(10, 25))
    runs = [
        Evaluation(learner_of(method, stream, SETTINGS, seed), stream, method, seed=seed).advance()
        for method in ("Oblivious", "DS-D")
        for seed in (0, 1)
    ]
    report = Report(stream, runs, fixed_policies(plain, SETTINGS, 0))
    names = [line.method for line in report.lines]
    assert names[:4] == ["no change", "majority", "Oblivious", "DS-D"]
    assert names[4].startswith("best fixed: every")
    assert report.lines[0].error == pytest.approx(float(no_change(stream).mean()))
    assert report.lines[1].error == pytest.approx(float(majority(stream).mean()))
    line = report.line("DS-D")
    both = [run.error for run in runs if run.method == "DS-D"]
    assert (line.error, line.spread) == (pytest.approx(sum(both) / 2), pytest.approx(abs(both[0] - both[1])))
    assert line.kappa_temporal == pytest.approx(1 - line.error / report.no_change)
    assert {len(row) for row in report.rows()} == {len(COLUMNS)}
    assert json.loads(json.dumps(report.to_dict()))["methods"][3]["seeds"] == 2
    with refused(ValueError, "Report.line", "must be one of Oblivious, DS-D", "'x'"):
        report.line("x")


def test_the_best_fixed_policy_has_the_least_error(stream: DriftStream) -> None:
    plain = synthetic.sine1(seed=0, n=4000, batches=40, drifts=(10, 25))
    runs = fixed_policies(plain, SETTINGS, 0)
    report = Report(plain, runs[:1], runs)
    assert report.line(report.best_fixed or "").error == min(run.error for run in runs)
    assert [run.method for run in runs][:2] == ["best fixed: never", "best fixed: every 1"]


def test_plots_mark_drifts_trials_and_switches(stream: DriftStream) -> None:
    pytest.importorskip("matplotlib", reason="the cli extra is not installed")
    report = Report(stream, [finished(method, stream) for method in ("Oblivious", "DS-D")])
    axes = plot_report(report, smooth=3).axes[0]
    upright = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in upright] == [10, 25]
    triangles = next(line for line in axes.lines if line.get_marker() == "^")
    assert tuple(triangles.get_xdata()) == report.of("DS-D")[0].switches
    bars = axes.collections[-1]
    assert len(bars.get_paths()) == len(report.of("DS-D")[0].testing)
    assert axes.get_ylim()[0] < 0
    with refused(ValueError, "error_over_time", "smooth must be at least 1"):
        error_over_time({"a": [0.0]}, title="t", smooth=0)


def test_state_is_weighed() -> None:
    learner = Logistic(3, eta=0.1, mu=0.0, seed=0)
    small = size_of(learner)
    learner.observe(torch.zeros(100, 3, dtype=torch.float64), torch.ones(100, dtype=torch.float64))
    grown = 100 * (3 + 1 + 1) * 8  # points, labels, gradients
    assert grown <= size_of(learner) - small <= grown + 64
    assert size_of(object()) == 0


def test_every_named_stream_can_be_drawn() -> None:
    for name, made in STREAMS.items():
        assert made.make(seed=0, n=200, batches=10).batch_size == 20, name
    assert STREAMS["sine1"].stream(0, batch=50).batches == 200
    with refused(ValueError, "drift streams", "1 to 10000 points", "20000"):
        STREAMS["sine1"].stream(0, batch=20_000)


def test_refusals(stream: DriftStream) -> None:
    with refused(ValueError, "learner_of", "method must be one of Oblivious", "'x'"):
        learner_of("x", stream, SETTINGS, 0)
    with refused(ValueError, "Periodic", "every must be a whole number", "0"):
        Periodic(2, 0, eta=0.1, mu=0.0, seed=0)
    evaluation = Evaluation(learner_of("DS-D", stream, SETTINGS, 0), stream, "DS-D")
    with refused(ValueError, "Evaluation", "a batch must be done"):
        _ = evaluation.run
    with refused(ValueError, "Evaluation.advance", r"in \[0, 40\]", "41"):
        evaluation.advance(41)
    other = Evaluation(learner_of("DS-D", stream, SETTINGS, 0), stream, "DS-A")
    with refused(ValueError, "Evaluation.load_state_dict", "method must be 'DS-A'", "'DS-D'"):
        other.load_state_dict(evaluation.state_dict())
    with refused(ValueError, "Report", "runs must have 40 batches", "1 of m"):
        Report(stream, [Run("m", 0, (0.0,), (1, 0, 0, 0))])
    with refused(ValueError, "Report", "a run is needed"):
        Report(stream, [])
