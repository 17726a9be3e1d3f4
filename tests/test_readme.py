# SPDX-License-Identifier: Apache-2.0
"""The example of the README runs as it stands, and what the README names exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"(?P<before>[^\n]*)\n```python\n(?P<code>.*?)```", re.DOTALL)
EXAMPLES = [m["code"] for m in _BLOCK.finditer(README) if "not executed" not in m["before"]]


def test_there_is_an_example():
    assert EXAMPLES


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: f"{len(code.splitlines())} lines")
def test_example_prints_what_its_comments_say(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_benchmark_blocks_are_closed():
    assert README.count("<!-- bench:") == README.count("<!-- /bench -->") > 0
