# SPDX-License-Identifier: Apache-2.0
"""Products of rows of tables, their weight gradient and sums of rows: accuracy, bits, places, refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgeops.batching._ops import TWINS
from tests.budget import assert_within_budget
from tests.messages import refused

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
OPS = torch.ops.edgeops


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def picked(m: int, rows: int, seed: int = 0) -> Tensor:
    return torch.randint(0, rows, (m,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def gathered(tables: list[Tensor], rows: list[Tensor]) -> Tensor:
    return torch.cat([t.index_select(0, r) for t, r in zip(tables, rows)], 1)


@pytest.fixture(params=["native", "twin"])
def linear(request: pytest.FixtureRequest) -> Callable[..., None]:
    return OPS._rows_linear.default if request.param == "native" else TWINS["_rows_linear"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, (16,)), (7, 40, (33, 20)), (150, 90, (400, 400)), (300, 33, (5,))])
def test_accuracy(linear: Callable[..., None], m: int, n: int, k: tuple[int, ...], dtype: torch.dtype) -> None:
    tables, rows = (
        [normal(50, width, dtype=dtype, seed=width) for width in k],
        [picked(m, 50, i) for i in range(len(k))],
    )
    weight, bias = normal(n, sum(k), dtype=dtype, seed=7), normal(n, dtype=dtype, seed=8)
    out = torch.empty(m, n, dtype=dtype)
    linear(tables, rows, weight, bias, out)
    x = gathered(tables, rows)
    exact = x.double() @ weight.double().T + bias.double()
    wide = torch.promote_types(dtype, torch.float32)
    peer = (x.to(wide) @ weight.to(wide).T + bias.to(wide)).to(dtype)
    assert_within_budget("rows_linear", out, peer, exact, 2.0, torch.finfo(wide).eps * sum(k) ** 0.5)


def test_weights_of_any_stride_pack_alike() -> None:
    weight = normal(70, 30)
    expected = OPS._rows_linear_pack([weight])
    assert expected.shape == (5, 30, 16)
    for same in (
        weight.T.contiguous().T,
        torch.stack([weight, weight], -1)[..., 1],
        torch.cat([weight] * 2, 1)[:, :30],
    ):
        assert torch.equal(OPS._rows_linear_pack([same]), expected)
    assert torch.equal(OPS._rows_linear_pack([weight.T.double().T]), TWINS["_rows_linear_pack"]([weight.double()]))
    assert OPS._rows_linear_pack([weight[:0]]).shape == (0, 30, 16)


def test_bits_do_not_depend_on_packing_batch_or_threads(threads: Callable[[int], None]) -> None:
    tables, rows = [normal(900, 300), normal(900, 200, seed=1)], [picked(700, 900, i) for i in range(2)]
    weight, bias = normal(520, 500), normal(520, seed=1)
    expected = torch.empty(700, 520)
    OPS._rows_linear(tables, rows, weight, bias, expected)
    packed = OPS._rows_linear_pack([weight])
    for count in (2, 3):
        threads(count)
        out = torch.empty_like(expected)
        OPS._rows_linear(tables, rows, packed, bias, out)
        assert torch.equal(out, expected)
    for m in (1, 2, 3, 5, 8, 30):
        out = torch.empty(m, 520)
        OPS._rows_linear(tables, [r[100 : 100 + m] for r in rows], packed, bias, out)
        assert torch.equal(out, expected[100 : 100 + m])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weight_gradient(threads: Callable[[int], None], dtype: torch.dtype) -> None:
    tables = [normal(200, 100, dtype=dtype), normal(200, 60, dtype=dtype, seed=1)]
    rows, grad = [picked(1000, 200, i) for i in range(2)], normal(1000, 170, dtype=dtype)
    weight, bias = torch.zeros(170, 160, dtype=dtype), torch.zeros(170, dtype=dtype)
    OPS._rows_linear_wgrad(grad, tables, rows, weight, bias)
    x = gathered(tables, rows)
    assert_within_budget("dweight", weight, grad.T @ x, grad.double().T @ x.double(), 2.0)
    assert_within_budget("dbias", bias, grad.sum(0), grad.double().sum(0), 3.0)
    for count in (2, 3):
        threads(count)
        again, again_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        OPS._rows_linear_wgrad(grad, tables, rows, again, again_bias)
        assert torch.equal(again, weight)
        assert torch.equal(again_bias, bias)


def test_weight_gradient_of_nothing_adds_nothing() -> None:
    weight, bias = normal(6, 4), normal(6)
    before = weight.clone(), bias.clone()
    OPS._rows_linear_wgrad(torch.empty(0, 6), [normal(3, 4)], [picked(0, 3)], weight, bias)
    assert torch.equal(weight, before[0])
    assert torch.equal(bias, before[1])
    OPS._rows_linear_wgrad(normal(2, 6), [normal(3, 0)], [picked(2, 3)], torch.empty(6, 0), bias)
    torch.testing.assert_close(bias, before[1] + normal(2, 6).sum(0))


def test_operands_of_any_place() -> None:
    """Segments of tables, expanded rows, every second row number, rows in order."""
    table, weight, rows = normal(9, 4), normal(5, 4, seed=1), picked(6, 9)
    want = table[rows.long()] @ weight.T
    room = torch.full((8, 9), torch.nan)
    spaced = torch.stack([rows, rows - 100], 1).flatten()[::2]
    OPS._rows_linear([torch.cat([table, table], 1)[:, :4]], [spaced], weight, None, room[1:7, 2:7])
    torch.testing.assert_close(room[1:7, 2:7], want)
    assert room.isnan().sum() == 8 * 9 - 30
    out = torch.empty(6, 5)
    OPS._rows_linear([table[:1].expand(9, 4)], [rows], weight, None, out)
    torch.testing.assert_close(out, (table[:1] @ weight.T).expand(6, 5))
    OPS._rows_linear([table[:6]], [rows[:0]], weight, None, out)
    torch.testing.assert_close(out, table[:6] @ weight.T)
    OPS._rows_linear([table, table[:, :0]], [rows, rows], weight, None, out)
    torch.testing.assert_close(out, want)
    OPS._rows_linear([table[:, :0]], [rows], weight[:, :0], normal(5), out)
    assert torch.equal(out, normal(5).expand(6, 5))


def test_nan_stays_in_its_row() -> None:
    table, rows = normal(9, 4), torch.tensor([0, 3, 3, 8], dtype=torch.int32)
    table[0] = torch.nan
    out = torch.empty(4, 40)
    OPS._rows_linear([table], [rows], normal(40, 4), None, out)
    assert out.isnan().any(1).tolist() == [True, False, False, False]


def test_refusals_write_nothing() -> None:
    x, weight, rows = normal(3, 4), normal(5, 4), picked(2, 3)
    out = torch.full((2, 5), 7.0)
    cases: list[tuple[type[Exception], str, tuple[object, ...]]] = [
        (ValueError, "one length", ([], [], weight, None, out)),
        (ValueError, r"rows\[0\] must hold row numbers from 0 to 2", ([x], [rows + 2], weight, None, out)),
        (ValueError, r"rows\[0\] must hold row numbers from 0 to 2", ([x], [rows - 3], weight, None, out)),
        (TypeError, r"rows\[0\] must be int32", ([x], [rows.long()], weight, None, out)),
        (ValueError, r"rows\[0\] must have shape", ([x], [rows[:1]], weight, None, out)),
        (ValueError, r"rows\[0\] may be empty only", ([x], [rows[:0]], weight, None, out)),
        (TypeError, r"tables\[0\] must have dtype", ([x.double()], [rows], weight, None, out)),
        (ValueError, r"tables\[0\] must have shape", ([x[0]], [rows], weight, None, out)),
        (ValueError, r"tables\[0\] must have dense rows", ([normal(4, 3).T], [rows], weight, None, out)),
        (TypeError, "weight must have the dtype", ([x], [rows], weight.double(), None, out)),
        (ValueError, "weight must have shape", ([x], [rows], weight[:, :3], None, out)),
        (ValueError, "a packed weight must be dense", ([x], [rows], torch.zeros(2, 4, 16), None, out)),
        (TypeError, "bias must have the dtype", ([x], [rows], weight, normal(5).double(), out)),
        (ValueError, "bias must have shape", ([x], [rows], weight, normal(4), out)),
        (ValueError, "out must have rows that do not overlap", ([x], [rows], weight, None, normal(5).expand(2, 5))),
        (TypeError, "out must be float32", ([x], [rows], weight, None, torch.zeros(2, 5, dtype=torch.int32))),
    ]
    from edgeops._native import translate

    for kind, rule, args in cases:
        with refused(kind, "rows_linear", rule):
            try:
                OPS._rows_linear(*args)
            except RuntimeError as error:
                raise translate(error) from None
    assert bool((out == 7).all())
    sums: list[tuple[type[Exception], str, tuple[object, ...]]] = [
        (ValueError, "index must hold row numbers", (x, torch.tensor([0, 1, 2]), rows + 3, normal(2, 4))),
        (ValueError, "starts must never decrease", (x, torch.tensor([0, 2, 1]), rows, normal(2, 4))),
        (ValueError, "starts must never decrease", (x, torch.tensor([0, 2, 3]), rows, normal(2, 4))),
        (ValueError, "starts must have shape", (x, torch.tensor([0, 2]), rows, normal(2, 4))),
        (TypeError, "starts must be int64", (x, torch.tensor([0, 1, 2]).int(), rows, normal(2, 4))),
        (TypeError, "index must be int32", (x, torch.tensor([0, 1, 2]), rows.long(), normal(2, 4))),
        (ValueError, "out must have shape", (x, torch.tensor([0, 1, 2]), rows, normal(2, 5))),
    ]
    for kind, rule, args in sums:
        with refused(kind, "rows_sum", rule):
            try:
                OPS._rows_sum(*args)
            except RuntimeError as error:
                raise translate(error) from None


def test_sums_are_those_of_one_addition_after_the_other(threads: Callable[[int], None]) -> None:
    src, counts = normal(300, 100), picked(2000, 6).long()
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    index, out = picked(int(starts[-1]), 300, 3), normal(2000, 100, seed=2)
    want = out.clone()
    for i in range(0, 2000, 97):
        for j in index[int(starts[i]) : int(starts[i + 1])].tolist():
            want[i] += src[j]
    threads(2)
    OPS._rows_sum(src, starts, index, out, True)
    assert torch.equal(out[::97], want[::97])
