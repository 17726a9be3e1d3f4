# SPDX-License-Identifier: Apache-2.0
"""Further functions for the compiler tests: (public op, name, function, maker of its arguments from lengths)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgeops import ragged
from tests.peers import offsets_of

Compiled = tuple[str, str, Callable[..., Any], Callable[[list[int]], tuple[Any, ...]]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def _square(lengths: list[int], count: int) -> tuple[Tensor, ...]:
    total = sum(lengths)
    return tuple(normal(total, total, seed=i) for i in range(count))


def _log_softmax(x: Tensor, cu: Tensor) -> Tensor:
    return ragged.ragged_softmax(x, cu, log=True)


def _conv(lengths: list[int]) -> tuple[Tensor, ...]:
    return normal(sum(lengths), 5), offsets_of(lengths), normal(4, 5, 3, seed=1), normal(4, seed=2)


def _norm(lengths: list[int]) -> tuple[Tensor, ...]:
    return normal(sum(lengths), 5), offsets_of(lengths), normal(5, seed=1), normal(5, seed=2)


def more_cases() -> list[Compiled]:
    """The cases."""
    return [
        ("ragged_conv1d", "same", ragged.ragged_conv1d, _conv),
        ("ragged_conv1d", "longer", lambda *a: ragged.ragged_conv1d(*a, padding=3, dilation=2), _conv),
        ("ragged_instance_norm", "plain", ragged.ragged_instance_norm, lambda n: (normal(sum(n), 5), offsets_of(n))),
        ("ragged_instance_norm", "scaled", ragged.ragged_instance_norm, _norm),
        ("ragged_softmax", "rows", ragged.ragged_softmax, lambda n: (normal(sum(n), 5), offsets_of(n))),
        ("ragged_softmax", "vector, log", _log_softmax, lambda n: (normal(sum(n)), offsets_of(n))),
        ("trmm", "lower", ragged.trmm, lambda n: (*_square(n, 1), normal(sum(n), 3, seed=5))),
        (
            "trmm",
            "upper",
            lambda a, b: ragged.trmm(a, b, upper=True, alpha=0.5),
            lambda n: (*_square(n, 1), normal(sum(n), 3, seed=5)),
        ),
        ("tradd", "lower", ragged.tradd, lambda n: _square(n, 2)),
        ("trmul", "upper", lambda a, b: ragged.trmul(a, b, upper=True), lambda n: _square(n, 2)),
    ]
