# SPDX-License-Identifier: Apache-2.0
"""What the op contract needs to know of every op: samples, property tests, and the public op that measures it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.native.batching_samples import BATCHING
from tests.native.drift_samples import DRIFT
from tests.native.more_samples import MORE
from tests.native.offload_samples import OFFLOAD
from tests.peers import offsets_of


def is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


@dataclass(frozen=True)
class Sample:
    """Arguments of one call of an op."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def with_grad(self) -> Sample:
        """The same, with gradients wanted in all floating tensors."""

        def leaf(x: Any) -> Any:
            return x.detach().requires_grad_() if is_floating(x) else x

        return Sample(pytree.tree_map(leaf, self.args), pytree.tree_map(leaf, self.kwargs))

    def tensors(self) -> list[Tensor]:
        """Its floating tensors, those in lists too."""
        return [x for x in pytree.tree_leaves((self.args, self.kwargs)) if is_floating(x)]


@dataclass(frozen=True)
class Entry:
    """What must exist for one op.

    Args:
        samples: 2 or 3 calls; rebuilt each time, since ops may write to their arguments.
        properties: names of property tests, `file::function`.
        measured: the op whose benchmark measures it: a public one, or one that writes into tables.
    """

    samples: Callable[[], list[Sample]]
    properties: tuple[str, ...]
    measured: str


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def attention_input(lengths: list[int], heads: int = 2, kv_heads: int = 2) -> tuple[Tensor, ...]:
    total, cu = sum(lengths), offsets_of(lengths)
    return (
        normal(total, heads, 4),
        normal(total, kv_heads, 4, seed=1),
        normal(total, kv_heads, 6, seed=2),
        cu,
        cu.int(),
    )


def _public_attention() -> list[Sample]:
    bias = normal(1, 2, 4, 4, seed=3)
    return [
        Sample((*attention_input([2, 0, 4]), 4, 4)),
        Sample(
            (*attention_input([2, 0, 4]), 4, 4), {"bias": bias, "scale": 0.3, "dropout_p": 0.3, "seed": torch.tensor(5)}
        ),
        Sample((*attention_input([1, 3], 4, 2), 3, 3), {"causal": True, "window": [2, -1]}),
    ]


def _attention_fwd() -> list[Sample]:
    bias = normal(1, 2, 4, 4, seed=3)
    return [
        Sample((*attention_input([2, 0, 4]), None, 0.5, False, -1, -1)),
        Sample((*attention_input([2, 0, 4]), bias, 0.5, False, -1, -1, 0.3, torch.tensor(-(2**40)))),
        Sample((*attention_input([1, 3], 4, 2), None, 0.5, True, 2, -1)),
    ]


def _attention_bwd() -> list[Sample]:
    samples = []
    for sample in _attention_fwd():
        q, k, v, cu_q, cu_k, *rest = sample.args
        out, lse = torch.ops.edgeops._ragged_attention_fwd(*sample.args)
        grads = (normal(*out.shape, seed=4), None if rest[0] is None else normal(*lse.shape, seed=5))
        samples.append(Sample((*grads, q, k, v, out, lse, cu_q, cu_k, *rest)))
    return samples


CU = offsets_of([2, 0, 3])


def _pack() -> list[Sample]:
    strided = normal(2, 3, 2, 2).transpose(2, 3)
    return [Sample((normal(3, 4, 2), CU, 5)), Sample((strided, offsets_of([1, 3], torch.int32), 4))]


def _unpack() -> list[Sample]:
    return [Sample((normal(5, 2), CU, 4)), Sample((normal(5, 2), CU.int(), 3), {"padding_value": -1.0})]


def _unpack_kernel() -> list[Sample]:
    return [Sample((normal(5, 2), CU, 4, 0.0)), Sample((normal(5, 2), CU.int(), 3, -1.0))]


def _pool() -> list[Sample]:
    return [Sample((normal(5, 3), CU)), Sample((normal(5, 3), CU, "max")), Sample((normal(5, 3), CU, "sum"))]


def _pool_bwd() -> list[Sample]:
    x = normal(5, 3)
    outs = [torch.ops.edgeops._ragged_pool_fwd(x, CU, mode) for mode in range(3)]
    return [Sample((normal(3, 3, seed=1), x, out, CU, mode)) for mode, out in enumerate(outs)]


def _norm(kernel: bool) -> list[Sample]:
    x, residual, weight, bias, x_bias = normal(4, 6), normal(4, 6, seed=1), *(normal(6, seed=i) for i in (2, 3, 4))
    if kernel:
        return [Sample((x, b, residual, weight, bias, 1e-5)) for b in (None, x_bias)]
    return [Sample((x, residual, weight, bias)), Sample((x, residual, weight, bias, 1e-3), {"x_bias": x_bias})]


def _norm_bwd() -> list[Sample]:
    samples = []
    for sample in _norm(True):
        x, x_bias, residual, weight, _, _ = sample.args
        _, mean, rstd = torch.ops.edgeops._add_layer_norm_fwd(*sample.args)
        samples.append(Sample((normal(4, 6, seed=9), x, x_bias, residual, mean, rstd, weight)))
    return samples


