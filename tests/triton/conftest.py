# SPDX-License-Identifier: Apache-2.0
"""Triton decides when a kernel is defined whether it is interpreted, so the two kinds of test take two processes.

`pytest tests/triton` compiles ahead of time, and runs `TRITON_INTERPRET=1 pytest tests/triton/interpreted` as one test.
"""

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'edgeops[triton]'")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = ["test_*.py"] if INTERPRETED else ["interpreted/*"]


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory):
    """Compiled kernels of this run go to a folder of their own: no stale result, nothing left behind."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton-cache")))
    yield
    patch.undo()
