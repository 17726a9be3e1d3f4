# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from bench import registry, render, report, run
from edgeops import perf
from edgeops.perf import Ratio, Samples

README = "# title\n<!-- bench:toy -->\nstale\n<!-- /bench -->\nend\n"


@pytest.fixture
def records(toy, monkeypatch):
    """One full run of the toy with made-up times: ours takes 1 ms, the peer 2 ms."""
    monkeypatch.setattr(registry, "workloads", lambda: {"toy": toy})
    made = []
    for record in run.run([toy], dataclasses.replace(run.SMOKE, suite="full")):
        samples = Samples((0.001, 0.001) if record.candidate == "ours" else (0.002, 0.002))
        environment = dataclasses.replace(record.environment, dirty=False, commit="abc")
        made.append(
            dataclasses.replace(
                record, samples=samples, environment=environment, ratio=Ratio(1, 1, 1), time="2026-01-01"
            )
        )
    return made


def _later(records, **environment):
    """The same run a day later, ours slower, on another environment."""
    return [
        dataclasses.replace(
            r,
            time="2026-01-02",
            samples=Samples((0.004, 0.004)),
            environment=dataclasses.replace(r.environment, **environment),
            notes={**r.notes, "run": "later" + str(r.notes["run"])},
        )
        for r in records
    ]


def test_table_shows_times_ratios_and_where(records):
    text = render.render(README, records)
    assert "| a/1 | 1.00 ms | 2.00x [2.00, 2.00] |" in text
    assert "**2.00x**" in text
    assert "commit abc" in text
    assert "python -m bench.run --op toy" in text
    assert text.startswith("# title\n<!-- bench:toy -->\n")
    assert text.endswith("<!-- /bench -->\nend\n")
    assert "stale" not in text


def test_rendering_twice_changes_nothing(records):
    once = render.render(README, records)
    assert render.render(once, records) == once


def test_the_newest_run_wins(records):
    assert "| a/1 | 4.00 ms |" in render.render(README, records + _later(records))


def test_committed_code_wins_over_newer_changes(records):
    assert "| a/1 | 1.00 ms |" in render.render(README, records + _later(records, dirty=True))


def test_machines_are_not_mixed(records):
    elsewhere = [r for r in _later(records, machine="other") if r.case == "a/1"]
    text = render.render(README, records + elsewhere)
    assert "| a/1 | 4.00 ms |" in text
    assert "| b/1 |" not in text


def test_smoke_synthetic_and_gpu_records_are_not_shown(records):
    for note in ({"suite": "smoke"}, {"suite": "full", "synthetic": True}):
        hidden = [dataclasses.replace(r, notes={**r.notes, **note}) for r in records]
        assert "No record yet" in render.render(README, hidden)
    on_gpu = [dataclasses.replace(r, samples=dataclasses.replace(r.samples, clock="cuda")) for r in records]
    assert "No record yet" in render.render(README, on_gpu)
    assert "1.00 ms" in render.render(README.replace("bench:toy", "bench:toy@gpu"), on_gpu)


def test_without_records_the_block_says_how_to_get_them(records):
    assert "No record yet: `python -m bench.run --op toy`." in render.render(README, [])


def test_bad_markers_are_refused(records):
    with pytest.raises(ValueError, match="needs its own <!-- /bench -->"):
        render.render("<!-- bench:toy -->\n" + README, records)
    with pytest.raises(ValueError, match="got 'tea'"):
        render.render(README.replace("toy", "tea"), records)


def test_check_finds_a_stale_file_and_writes_nothing(records, tmp_path, capsys):
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(README)
    perf.write_jsonl(results / "m.jsonl", records)
    arguments = ["--file", str(readme), "--results", str(results)]
    assert render.main([*arguments, "--check"]) == 1
    assert readme.read_text() == README
    assert render.main(arguments) == 0
    assert render.main([*arguments, "--check"]) == 0
    (results / "m.jsonl").write_text("{\n")
    assert render.main([*arguments, "--check"]) == 2
    assert "m.jsonl, line 1" in capsys.readouterr().err


def test_report_page_has_a_section_a_workload(records, tmp_path):
    perf.write_jsonl(tmp_path / "m.jsonl", records)
    out = tmp_path / "page.html"
    assert report.main(["--results", str(tmp_path), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "a toy" in page