def _lists(kernel: bool) -> list[Sample]:
    a = [normal(2, 3), normal(0, 4, seed=1), normal(5, 0, seed=2), normal(6, 2, seed=3).T]
    b = [normal(3, 1, seed=4), normal(4, 2, seed=5), normal(0, 2, seed=6), normal(6, 3, seed=7)]
    if not kernel:
        return [Sample((a, b)), Sample((b[:1], [x.mT for x in b[:1]]))]
    turned = [x.mT for x in a]
    return [Sample((a, b, False, False)), Sample((turned, b, True, False)), Sample((a[:1], a[:1], False, True))]


PRODUCTS = torch.tensor([(2, 1, 3), (0, 2, 4), (5, 2, 0), (2, 3, 6)])


def _packed(kernel: bool) -> list[Sample]:
    a, b = normal(18), normal(29, seed=1)
    if not kernel:
        return [Sample((a, b, PRODUCTS, 18)), Sample((a[:0], b[:0], PRODUCTS[:0]), {"total": 0})]
    return [Sample((a, b, PRODUCTS, trans, not trans, 18)) for trans in (False, True)]


def _grouped(kernel: bool) -> list[Sample]:
    ends = torch.tensor([1, 1, 4], dtype=torch.int32)
    rows, columns, w = normal(5, 2), normal(2, 5, seed=1), normal(3, 2, 4, seed=2)
    if kernel:
        return [Sample((rows, w, ends)), Sample((w.mT, columns, ends)), Sample((w, w.mT, None))]
    kinds = {"offs": ends, "bias": normal(3, 4, seed=3)}
    inner = {"offs": ends, "bias": normal(2, seed=3)}
    return [Sample((rows, w), kinds), Sample((w.mT, columns), {"offs": ends}), Sample((columns, rows), inner)]


_ATTENTION = ("test_ragged_attention.py::test_permuting_sequences_permutes_results",)
_GRADIENTS = ("test_ragged_gradients.py::test_attention",)
_PACK = ("test_ragged_pack.py::test_round_trip",)

ENTRIES: dict[str, Entry] = {
    "ragged_attention": Entry(_public_attention, _ATTENTION, "ragged_attention"),
    "ragged_attention_lse": Entry(_public_attention, _ATTENTION, "ragged_attention_lse"),
    "_ragged_attention_fwd": Entry(_attention_fwd, _ATTENTION, "ragged_attention"),
    "_ragged_attention_bwd": Entry(_attention_bwd, _GRADIENTS, "ragged_attention"),
    "ragged_pack": Entry(_pack, _PACK, "ragged_pack"),
    "_ragged_pack": Entry(_pack, _PACK, "ragged_pack"),
    "ragged_unpack": Entry(_unpack, _PACK, "ragged_unpack"),
    "_ragged_unpack": Entry(_unpack_kernel, _PACK, "ragged_unpack"),
    "ragged_pool": Entry(_pool, ("test_ragged_rows.py::test_pool",), "ragged_pool"),
    "_ragged_pool_fwd": Entry(
        lambda: [Sample((normal(5, 3), CU, mode)) for mode in range(3)],
        ("test_ragged_rows.py::test_pool",),
        "ragged_pool",
    ),
    "_ragged_pool_bwd": Entry(_pool_bwd, ("test_ragged_gradients.py::test_pool",), "ragged_pool"),
    "bias_gelu": Entry(
        lambda: [Sample((normal(4, 6), normal(6))), Sample((normal(4, 6), normal(6), "tanh"))],
        ("test_ragged_rows.py::test_bias_gelu",),
        "bias_gelu",
    ),
    "_bias_gelu_fwd": Entry(
        lambda: [Sample((normal(4, 6), normal(6), tanh)) for tanh in (False, True)],
        ("test_ragged_rows.py::test_bias_gelu",),
        "bias_gelu",
    ),
    "_bias_gelu_bwd": Entry(
        lambda: [Sample((normal(4, 6, seed=1), normal(4, 6), normal(6), tanh)) for tanh in (False, True)],
        ("test_ragged_gradients.py::test_bias_gelu",),
        "bias_gelu",
    ),
    "add_layer_norm": Entry(lambda: _norm(False), ("test_ragged_rows.py::test_add_layer_norm",), "add_layer_norm"),
    "_add_layer_norm_fwd": Entry(lambda: _norm(True), ("test_ragged_rows.py::test_add_layer_norm",), "add_layer_norm"),
    **{
        f"{prefix}{name}": Entry(functools.partial(make, prefix == "_"), (f"test_ragged_gemm.py::test_{name}",), name)
        for name, make in (("vgemm", _lists), ("vgemm_packed", _packed), ("grouped_mm", _grouped))
        for prefix in ("", "_")
    },
    "_add_layer_norm_bwd": Entry(_norm_bwd, ("test_ragged_gradients.py::test_add_layer_norm",), "add_layer_norm"),
}


def _entry(make: Callable[[], list[tuple[tuple[Any, ...], dict[str, Any]]]], place: str, measured: str) -> Entry:
    return Entry(lambda: [Sample(*call) for call in make()], (place,), measured)


ENTRIES |= {name: _entry(*parts) for name, parts in (MORE | BATCHING | OFFLOAD | DRIFT).items()}
