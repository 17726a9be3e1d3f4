# SPDX-License-Identifier: Apache-2.0
"""Every test here runs with one seed, in a process started with TRITON_INTERPRET=1."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    # the interpreter of triton 3.6 turns one-element arrays into loop bounds, which numpy has deprecated
    harmless = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
    for item in items:
        item.add_marker(harmless)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(42)
