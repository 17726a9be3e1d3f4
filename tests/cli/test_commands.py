# SPDX-License-Identifier: Apache-2.0
"""Exit codes of every command: 0 done, 1 the work failed, 2 wrong use; and what `--json` prints."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import edgeops
from edgeops import tour as tours
from edgeops.cli import bench as bench_command
from edgeops.cli import main
from edgeops.cli._app import build
from edgeops.tour import ChapterResult, Missing


def run(*arguments: str):
    return CliRunner().invoke(build(), list(arguments))


class Chapter:
    """Counts to two; fails, stops or lacks a package on demand."""

    title = "Counting [to two]"
    question = "Can it count?"

    def __init__(self, name="count", error=None, missing=()):
        self.name, self.error, self.missing = name, error, missing

    def requires(self):
        return self.missing

    def run(self, context):
        step = context.step("counting")
        for i in (1, 2):
            step(i, 2)
        if self.error is not None:
            raise self.error
        return ChapterResult("Counts to 2.", ("how", "count"), (("fast [really]", "2"),), facts={"count": 2})

    def present(self, result, section):
        section.text(f"{result.facts['count']}")


@pytest.fixture
def tour(monkeypatch, tmp_path):
    """Runs `edgeops tour` over the given chapters, into a folder of its own."""

    def call(*arguments: str, chapters=None):
        made = chapters or [Chapter()]
        monkeypatch.setattr(tours, "discover", lambda: {c.name: c for c in made})
        return run("tour", "--out", str(tmp_path / "out"), *arguments)

    return call


def test_a_tour_that_works(tour, tmp_path):
    done = tour()
    assert done.exit_code == 0, done.output
    assert done.stderr == "count: counting\n"
    assert "Counting [to two]" in done.stdout
    assert "fast [really]" in done.stdout
    assert f"report: {tmp_path}/out/report.html" in done.stdout
    assert (tmp_path / "out" / "report.html").is_file()


def test_tour_json_is_the_only_thing_on_standard_output(tour, tmp_path):
    done = tour("--json", "--quick", "--seed", "3")
    facts = json.loads(done.stdout)
    assert done.exit_code == 0
    assert sorted(facts) == ["chapters", "config", "environment", "passed", "report"]
    assert facts["config"] == {"quick": True, "seed": 3, "threads": 1, "clock": None}
    assert facts["passed"] is True
    assert facts["report"] == str(tmp_path / "out" / "report.html")
    (chapter,) = facts["chapters"]
    assert sorted(chapter) == [
        "chapter", "error", "missing", "question", "result", "resumed", "seconds", "status", "title"
    ]  # fmt: skip
    assert (chapter["status"], chapter["result"]["facts"]) == ("done", {"count": 2})


def test_a_failed_chapter_makes_1_and_the_others_run(tour):
    done = tour(chapters=[Chapter("bad", RuntimeError("cannot count")), Chapter("good")])
    assert done.exit_code == 1
    assert "cannot count" in done.stdout
    assert "Counts to 2." in done.stdout


def test_a_missing_package_makes_1_and_names_the_command(tour):
    done = tour(chapters=[Chapter(missing=(Missing("abacus", "pip install abacus"),))])
    assert done.exit_code == 1
    assert "pip install abacus" in " ".join(done.stdout.split())


def test_an_interrupt_makes_1_and_resume_goes_on(tour):
    chapters = [Chapter("first"), Chapter("second", KeyboardInterrupt())]
    done = tour(chapters=chapters)
    assert done.exit_code == 1
    assert "add --resume to go on" in done.stderr
    chapters[1].error = None
    facts = json.loads(tour("--resume", "--json", chapters=chapters).stdout)
    assert [(c["chapter"], c["resumed"]) for c in facts["chapters"]] == [("first", True), ("second", False)]


def test_only_runs_what_is_named(tour):
    done = tour("--only", "second", "--json", chapters=[Chapter("first"), Chapter("second")])
    assert [c["chapter"] for c in json.loads(done.stdout)["chapters"]] == ["second"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "third"], "--only takes count; got third"),
        (["--threads", "0"], "threads must be 1 or more; got 0"),
        (["--seed", "-1"], "seed must be 0 or more; got -1"),
        (["--clock", "sun"], "clock must be one of"),
        (["--threads", "two"], "integer"),
        (["--fast"], "--fast"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_make_2(tour, arguments, said):
    done = tour(*arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_a_missing_extra_makes_1_before_any_work(tour, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else found(name))
    chapter = Chapter(error=AssertionError("it ran"))
    done = tour(chapters=[chapter])
    assert done.exit_code == 1
    assert "error: edgeops tour: needs the package 'jinja2'" in done.stderr
    assert "pip install 'edgeops[cli]'" in done.stderr


def test_a_folder_that_cannot_be_written_makes_1(tour, tmp_path):
    (tmp_path / "out").write_text("a file is in the way")
    done = tour()
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("code", [0, 1, 2])
def test_bench_hands_arguments_and_exit_code_through(monkeypatch, tmp_path, code):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("")
    (tmp_path / "bench" / "run.py").write_text(
        f"import sys, pathlib\npathlib.Path('seen').write_text(' '.join(sys.argv[1:]))\nsys.exit({code})\n"
    )
    monkeypatch.chdir(tmp_path)
    done = run("bench", "--op", "ragged_attention", "--help")
    assert done.exit_code == code
    assert (tmp_path / "seen").read_text() == "--op ragged_attention --help"


def test_bench_outside_of_a_checkout_makes_2(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_command, "checkout", lambda start: None)
    done = run("bench")
    assert done.exit_code == 2
    assert "runs in a source checkout" in " ".join(done.stderr.replace("│", " ").split())


def test_the_checkout_is_found_from_a_folder_inside(tmp_path):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    assert bench_command.checkout(inside) is None or not bench_command.checkout(inside).is_relative_to(tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "run.py").touch()
    assert bench_command.checkout(inside) == tmp_path


def test_version():
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"edgeops {edgeops.__version__}\n")


def test_an_unknown_command_makes_2():
    assert run("fly").exit_code == 2


def test_main_leaves_with_the_exit_code():
    with pytest.raises(SystemExit) as left:
        main(["fly"])
    assert left.value.code == 2


def test_every_command_file_registers_itself():
    folder = Path(bench_command.__file__).parent
    names = {p.stem for p in folder.glob("*.py") if not p.name.startswith("_")}
    listed = run("--help").stdout
    assert names
    assert all(name in listed for name in names)
