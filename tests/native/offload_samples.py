# SPDX-License-Identifier: Apache-2.0
"""Samples of the offload ops for the contract: op -> (maker of calls, property test, op that measures it)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from edgeops.offload import SparseProjector
from tests.native.more_samples import Call, normal


def drawn(rows: int, width: int, r: int, seed: int = 0) -> SparseProjector:
    return SparseProjector.draw(rows, width, r, generator=torch.Generator().manual_seed(seed))


def _project() -> list[Call]:
    wide = drawn(9, 5, 1)
    wide.index = wide.index.int()
    return [((normal(7, 3), *drawn(7, 4, 2).tensors()), {}), ((normal(20, 9).T, *wide.tensors()), {})]


def _expand_public() -> list[Call]:
    return [((normal(4, 3), *drawn(7, 4, 2).tensors()), {}), ((normal(20, 5).T, *drawn(9, 5, 1).tensors()), {})]


def _expand() -> list[Call]:
    p, q = drawn(7, 4, 2), drawn(9, 5, 1)
    return [((normal(4, 3), p.index, p.value), {}), ((normal(20, 5).T, q.index, q.value), {})]


def _value_grad() -> list[Call]:
    return [
        ((normal(7, 3), normal(4, 3, seed=1), drawn(7, 4, 2).index), {}),
        ((normal(20, 9).T, normal(5, 20, seed=1), drawn(9, 5, 1).index.int()), {}),
    ]


def _apply() -> list[Call]:
    p, q = drawn(7, 4, 2), drawn(9, 5, 3, seed=1)
    parts = (p.index, p.value, q.index, q.value)
    rounded = (normal(7, 9).bfloat16(), normal(4, 5, seed=1), *parts, -0.1, 0.9, True, 2**40 + 3)
    return [((normal(7, 9), normal(4, 5, seed=1), *parts, -0.5), {}), (rounded, {})]


def _adam() -> list[Call]:
    return [
        ((normal(5, 3), normal(5, 3, seed=1), normal(5, 3, seed=2).square(), 2, 0.9, 0.999, 1e-8), {}),
        ((normal(21).bfloat16(), torch.zeros(21), torch.zeros(21), 1, 0.8, 0.99, 1e-4), {}),
    ]


_FILE = "test_offload.py::"
OFFLOAD: dict[str, tuple[Callable[[], list[Call]], str, str]] = {
    "subspace_project": (_project, f"{_FILE}test_products", "subspace_project"),
    "_subspace_project": (_project, f"{_FILE}test_products", "subspace_project"),
    "subspace_expand": (_expand_public, f"{_FILE}test_products", "subspace_expand"),
    "_subspace_expand": (_expand, f"{_FILE}test_products", "subspace_expand"),
    "_subspace_value_grad": (_value_grad, f"{_FILE}test_products", "subspace_project"),
    "_subspace_apply": (_apply, f"{_FILE}test_apply", "_subspace_apply"),
    "_subspace_adam": (_adam, f"{_FILE}test_adam", "_subspace_adam"),
}
