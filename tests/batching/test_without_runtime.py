# SPDX-License-Identifier: Apache-2.0
"""The package without its native runtime: it imports, and the first use says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
USES = """
import json, sys, torch
sys.modules["edgeops._runtime"] = None  # as if it were not built, wherever the package is installed
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
print(json.dumps([sorted(uses), told]))
"""


def test_the_first_use_says_what_to_do() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", USES]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    uses, told = json.loads(done.stdout)
    assert sorted(told) == uses
    for text in told.values():
        assert text.startswith("edgeops.batching: graphs, schedules and cells need the native runtime; got ")
        assert "edgeops._runtime" in text
        assert "run: pip install" in text
        assert text.endswith("`edgeops info` prints the whole picture.")
