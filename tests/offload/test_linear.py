# SPDX-License-Identifier: Apache-2.0
"""What `SubspaceLinear` keeps, and what modules go through: copies, pickles, casts, saved states."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from edgeops.offload import LSPAdamW


def test_coordinates_take_no_memory_and_survive_what_modules_go_through() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    LSPAdamW(model, d=4, r=2)
    for made in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).double()):
        layer = made[0]
        assert layer.subspace.shape == (4, 4)
        assert layer.subspace.dtype == layer.weight.dtype
        made(torch.randn(3, 16, dtype=layer.weight.dtype)).sum().backward()
        assert layer.subspace.grad.count_nonzero() > 0
        made.load_state_dict(model.state_dict())
        assert layer.subspace.count_nonzero() == 0
    assert model[0].subspace.untyped_storage().nbytes() == 4
    assert model.double()[0].subspace.untyped_storage().nbytes() == 8


def test_coordinates_are_whole_where_processes_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = nn.Sequential(nn.Linear(16, 16))
    LSPAdamW(model, d=4, r=2)
    assert model[0].subspace.untyped_storage().nbytes() == 4 * 16
