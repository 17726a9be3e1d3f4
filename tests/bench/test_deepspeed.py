# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's Adam beside ours: it is compared before it counts, and said to be missing where it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import inputs
from bench.offload import side_by_side

# a stand-in for DeepSpeed: answers with what it is told, or the first step of AdamW
ANSWERS = """
import json, sys
job = json.loads(sys.stdin.readline())
print("ready", flush=True)
for _ in sys.stdin:
    print(json.dumps([0.5, [{first}]]), flush=True)
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    peers = tmp_path / "bench" / "offload" / "peers"
    peers.mkdir(parents=True)
    monkeypatch.setattr(inputs, "ROOT", tmp_path)
    monkeypatch.setattr(side_by_side, "WARMUP", 0)
    monkeypatch.setenv("EDGEOPS_DEEPSPEED", sys.executable)
    return peers


@pytest.mark.parametrize("first", [1e-3, 2e-3])
def test_parameters_are_compared_before_a_time_counts(folder: Path, first: float) -> None:
    (folder / "deepspeed_adam.py").write_text(ANSWERS.format(first=first))  # lr against a gradient of -0.5
    other = side_by_side.DeepSpeed(1000)
    try:
        if first == side_by_side.SETTINGS["lr"]:
            assert side_by_side.measure(other, 1000, 1).median > 1
        else:
            with pytest.raises(AssertionError, match="not close"):
                side_by_side.measure(other, 1000, 1)
    finally:
        other.close()


def test_what_is_not_there_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    side_by_side.show()  # a Python without it: the program is not even there
    assert "DeepSpeed does not run: make deepspeed" in capsys.readouterr().out
    monkeypatch.setenv("EDGEOPS_DEEPSPEED", str(folder / "nowhere"))
    side_by_side.show()
    assert capsys.readouterr().out == "O3       DeepSpeed is not there: make deepspeed\n"
