# SPDX-License-Identifier: Apache-2.0
"""A sequence's numbers are its own: bitwise the same alone, in any batch and order, with any threads (C4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeops.ragged import add_layer_norm, bias_gelu, ragged_attention, ragged_pool
from tests.peers import offsets_of

SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (5, 3)},
    "wide window": {"window": (520, 1)},
}
LENGTHS = [3, 0, 1, 130, 17, 16, 0, 40, 6, 530, 18, 12]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows_of(lengths: list[int], order: list[int]) -> Tensor:
    """Packed rows of the sequences of `order`, one after another."""
    starts = offsets_of(lengths).tolist()
    parts = [torch.arange(starts[b], starts[b + 1]) for b in order]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


class Batch:
    """Self-attention of grouped heads over LENGTHS, and over any choice of its sequences."""

    def __init__(self, dtype: torch.dtype, dim: int, dim_v: int, **options: Any) -> None:
        total = sum(LENGTHS)
        self.q, self.k, self.v = normal(total, 2, dim), normal(total, 1, dim, seed=1), normal(total, 1, dim_v, seed=2)
        self.q, self.k, self.v = (x.to(dtype) for x in (self.q, self.k, self.v))
        self.options = options

    def run(self, order: list[int]) -> tuple[Tensor, Tensor]:
        rows = rows_of(LENGTHS, order)
        cu = offsets_of([LENGTHS[b] for b in order])
        return ragged_attention(
            self.q[rows], self.k[rows], self.v[rows], cu, cu, 530, 530, return_lse=True, **self.options
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_alone_in_a_batch_in_any_order_on_any_threads(
    name: str, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    batch = Batch(dtype, 8, 16, **SETTINGS[name])
    everyone = list(range(len(LENGTHS)))
    generator = torch.Generator().manual_seed(3)
    expected = batch.run(everyone)
    orders = [everyone, everyone[::-1], torch.randperm(12, generator=generator).tolist(), [9, 3], [3, 7, 7, 3]]
    for count in (1, 2):
        threads(count)
        for order in [*orders, *([b] for b in everyone)]:
            rows = rows_of(LENGTHS, order)
            for got, want in zip(batch.run(order), expected):
                assert torch.equal(got, want[rows]), f"{name}, {count} threads, order {order}"


@pytest.mark.parametrize("dim", [1, 20, 64, 80])
def test_head_sizes(dim: int, threads: Callable[[int], None]) -> None:
    batch = Batch(torch.float32, dim, dim + 3, causal=True)
    expected = batch.run(list(range(12)))
    threads(2)
    for order in ([9], [3, 9], [4], [10, 0, 2]):
        for got, want in zip(batch.run(order), expected):
            assert torch.equal(got, want[rows_of(LENGTHS, order)])


def test_bias_of_each_sequence_goes_with_it(threads: Callable[[int], None]) -> None:
    lengths = [5, 0, 40, 600]
    bias = normal(4, 2, 600, 600)
    q, k, v = (normal(645, 2, 8, seed=i) for i in range(3))
    cu = offsets_of(lengths)
    expected = ragged_attention(q, k, v, cu, cu, 600, 600, bias=bias)
    for count in (1, 2):
        threads(count)
        for order in ([0], [2], [3], [3, 2, 1, 0]):
            rows = rows_of(lengths, order)
            cu = offsets_of([lengths[b] for b in order])
            got = ragged_attention(q[rows], k[rows], v[rows], cu, cu, 600, 600, bias=bias[order])
            assert torch.equal(got, expected[rows])


def test_heads_are_independent() -> None:
    """A head's numbers do not depend on how many heads the call has."""
    cu = offsets_of([3, 130, 17])
    q, k, v = normal(150, 6, 16), normal(150, 3, 16, seed=1), normal(150, 3, 16, seed=2)
    together = ragged_attention(q, k, v, cu, cu, 130, 130)
    for h in range(6):
        kv = slice(h // 2, h // 2 + 1)
        alone = ragged_attention(q[:, h : h + 1], k[:, kv], v[:, kv], cu, cu, 130, 130)
        assert torch.equal(together[:, h : h + 1], alone)


def test_queries_are_independent() -> None:
    """Cross attention: a query's numbers do not depend on the other queries of its sequence."""
    q, k, v = normal(45, 2, 16), normal(600, 2, 16, seed=1), normal(600, 2, 16, seed=2)
    cu_k = offsets_of([600])
    together = ragged_attention(q, k, v, offsets_of([45]), cu_k, 45, 600)
    for rows in (slice(0, 1), slice(7, 9), slice(44, 45), slice(10, 45)):
        n = rows.stop - rows.start
        assert torch.equal(ragged_attention(q[rows], k, v, offsets_of([n]), cu_k, n, 600), together[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_row_ops_do_not_depend_on_batch_or_threads(dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    width = 77
    x, residual = normal(sum(LENGTHS), width, dtype=dtype), normal(sum(LENGTHS), width, dtype=dtype, seed=1)
    vectors = [normal(width, dtype=dtype, seed=i) for i in (2, 3, 4)]

    def run(order: list[int]) -> list[Tensor]:
        rows = rows_of(LENGTHS, order)
        cu = offsets_of([LENGTHS[b] for b in order])
        rowwise = [
            bias_gelu(x[rows], vectors[0]),
            bias_gelu(x[rows], vectors[0], "tanh"),
            add_layer_norm(x[rows], residual[rows], vectors[0], vectors[1], x_bias=vectors[2]),
        ]
        return [*rowwise, *(ragged_pool(x[rows], cu, how) for how in ("sum", "mean", "max"))]

    expected = run(list(range(12)))
    for count in (1, 2):
        threads(count)
        for order in ([9], [11, 3, 9], list(range(12))[::-1]):
            rows = rows_of(LENGTHS, order)
            for i, (got, want) in enumerate(zip(run(order), expected)):
                assert torch.equal(got, want[rows if i < 3 else order]), f"result {i}, {count} threads, order {order}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_gradients_alone_in_a_batch_in_any_order_on_any_threads(
    name: str, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    batch = Batch(dtype, 32, 20, **SETTINGS[name])
    grad = normal(sum(LENGTHS), 2, 20, dtype=dtype, seed=7)

    def run(order: list[int]) -> list[Tensor]:
        rows, cu = rows_of(LENGTHS, order), offsets_of([LENGTHS[b] for b in order])
        leaves = [x[rows].requires_grad_() for x in (batch.q, batch.k, batch.v)]
        out = ragged_attention(*leaves, cu, cu, 530, 530, **batch.options)
        return list(torch.autograd.grad(out, leaves, grad[rows]))

    threads(1)
    whole = run(list(range(len(LENGTHS))))
    threads(2)
    for one, other in zip(whole, run(list(range(len(LENGTHS)))), strict=True):
        assert torch.equal(one, other)
    order = [7, 3, 9, 1, 0, 10]
    rows = rows_of(LENGTHS, order)
    for one, other in zip(whole, run(order), strict=True):
        assert torch.equal(one[rows], other)
    for b in (4, 9):
        rows = rows_of(LENGTHS, [b])
        for one, other in zip(whole, run([b]), strict=True):
            assert torch.equal(one[rows], other)


def test_nan_in_one_sequence_stays_there() -> None:
    lengths = [5, 40, 3]
    cu, rows = offsets_of(lengths), rows_of(lengths, [1])
    q = normal(48, 2, 16)
    clean = q.clone()
    q[rows] = torch.nan
    results = []
    for x in (q, clean):
        leaves = [x.clone().requires_grad_() for _ in range(3)]
        out = ragged_attention(*leaves, cu, cu, 40, 40)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))])
    others = rows_of(lengths, [0, 2])
    for bad, good in zip(*results, strict=True):
        assert torch.equal(bad[others], good[others])
        assert bad[rows].isnan().all()
