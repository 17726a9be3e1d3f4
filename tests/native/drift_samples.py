# SPDX-License-Identifier: Apache-2.0
"""Samples of the drift ops for the contract: op -> (maker of calls, property test, op that measures it)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.native.more_samples import Call, normal


def _labels(*shape: int) -> Tensor:
    return normal(*shape, seed=9).sign()


def _strsaga() -> list[Call]:
    two = (torch.tensor([0, 1, 0, 2, 1, 3]).int(), torch.tensor([0, 2, 6]))
    window = torch.tensor([[0, 0], [1, 2]])
    first = (
        normal(2, 5, 3), _labels(2, 5), two[0], two[1], normal(2, 3, seed=1), torch.zeros(2, 3), torch.zeros(2, 5),
        window, 0.1, 1e-3,
    )  # fmt: skip
    first[2][2] = 1
    order = torch.tensor([0, 0, 1, 0, 2]).int()
    shared = normal(4, 20).double().expand(1, -1, -1)
    second = (
        shared, _labels(1, 4).double(), order, torch.tensor([0, 5]), normal(1, 20, seed=1).double(),
        torch.zeros(1, 20).double(), torch.zeros(1, 4).double(), torch.tensor([[0, 0]]), 0.2, 0.0,
    )  # fmt: skip
    return [(first, {}), (second, {})]


DRIFT: dict[str, tuple[Callable[[], list[Call]], str, str]] = {
    "_strsaga_run": (_strsaga, "test_drift.py::test_strsaga", "_strsaga_run"),
}
