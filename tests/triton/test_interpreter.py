# SPDX-License-Identifier: Apache-2.0
"""Starts the interpreter tests in a process of their own; see conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from torch.torch_version import TorchVersion

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_in_the_interpreter(which):
    triton = pytest.importorskip("triton")
    if TorchVersion(triton.__version__) < (3, 7) and TorchVersion(numpy.__version__) >= (2, 4):
        pytest.skip(f"the interpreter of triton {triton.__version__} does not work with numpy {numpy.__version__}")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", str(FOLDER), "-q", "-p", "no:cacheprovider", "-m", which]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=FOLDER.parents[2])
    print(run.stdout)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout.splitlines()[-1]
