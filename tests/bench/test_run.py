# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

from bench import registry, run, table
from bench.registry import GateFailed, Unavailable
from edgeops import perf

QUICK = dataclasses.replace(run.SMOKE, suite="full")


def test_records_are_complete(toy):
    records = run.run([toy], QUICK)
    assert [(r.case, r.candidate) for r in records] == [(c, n) for c in ("a/1", "b/1") for n in ("ours", "peer")]
    first = records[0]
    assert (first.baseline, first.label, first.source) == ("peer", "measured", "made up")
    assert first.environment.threads == 1
    assert first.notes["tuned"] == "tuned so"
    assert first.notes["max_abs_error"] == 0.0
    assert first.roof_share > 0
    assert len(first.samples.seconds) == QUICK.rounds
    assert records[1].ratio == perf.Ratio(1.0, 1.0, 1.0)
    assert len({r.notes["run"] for r in records}) == 2


def test_memory_is_measured_when_asked(toy):
    records = run.run([toy], dataclasses.replace(QUICK, memory=True, cases=("a/1",)))
    assert records[0].peak_memory == 32
    assert run.run([toy], QUICK)[0].peak_memory is None


def test_memory_work_gets_the_copy_roof(toy):
    def build(case, device):
        return dataclasses.replace(toy.build(case, device), flops=None, bytes=64.0)

    first = run.run([dataclasses.replace(toy, build=build)], QUICK)[0]
    assert first.roof_gflops is None
    assert first.roof_gbps > 0


def test_the_thread_count_is_restored(toy):
    before = torch.get_num_threads()
    run.run([toy], QUICK)
    assert torch.get_num_threads() == before


def test_a_red_gate_stops_before_timing(toy, monkeypatch):
    def build(case, device):
        return dataclasses.replace(toy.build(case, device), expected=lambda: torch.zeros(8))

    monkeypatch.setattr(perf, "interleave", lambda *_, **__: pytest.fail("something was timed"))
    with pytest.raises(GateFailed, match="Nothing was timed"):
        run.run([dataclasses.replace(toy, build=build)], QUICK)


def test_cases_are_written_as_they_are_done_and_resumed(toy, tmp_path):
    out, built = tmp_path / "r.jsonl", []

    def build(case, device):
        built.append(case.name)
        if case.name == "b/1" and len(built) == 2:
            raise KeyboardInterrupt
        return toy.build(case, device)

    entry = dataclasses.replace(toy, build=build)
    with pytest.raises(KeyboardInterrupt):
        run.run([entry], QUICK, out=out)
    assert {r.case for r in perf.read_jsonl(out)} == {"a/1"}
    told = []
    run.run([entry], QUICK, out=out, resume=True, tell=told.append)
    assert built == ["a/1", "b/1", "b/1"]
    assert told == ["toy a/1: in the file already"]
    assert {r.case for r in perf.read_jsonl(out)} == {"a/1", "b/1"}


def test_what_cannot_run_is_skipped_with_the_reason(toy):
    def build(case, device):
        raise Unavailable("it needs a moon")

    told = []
    assert run.run([dataclasses.replace(toy, build=build)], QUICK, tell=told.append) == []
    assert told == ["toy a/1: skipped, it needs a moon", "toy b/1: skipped, it needs a moon"]


def test_synthetic_input_is_labelled(toy):
    case = dataclasses.replace(toy.cases("full")[0], synthetic=True)
    first = run.run([dataclasses.replace(toy, cases=lambda suite: [case])], QUICK)[0]
    assert first.notes["synthetic"] is True


def test_results_of_uncommitted_code_go_to_a_file_of_their_own():
    env = dataclasses.replace(perf.capture(), commit="abc", machine="m", dirty=False)
    assert run.results_path(env).name == "m-abc.jsonl"
    assert run.results_path(dataclasses.replace(env, dirty=True)).name == "m-abc-dirty.jsonl"
    assert run.results_path(dataclasses.replace(env, commit=None, dirty=None)).name == "m-nocommit.jsonl"


@pytest.fixture
def only_toy(toy, monkeypatch):
    monkeypatch.setattr(registry, "workloads", lambda: {"toy": toy})
    return toy


def test_command_line_writes_the_file(only_toy, tmp_path, capsys):
    out = tmp_path / "r.jsonl"
    arguments = ["--op", "toy_op", "--case", "a/1", "--rounds", "1", "--no-memory", "--out", str(out)]
    assert run.main(arguments) == 0
    assert len(perf.read_jsonl(out)) == 2
    shown = capsys.readouterr().out
    assert "toy" in shown
    assert "2 records in" in shown


def test_smoke_writes_nothing(only_toy, capsys, monkeypatch):
    monkeypatch.setattr(perf, "append_jsonl", lambda *_: pytest.fail("a file was written"))
    assert run.main(["--smoke"]) == 0


def test_command_line_exit_codes(only_toy, monkeypatch, capsys):
    assert run.main(["--op", "nothing"]) == 2
    assert "got 'nothing'" in capsys.readouterr().err
    for wrong in (["--case", "nowhere"], ["--threads", "0"], ["--rounds", "0"], ["--candidate", "nobody"]):
        assert run.main([*wrong, "--out", "unused.jsonl"]) == 2
        assert "got" in capsys.readouterr().err
    monkeypatch.setattr(registry, "check_gate", lambda *_: (_ for _ in ()).throw(GateFailed("red")))
    assert run.main(["--smoke"]) == 1
    assert "red" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_wrong_use(only_toy, capsys):
    assert run.main(["--device", "cuda"]) == 2
    assert "needs a CUDA device; got none" in capsys.readouterr().err


def test_list_names_workloads_and_ops(only_toy, capsys):
    assert run.main(["--list"]) == 0
    assert "toy_op" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.5, "1.50 s"),
        (0.123, "123 ms"),
        (0.0123, "12.3 ms"),
        (1.23e-3, "1.23 ms"),
        (9.9e-6, "9.90 µs"),
        (5e-8, "0.05 µs"),
    ],
)
def test_times_have_three_digits_and_a_unit(seconds, text):
    assert table.milliseconds(seconds) == text


def test_groups_need_a_run(toy):
    record = run.run([toy], QUICK)[0]
    with pytest.raises(ValueError, match=r"every record needs notes\['run'\]; got none for toy a/1"):
        table.groups([dataclasses.replace(record, notes={})])
