# SPDX-License-Identifier: Apache-2.0
"""Samples of further ops for the contract: op -> (maker of calls, property test, op that measures it)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.peers import offsets_of

Call = tuple[tuple[Any, ...], dict[str, Any]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _trmm() -> list[Call]:
    l, b = normal(7, 7), normal(7, 3, seed=1)  # noqa: E741
    return [((l, b), {}), ((l, b), {"upper": True, "alpha": 0.5})]


def _trmm_fwd() -> list[Call]:
    l, b = normal(7, 7), normal(7, 3, seed=1)  # noqa: E741
    return [((l, b, False, False, 1.0), {}), ((l, b, True, False, 0.5), {}), ((l, b, True, True, 2.0), {})]


def _trmm_bwd_l() -> list[Call]:
    grad, b = normal(7, 3), normal(7, 3, seed=1)
    return [((grad, b, False, 1.0), {}), ((grad, b, True, 0.5), {})]


def _tri_public() -> list[Call]:
    x, y = normal(5, 5), normal(5, 5, seed=1)
    return [((x, y), {}), ((x, y), {"upper": True})]


def _tri_binary() -> list[Call]:
    x, y = normal(5, 5), normal(5, 5, seed=1)
    return [((x, y, False, False), {}), ((x, y, True, True), {})]


_CU = offsets_of([2, 0, 5])


def _softmax() -> list[Call]:
    return [((normal(7, 3), _CU), {}), ((normal(7, 40), _CU.int()), {"log": True})]


def _softmax_fwd() -> list[Call]:
    return [((normal(7, 3), _CU, False), {}), ((normal(7, 40), _CU, True), {})]


def _softmax_bwd() -> list[Call]:
    fwd = torch.ops.edgeops._ragged_softmax_fwd
    return [
        ((normal(7, 3, seed=1), fwd(normal(7, 3), _CU, False), _CU, False), {}),
        ((normal(7, 40, seed=1), fwd(normal(7, 40), _CU, True), _CU, True), {}),
    ]


def _conv() -> list[Call]:
    x, weight, bias = normal(7, 4), normal(6, 2, 3, seed=1), normal(6, seed=2)
    return [
        ((x, _CU, weight, bias), {"pad_left": 1, "pad_right": 1, "groups": 2}),
        ((x, _CU.int(), normal(3, 4, 2)), {"pad_left": 3, "dilation": 2}),
    ]


def _conv_fwd() -> list[Call]:
    x, weight, bias = normal(7, 4), normal(6, 2, 3, seed=1), normal(6, seed=2)
    return [((x, _CU, weight, bias, 1, 1, 1, 2), {}), ((x, _CU, normal(3, 4, 2), None, 3, 0, 2, 1), {})]


def _conv_bwd_weight() -> list[Call]:
    x = normal(7, 4)
    return [((normal(7, 6, seed=1), x, _CU, 3, 1, 1, 1, 2), {}), ((normal(10, 3), x, _CU, 2, 3, 0, 2, 1), {})]


def _norm() -> list[Call]:
    x, weight, bias = normal(7, 3), normal(3, seed=1), normal(3, seed=2)
    return [((x, _CU, weight, bias), {}), ((x, _CU.int()), {"eps": 0.1})]


def _norm_fwd() -> list[Call]:
    x, weight, bias = normal(7, 3), normal(3, seed=1), normal(3, seed=2)
    return [((x, _CU, weight, bias, 1e-3), {}), ((x, _CU, None, None, 0.1), {})]


def _norm_bwd() -> list[Call]:
    calls: list[Call] = []
    for (x, cu, weight, bias, eps), _ in _norm_fwd():
        _, mean, rstd = torch.ops.edgeops._ragged_instance_norm_fwd(x, cu, weight, bias, eps)
        calls.append(((normal(7, 3, seed=5), x, cu, mean, rstd, weight), {}))
    return calls


_NORM = "test_ragged_norm.py"
_TRI = "test_ragged_triangular.py"
MORE: dict[str, tuple[Callable[[], list[Call]], str, str]] = {
    "ragged_conv1d": (_conv, "test_ragged_conv.py::test_conv1d", "ragged_conv1d"),
    "_ragged_conv1d_fwd": (_conv_fwd, "test_ragged_conv.py::test_conv1d", "ragged_conv1d"),
    "_ragged_conv1d_bwd_weight": (_conv_bwd_weight, "test_ragged_conv.py::test_conv1d_gradients", "ragged_conv1d"),
    "ragged_instance_norm": (_norm, f"{_NORM}::test_instance_norm", "ragged_instance_norm"),
    "_ragged_instance_norm_fwd": (_norm_fwd, f"{_NORM}::test_instance_norm", "ragged_instance_norm"),
    "_ragged_instance_norm_bwd": (_norm_bwd, f"{_NORM}::test_instance_norm_gradients", "ragged_instance_norm"),
    "ragged_softmax": (_softmax, "test_ragged_softmax.py::test_softmax", "ragged_softmax"),
    "_ragged_softmax_fwd": (_softmax_fwd, "test_ragged_softmax.py::test_softmax", "ragged_softmax"),
    "_ragged_softmax_bwd": (_softmax_bwd, "test_ragged_softmax.py::test_softmax_gradients", "ragged_softmax"),
    "trmm": (_trmm, f"{_TRI}::test_trmm", "trmm"),
    "_trmm_fwd": (_trmm_fwd, f"{_TRI}::test_trmm", "trmm"),
    "_trmm_bwd_l": (_trmm_bwd_l, f"{_TRI}::test_trmm_gradients", "trmm"),
    "tradd": (_tri_public, f"{_TRI}::test_elementwise", "tradd"),
    "trmul": (_tri_public, f"{_TRI}::test_elementwise", "trmul"),
    "_tri_binary": (_tri_binary, f"{_TRI}::test_elementwise", "tradd"),
}
