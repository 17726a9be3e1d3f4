# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.drift.peers`: every kind of row runs, and the table names what it lacks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeops.drift.streams import synthetic

pytest.importorskip("river")
pytest.importorskip("sklearn")

from bench.drift import peers
from bench.registry import Unavailable


@pytest.mark.parametrize("row", [row for row in peers.ROWS if "(" not in row or row.endswith(("(tree)", "(SGD)"))])
def test_every_kind_of_row(row: str) -> None:
    stream = synthetic.sine1(seed=0, n=600, batches=6, width=5)
    try:
        error, seconds, replaced = peers.run(row, stream, 0)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert 0 < error < 0.9
    assert seconds > 0
    assert replaced <= 5


def test_a_stream_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers", "--sets", "SINE1", "--data", str(tmp_path)])
    peers.main()
    assert "SINE1        skipped" in capsys.readouterr().out
