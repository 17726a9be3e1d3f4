# SPDX-License-Identifier: Apache-2.0
"""Tests that need a GPU: `make gpu`, or `pytest -m gpu tests/gpu`. Each is skipped where torch finds no GPU."""

import warnings
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(absent)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(42)


@pytest.fixture
def no_sync():
    """A context in which any wait of the host for the GPU is an error."""

    class Forbidden:
        def __enter__(self):
            torch.cuda.synchronize()
            with warnings.catch_warnings():
                # it says that it is a prototype
                warnings.simplefilter("ignore")
                torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    return Forbidden()
