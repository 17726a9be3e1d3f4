# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed where the source tree cannot be seen."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

PROBE = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.process_time()
import edgeops, edgeops.ragged as ragged
seconds = time.process_time() - start
q = torch.randn(5, 2, 8)
cu = torch.tensor([0, 2, 5])
out = ragged.ragged_attention(q, q, q, cu, cu, 3, 3)
import importlib.util
print(json.dumps({
    "where": edgeops.__file__, "seconds": seconds, "shape": list(out.shape), "status": edgeops.native_status(),
    "loaded": sorted(set(sys.modules) - before), "kernels": bool(importlib.util.find_spec("edgeops.triton_kernels")),
    "top_level": importlib.util.find_spec("triton_kernels") is None,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files with what is compiled already."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q", "-w", str(folder), "."]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "edgeops/_C.abi3.so" in names
    assert "edgeops/py.typed" in names
    assert any(n.startswith("edgeops/triton_kernels/ragged/") for n in names)
    tops = {n.split("/")[0] for n in names}
    assert tops == {"edgeops", next(t for t in tops if t.endswith(".dist-info"))}
    assert not [n for n in names if n.endswith((".cpp", ".cu", ".h"))]


def test_works_alone(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    # torch and numpy of this environment, without its .pth files: the editable installation stays unseen
    (site / "torch.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    done = subprocess.run([python, "-c", PROBE], cwd=tmp_path, check=True, capture_output=True, text=True)
    facts = json.loads(done.stdout)
    assert str(tmp_path) in facts["where"]
    assert facts["shape"] == [5, 2, 8]
    assert facts["status"]["ops"].startswith("on")
    assert facts["kernels"]
    assert facts["top_level"]
    heavy = {"triton", "transformers", "matplotlib", "rich", "typer", "torch._dynamo"}
    assert not heavy & set(facts["loaded"])
