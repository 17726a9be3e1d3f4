# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import math
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeops.perf import LABELS, Record, Samples, append_jsonl, capture, read_jsonl, record, replace_text, write_jsonl

ENVIRONMENT = capture()
BASE = Record(
    workload="attention",
    case="CoLA/32",
    candidate="ours",
    shapes={"B": 32},
    source="made up",
    dtype="float32",
    environment=ENVIRONMENT,
    samples=Samples((0.5, 0.25, 1.0)),
)

names = st.text(min_size=1, max_size=8)
positive = st.floats(1e-12, 1e15)
optional = st.none() | positive
json_values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@st.composite
def records(draw):
    rounds = draw(st.integers(1, 6))
    samples, other = (
        Samples(tuple(draw(st.lists(positive, min_size=rounds, max_size=rounds))), calls=3) for _ in range(2)
    )
    made = Record(
        workload=draw(names),
        case=draw(names),
        candidate=draw(names),
        shapes=draw(st.dictionaries(names, st.integers() | st.lists(st.integers(), max_size=3), max_size=3)),
        source=draw(names),
        dtype="float32",
        environment=ENVIRONMENT,
        samples=samples,
        label=draw(st.sampled_from(LABELS)),
        flops=draw(optional),
        bytes=draw(optional),
        roof_gflops=draw(optional),
        roof_gbps=draw(optional),
        paired_roof_share=draw(optional),
        peak_memory=draw(st.none() | st.integers(0, 2**60)),
        notes=draw(st.dictionaries(names, json_values, max_size=3)),
    )
    return made.against(draw(names), other) if draw(st.booleans()) else made


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(records(), max_size=3))
def test_round_trip_is_exact(tmp_path_factory, made):
    path = tmp_path_factory.mktemp("records") / "r.jsonl"
    write_jsonl(path, made)
    assert read_jsonl(path) == made


def test_append_keeps_what_is_there_and_makes_folders(tmp_path):
    path = tmp_path / "new" / "folder" / "r.jsonl"
    append_jsonl(path, [BASE])
    second = dataclasses.replace(BASE, case="MNLI/32")
    append_jsonl(path, [second])
    assert [r.case for r in read_jsonl(path)] == ["CoLA/32", "MNLI/32"]


def test_lines_carry_the_derived_figures():
    made = dataclasses.replace(BASE, flops=1e9, roof_gflops=4.0)
    derived = made.to_dict()["derived"]
    assert derived == {"median": 0.5, "iqr": 0.375, "gflops": 2.0, "gbps": None, "roof_share": 0.5}


def test_roof_share_of_memory_work_and_pairs():
    assert dataclasses.replace(BASE, bytes=1e9, roof_gbps=8.0).roof_share == 0.25
    assert dataclasses.replace(BASE, bytes=1e9, roof_gbps=8.0, paired_roof_share=0.3).roof_share == 0.3
    assert BASE.roof_share is None


def test_against_fills_the_ratio():
    made = BASE.against("loop", Samples((1.0, 0.5, 2.0)))
    assert (made.baseline, made.ratio.median) == ("loop", 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "guessed"}, "label must be one of measured, emulated, simulated; got 'guessed'"),
        ({"case": ""}, "case must not be empty"),
        ({"flops": 0.0}, "flops must be positive and finite; got 0.0"),
        ({"roof_gflops": math.nan}, "roof_gflops must be positive and finite; got nan"),
        ({"peak_memory": -1}, "peak_memory must be 0 or more bytes; got -1"),
        ({"baseline": "loop"}, "baseline and ratio belong together; got baseline='loop'"),
    ],
)
def test_bad_records_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **change)


def _line(**changes):
    data = BASE.to_dict()
    for key, value in changes.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[]", "a JSON object is needed; got list"),
        (_line(case=None), r"missing \['case'\]"),
        (_line(colour="red"), r"unknown \['colour'\]"),
        (_line(schema=99), "schema must be 1; got 99"),
        (_line(flops="many"), "field flops must be"),
        (_line(flops=True), "field flops must be"),
        (_line(peak_memory=1.5), "field peak_memory must be"),
        (_line(samples={"seconds": [1.0, "x"], "calls": 1, "clock": "process"}), "field seconds must be"),
        (_line(samples={"seconds": [], "calls": 1, "clock": "process"}), "at least one sample"),
        (_line(samples={"seconds": [1.0], "calls": 1}), r"missing \['clock'\]"),
        (_line(environment={}), "Environment: exactly the known fields are allowed"),
        (_line(flops=1.0).replace("1.0", "NaN"), "a figure is NaN"),
        (_line(label="guessed"), "label must be one of"),
    ],
)
def test_corrupt_lines_are_reported_with_file_and_line(tmp_path, line, message):
    path = tmp_path / "r.jsonl"
    append_jsonl(path, [BASE])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(
        ValueError, match=r"(?s)every line must be one complete record; got .*r\.jsonl, line 2: .*" + message
    ):
        read_jsonl(path)


def test_append_to_a_torn_file_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "r.jsonl"
    append_jsonl(path, [BASE])
    torn = path.read_text() + '{"case": "half'
    path.write_text(torn)
    with pytest.raises(ValueError, match="must end with a complete line; got a torn line 2"):
        append_jsonl(path, [BASE])
    assert path.read_text() == torn


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    append_jsonl(path, [BASE])
    before = path.read_text()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(record.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        append_jsonl(path, [BASE])
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["r.jsonl"]


def test_written_files_are_readable_like_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    replace_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_unicode_line_separators_stay_inside_a_line(tmp_path):
    made = dataclasses.replace(BASE, case="a\u2028b\nc")
    write_jsonl(tmp_path / "r.jsonl", [made])
    assert read_jsonl(tmp_path / "r.jsonl") == [made]
