# SPDX-License-Identifier: Apache-2.0
"""`edgeops drift run`: generators, tables, putting away and going on, wrong use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from edgeops.cli._app import build
from edgeops.drift.evaluation.methods import STREAMS, learner_of
from edgeops.drift.streams import DriftStream, synthetic

SINE = ("sine1", "--batch", 250, "--no-fixed")  # 40 batches


def run(*arguments: object):
    return CliRunner().invoke(build(), ["drift", "run", *map(str, arguments)], env={"COLUMNS": "100"})


def said(done) -> str:
    """Standard error without the box drawn around it."""
    return " ".join(done.stderr.replace("│", " ").split())


def facts(*arguments: object) -> dict:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    stream: DriftStream = synthetic.sine1(seed=0, n=600, batches=6, drifts=())
    file = tmp_path / "points.csv"
    rows = [f"{600 - i},{a},{b},{'yes' if y > 0 else 'no'}" for i, ((a, b), y) in enumerate(zip(stream.x, stream.y))]
    file.write_text("\n".join(["when,a,b,answer", *rows]))
    return file


def test_json_is_what_an_evaluation_finds():
    from edgeops.drift.evaluation import Evaluation

    found = facts(*SINE, "--methods", "ds-d,mddm-g", "--seeds", 2)
    assert (found["stream"], found["batches"], found["batch_size"], found["drifts"]) == (
        "SINE1",
        40,
        250,
        [8, 16, 24, 32],
    )
    assert [line["method"] for line in found["methods"]] == ["no change", "majority", "DS-D", "MDDM-G"]
    stream = STREAMS["sine1"].stream(1, 250).with_constant()
    learner = learner_of("MDDM-G", stream, STREAMS["sine1"].settings, 1)
    expected = Evaluation(learner, stream, "MDDM-G", seed=1).advance()
    got = next(part for part in found["runs"] if (part["method"], part["seed"]) == ("MDDM-G", 1))
    assert got["errors"] == list(expected.errors)
    assert got["switches"] == list(expected.switches)


def test_the_table_names_the_rules_the_methods_and_the_best_fixed_policy(tmp_path):
    path = tmp_path / "errors.svg"
    done = run("sine1", "--batch", 500, "--methods", "Oblivious,DS-D", "--plot", path)
    assert done.exit_code == 0, done.output
    for text in (
        "no change",
        "majority",
        "Oblivious",
        "DS-D",
        "best fixed: ",
        "what was done for it",
        "what it took",
        "=> ",
    ):
        assert text in done.stdout
    assert "<svg" in path.read_text()


def going_on(folder: Path, until: int, *options: object) -> None:
    state = folder / "state.pt"
    whole = facts(*options)
    first = facts(*options, "--until", until, "--save", state)
    assert (first["batches"], first["left"]) == (until, whole["batches"] - until)
    assert [len(part["errors"]) for part in first["runs"]] == [until] * len(whole["runs"])
    torch.load(state, weights_only=True)  # nothing in it runs when it is read
    assert facts(*options, "--resume", state)["runs"] == whole["runs"]
    assert not list(folder.glob("*.partial"))


def test_putting_away_and_going_on_changes_nothing(tmp_path):
    going_on(tmp_path, 17, *SINE, "--methods", "DS-A,DS-D,MDDM-G")


def test_networks_go_on_too(table):
    going_on(table.parent, 5, table, "--label", "answer", "--model", "mlp", "--batch", 60, "--delta", 0)


def test_a_table(table):
    found = facts(table, "--label", "answer", "--time", "when", "--batch", 50, "--methods", "Oblivious")
    assert (found["stream"], found["batches"], found["features"]) == ("points", 12, 2)
    assert found["methods"][2]["error"] < 0.4
    dropped = facts(table, "--label", "answer", "--drop", "a", "--drop", "when", "--methods", "Oblivious")
    assert (dropped["features"], dropped["batch_size"]) == (1, 6)


def test_files_of_the_experiments(shared_data):
    found = facts("sine1", "--data", shared_data("streams"), "--methods", "Oblivious", "--no-fixed")
    assert (found["batches"], found["drifts"]) == (100, [20, 40, 60, 80])


def test_late_labels_and_other_settings():
    soon, late = (facts(*SINE, "--methods", "DS-D", "--delay", k) for k in (0, 3))
    assert late["delay"] == 3
    assert late["methods"][2]["error"] > soon["methods"][2]["error"]
    never = facts(*SINE, "--methods", "DS-A,DS-D", "--delta", 1000)
    assert [line["trials"] for line in never["methods"][2:]] == [0, 0]
    slow = facts(*SINE, "--methods", "Oblivious", "--eta", 1e-4)
    assert slow["settings"]["eta"] == 1e-4


def test_another_file_or_other_choices_are_not_gone_on_with(tmp_path):
    state, other = tmp_path / "state.pt", tmp_path / "other.pt"
    assert run(*SINE, "--methods", "DS-A", "--until", 3, "--save", state).exit_code == 0
    done = run(*SINE, "--methods", "DS-A", "--delta", 0.5, "--resume", state)
    assert done.exit_code == 2
    assert "delta None, not 0.5" in said(done)
    other.write_bytes(b"something else")
    done = run(*SINE, "--methods", "DS-A", "--resume", other)
    assert done.exit_code == 2
    assert "needs what --save wrote" in said(done)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("nowhere",), "needs a table (.csv, .arff, .parquet) or one of sea0"),
        (("nowhere.csv", "--label", "y"), "the table must be there"),
        (("sine1", "--methods", "DS-A,foo"), "methods must be of Oblivious"),
        (("sine1", "--methods", ","), "methods must be of Oblivious"),
        (("sine1", "--model", "cnn"), "model must be one of lr, mlp"),
        (("sine1", "--model", "mlp", "--methods", "AUE"), "AUE is there for logistic regression alone"),
        (("sine1", "--batch", "20000"), "a batch must have 1 to 10000 points"),
        (("sine1", "--batch", "0"), "batch"),
        (("sine1", "--delta", "-1"), "delta"),
        (("sine1", "--eta", "0"), "eta, rate and slots must be positive"),
        (("sine1", "--batch", "1000", "--plot", "x.doc"), "--plot must end in .png"),
    ],
)
def test_wrong_use_makes_2(arguments, rule):
    done = run(*arguments)
    assert done.exit_code == 2
    assert rule in said(done)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((), "a table needs --label"),
        (("--label", "a"), "there must be two labels"),
        (("--label", "reply"), "must have a column 'reply'"),
        (("--label", "answer", "--batch", 601), "--batch must be at most the table's 600 rows"),
    ],
)
def test_wrong_use_of_a_table(arguments, rule, table):
    done = run(table, *arguments)
    assert done.exit_code == 2
    assert rule in said(done)


def test_a_state_that_cannot_be_written_makes_1(tmp_path):
    done = run(*SINE, "--methods", "Oblivious", "--save", tmp_path / "nowhere" / "s.pt")
    assert done.exit_code == 1
    assert "error: " in done.stderr
