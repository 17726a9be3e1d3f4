# SPDX-License-Identifier: Apache-2.0
"""What importing the package does and does not do, with and without the binaries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAZY = ("triton", "transformers", "matplotlib", "typer", "rich", "jinja2", "sklearn", "triton_kernels", "torch._dynamo")


def python(code: str, root: Path = ROOT, *options: str) -> str:
    """Output of a fresh Python that finds the package under `root`, warnings as errors."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-W", "error::UserWarning", *options, "-c", code]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_no_extra_and_changes_nothing() -> None:
    code = """
import json, os, sys, torch, warnings
import numpy
def state():
    return [torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(),
            torch.get_float32_matmul_precision(), dict(os.environ), list(warnings.filters), torch.randn(0).dtype]
before, modules = state(), set(sys.modules)
import edgeops, edgeops.ragged, edgeops.perf
print(json.dumps([state() == before, sorted(set(sys.modules) - modules)]))
"""
    unchanged, new = json.loads(python(code))
    assert unchanged
    assert not [name for name in new if any(name == lazy or name.startswith(f"{lazy}.") for lazy in LAZY)]
    foreign = {name.split(".")[0] for name in new} - set(sys.stdlib_module_names) - {"edgeops"}
    assert not {name for name in foreign if not name.startswith(("_", "torch", "numpy"))}


def test_triton_kernels_are_no_module_of_their_own() -> None:
    """In the installed package they are `edgeops.triton_kernels`; the name `triton_kernels` belongs to Triton."""
    code = "from importlib.util import find_spec as f; print(f('triton_kernels'), f('edgeops.triton_kernels') is None)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False"]


@pytest.fixture(scope="module")
def without_binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pure")
    shutil.copytree(ROOT / "edgeops", root / "edgeops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return root


CALLS = """
import json, sys, torch, edgeops, edgeops.ragged as r, edgeops.perf
layout = r.RaggedLayout.from_lengths([1, 2])
x, v, cu = torch.zeros(3, 2), torch.zeros(2), layout.offsets
q = torch.zeros(3, 1, 2)
calls = {
    "ragged_attention": lambda: r.ragged_attention(q, q, q, cu, cu, 2, 2),
    "varlen_attn": lambda: r.varlen_attn(q, q, q, cu, cu, 2, 2),
    "pack": lambda: r.pack(torch.zeros(2, 2), layout),
    "unpack": lambda: r.unpack(x, layout),
    "ragged_pool": lambda: r.ragged_pool(x, cu),
    "bias_gelu": lambda: r.bias_gelu(x, v),
    "add_layer_norm": lambda: r.add_layer_norm(x, x, v, v),
}
found = {}
for name, call in calls.items():
    try:
        call()
    except ImportError as error:
        found[name] = str(error)
print(json.dumps([edgeops.__file__, edgeops.cpu_isa(), edgeops.native_status(), found, len(calls)]))
"""


def test_without_binaries(without_binaries: Path) -> None:
    """The import works, layouts work, every op says what is missing and what to do, and the report says it too."""
    place, isa, status, found, count = json.loads(python(CALLS, without_binaries))
    assert Path(place).is_relative_to(without_binaries)
    assert isa == "none"
    assert status["ops"].startswith("off: _C.abi3.so is not built; run: pip install")
    assert status["cuda"] == "off: the op library is not loaded"
    assert status["runtime"].startswith("off: edgeops/_runtime is not built")
    assert len(found) == count
    for text in found.values():
        assert ": needs the native ops; got _C.abi3.so is not built; run: pip install" in text, text
        assert text.endswith("`edgeops info` prints the whole picture.")


def test_without_binaries_the_error_names_the_function(without_binaries: Path) -> None:
    found = json.loads(python(CALLS, without_binaries))[3]
    for name, text in found.items():
        assert text.startswith(f"{'ragged_attention' if name == 'varlen_attn' else name}: "), text


def test_broken_binary(without_binaries: Path) -> None:
    """A file that is no library: the import works, the reason is told."""
    broken = without_binaries / "edgeops/_C.abi3.so"
    broken.write_bytes(b"not a library")
    try:
        _, isa, status, found, count = json.loads(python(CALLS, without_binaries))
    finally:
        broken.unlink()
    assert isa == "none"
    assert status["ops"].startswith("off: _C.abi3.so does not load: ")
    assert len(found) == count
    assert all("_C.abi3.so does not load" in text for text in found.values())


def test_command_line_without_binaries(without_binaries: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(without_binaries)}
    command = [sys.executable, "-m", "edgeops", "info", "--json"]
    done = subprocess.run(command, env=environment, cwd=without_binaries, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "_C.abi3.so is not built" in done.stdout


def test_optimised_python_keeps_the_checks() -> None:
    """Under `-O` asserts vanish; bad input must still be refused."""
    code = """
import torch
from edgeops.ragged import RaggedLayout, pack, ragged_pool
for call in (lambda: RaggedLayout.from_lengths([-1]), lambda: pack(torch.zeros(1, 1), RaggedLayout.from_lengths([2])),
             lambda: ragged_pool(torch.zeros(3, 1), torch.tensor([0, 9]))):
    try:
        call()
        print("accepted")
    except ValueError as error:
        print(str(error).split(":")[0])
"""
    assert python(code, ROOT, "-O").split() == ["offsets_from_lengths", "pack", "ragged_pool"]
