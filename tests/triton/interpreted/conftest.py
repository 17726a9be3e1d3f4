# SPDX-License-Identifier: Apache-2.0
"""Memory that a launcher allocates is poisoned, so an element that no program writes fails its test."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    # the interpreter of triton 3.6 turns one-element arrays into loop bounds, which numpy has deprecated
    harmless = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
    for item in items:
        item.add_marker(harmless)


def _poisoned(x):
    return x.fill_(float("nan")) if x.is_floating_point() else x


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    empty, new_empty = torch.empty, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: _poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: _poisoned(new_empty(self, *a, **k)))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(42)
    torch.set_num_threads(1)
