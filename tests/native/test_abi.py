# SPDX-License-Identifier: Apache-2.0
"""The op library uses the stable ABIs of torch and Python only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARIES = [ROOT / "edgeops" / name for name in ("_C.abi3.so", "_C_cuda.abi3.so")]


def audit(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).with_name(tool)
    found = str(path) if path.exists() else shutil.which(tool)
    if found is None:
        pytest.skip(f"needs {tool}: pip install 'edgeops[lint]'")
    return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=300)


@pytest.fixture(params=BINARIES, ids=lambda path: path.name)
def binary(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    if not path.exists():
        pytest.skip(f"{path.name} is not built here")
    return path


def test_torch_stable_abi(binary: Path) -> None:
    done = audit("torch-abi-audit", "--json", "--check", "both", str(binary))
    assert done.returncode == 0, done.stdout + done.stderr


def test_least_torch_is_the_declared_one() -> None:
    done = audit("torch-abi-audit", str(BINARIES[0]))
    assert "STABLE" in done.stdout, done.stdout + done.stderr
    assert "2.11" in done.stdout, done.stdout


def test_python_stable_abi(binary: Path) -> None:
    done = audit("abi3audit", "--strict", "--report", "--assume-minimum-abi3", "3.10", str(binary))
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    (spec,) = report["specs"].values()
    result = spec["object"]["result"] if "object" in spec else spec
    assert not result.get("non_abi3_symbols"), result


def test_size(tmp_path: Path) -> None:
    """Without its table of symbols, which the tests of instruction sets read and nobody loads."""
    bare = tmp_path / BINARIES[0].name
    subprocess.run(["strip", "-o", str(bare), str(BINARIES[0])], check=True)
    assert bare.stat().st_size <= 5 * 2**20


def test_no_build_path_leaks() -> None:
    """Error texts of torch hold the source path; built with a prefix map it is relative."""
    assert str(ROOT).encode() not in BINARIES[0].read_bytes()
