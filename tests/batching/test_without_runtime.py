# SPDX-License-Identifier: Apache-2.0
"""The package without its native runtime: it imports, and the first use says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
USES = """
import json, numpy as np, torch
from edgeops import batching
from edgeops.batching import cells
uses = {
    "Graph": lambda: batching.Graph([0], [0, 0], []),
    "Graph.of": lambda: batching.Graph.of([("leaf", ())]),
    "PlanCache": lambda: batching.PlanCache(),
    "FSMPolicy.from_json": lambda: batching.FSMPolicy.from_json(
        '{"format": "edgeops fsm policy 1", "state": "base", "phases": 1, "keys": [], "table": []}'),
    "plan_layout": lambda: batching.plan_layout(2, [[[0], [1]]]),
    "cell": lambda: batching.cell(torch.neg),
    "cell of a module": lambda: batching.cell(torch.nn.Linear(2, 2)),
    "session": lambda: batching.session(),
    "LSTM": lambda: cells.LSTM(2, 2),
    "RaggedSum": lambda: cells.RaggedSum(),
}
told = {}
for name, use in uses.items():
    try:
        use()
    except ImportError as error:
        told[name] = str(error)
print(json.dumps([batching.__file__, sorted(uses), told]))
"""


def test_the_first_use_says_what_to_do(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("_runtime*.so", "_runtime*.pyd", "_C*", "__pycache__", "tour", "perf")
    shutil.copytree(ROOT / "edgeops", tmp_path / "edgeops", ignore=ignored)
    for binary in (ROOT / "edgeops").glob("_C*"):
        (tmp_path / "edgeops" / binary.name).symlink_to(binary)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", USES]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    place, uses, told = json.loads(done.stdout)
    assert Path(place).is_relative_to(tmp_path)
    assert sorted(told) == uses
    for text in told.values():
        assert text.startswith("edgeops.batching: graphs, schedules and cells need the native runtime; got ")
        assert "_runtime" in text
        assert "run: pip install" in text
        assert text.endswith("`edgeops info` prints the whole picture.")
