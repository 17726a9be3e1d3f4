# SPDX-License-Identifier: Apache-2.0
"""`edgeops offload plan`: the facts of the planner as a table and as JSON, wrong use."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from edgeops.cli._app import build
from edgeops.offload.plan import plan

MODEL = "hidden=256,layers=4,vocab=1000"
SIZES = ("--memory", "1GB", "--link", "12GB/s", "--compute", "1TFLOPS")


def run(*arguments: object):
    return CliRunner().invoke(build(), ["offload", "plan", *map(str, arguments)], env={"COLUMNS": "100"})


def said(done) -> str:
    """Standard error without the box drawn around it."""
    return " ".join(done.stderr.replace("│", " ").split())


def test_json_is_what_plan_returns():
    done = run(MODEL, *SIZES, "-d", 64, "-d", 128, "-r", 8, "--json")
    assert done.exit_code == 0, done.output
    expected = plan(MODEL, "1GB", "12GB/s", compute="1TFLOPS", d=[64, 128], r=[8])
    assert json.loads(done.stdout) == json.loads(json.dumps(expected.to_dict()))


def test_the_table_names_every_way_and_ends_with_the_advice():
    done = run(MODEL, *SIZES)
    assert done.exit_code == 0, done.output
    for text in (
        "AdamW",
        "ZeRO, layer-wise",
        "LSP d=128 r=4",
        "simulated seconds a step",
        "=> leave it: plain AdamW fits",
    ):
        assert text in done.stdout


def test_a_trace_of_the_choice(tmp_path):
    path = tmp_path / "trace.json"
    assert run(MODEL, *SIZES, "--trace", path).exit_code == 0
    assert len(json.loads(path.read_text())["traceEvents"]) > 10


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((MODEL, "--memory", "4", "--link", "fast", "--compute", "1TFLOPS"), "needs an amount in B/s above 0"),
        (("hidden=256", *SIZES), "sizes must be integers of hidden"),
        ((MODEL, *SIZES, "-d", "0"), "d must be an integer of 1 or more"),
        ((MODEL, *SIZES, "--batch", "0"), "batch"),
        ((MODEL, "--memory", "4GB"), "link"),
    ],
)
def test_wrong_use_makes_2(arguments, rule):
    done = run(*arguments)
    assert done.exit_code == 2
    assert rule in said(done)


def test_a_trace_that_cannot_be_written_makes_1(tmp_path):
    done = run(MODEL, *SIZES, "--trace", tmp_path / "nowhere" / "trace.json")
    assert done.exit_code == 1
    assert "error: " in done.stderr
