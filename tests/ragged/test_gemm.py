# SPDX-License-Identifier: Apache-2.0
"""Variable-size and grouped products: accuracy, gradients, places in memory, bad input."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeops.ragged import _reference_gemm as twin
from edgeops.ragged import grouped_mm, vgemm, vgemm_packed
from tests.budget import assert_within_budget
from tests.messages import refused
from tests.triton.guard import guarded_address

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SIZES = [(3, 4, 5), (0, 2, 3), (7, 9, 0), (2, 0, 4), (1, 1, 1), (20, 33, 40), (6, 8, 300), (13, 3, 700), (130, 70, 90)]
SMALL = [(2, 3, 4), (0, 2, 3), (2, 2, 0), (1, 1, 1)]
ENDS = torch.tensor([1, 1, 4], dtype=torch.int32)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lists(sizes: list[tuple[int, int, int]], dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    a = [normal(m, k, dtype=dtype, seed=g) for g, (m, n, k) in enumerate(sizes)]
    return a, [normal(k, n, dtype=dtype, seed=100 + g) for g, (m, n, k) in enumerate(sizes)]


def packed(sizes: list[tuple[int, int, int]], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    a, b = lists(sizes, dtype)
    return torch.cat([x.flatten() for x in a]), torch.cat([x.flatten() for x in b]), torch.tensor(sizes)


def grouped_inputs(form: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, w, offs of one of the four forms; one row or column lies behind the last group."""
    shapes = {"rows": ((5, 2), (3, 2, 4)), "columns": ((3, 4, 2), (2, 5)), "inner": ((4, 5), (5, 2))}
    x, w = shapes.get(form, ((3, 4, 2), (3, 2, 5)))
    return normal(*x, dtype=dtype), normal(*w, dtype=dtype, seed=1), None if form == "batch" else ENDS


FORMS = pytest.mark.parametrize("form", ["rows", "columns", "inner", "batch"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", [vgemm, lambda a, b: twin.vgemm_reference(a, b, False, False)], ids=["native", "twin"])
def test_forward(call: Callable[..., list[Tensor]], dtype: torch.dtype) -> None:
    a, b = lists(SIZES, dtype)
    for c, x, y in zip(call(a, b), a, b):
        assert c.shape == (x.shape[0], y.shape[1])
        assert c.is_contiguous()
        # sums of hundreds of terms: torch adds them in another order
        noise = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * 2 * x.shape[1] ** 0.5
        assert_within_budget("vgemm", c, x @ y, x.double() @ y.double(), 2.0, noise)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
def test_transposed_storage(dtype: torch.dtype, trans_a: bool, trans_b: bool) -> None:
    """What backward is made of, against the twin in float64; the packed form has the bits of the list form."""
    a, b = lists(SIZES, dtype)
    a = [x.T.contiguous() for x in a] if trans_a else a
    b = [x.T.contiguous() for x in b] if trans_b else b
    got = torch.ops.edgeops._vgemm(a, b, trans_a, trans_b)
    exact = twin.vgemm_reference([x.double() for x in a], [x.double() for x in b], trans_a, trans_b)
    plain = twin.vgemm_reference(a, b, trans_a, trans_b)
    for c, want, peer, (_, _, k) in zip(got, exact, plain, SIZES):
        noise = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * 2 * k**0.5
        assert_within_budget("vgemm", c, peer, want, 2.0, noise)
    flat = torch.cat([c.flatten() for c in got])
    args = (torch.cat([x.flatten() for x in a]), torch.cat([x.flatten() for x in b]), torch.tensor(SIZES))
    assert torch.equal(torch.ops.edgeops._vgemm_packed(*args, trans_a, trans_b, flat.shape[0]), flat)


def test_derivatives_of_lists() -> None:
    a, b = lists(SMALL, torch.float64)
    leaves = [x.requires_grad_() for x in (*a, *b)]

    def call(*both: Tensor) -> tuple[Tensor, ...]:
        return tuple(vgemm(both[: len(SMALL)], both[len(SMALL) :]))

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


def test_derivatives_of_the_packed_form() -> None:
    a, b, sizes = packed(SMALL, torch.float64)
    leaves = (a.requires_grad_(), b.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: vgemm_packed(a, b, sizes), leaves)
    assert torch.autograd.gradgradcheck(lambda a, b: vgemm_packed(a, b, sizes), leaves)


@FORMS
@pytest.mark.parametrize("bias", [None, 1, 2])
def test_derivatives_of_groups(form: str, bias: int | None) -> None:
    if bias is not None and form == "columns":
        pytest.skip("groups of columns take no bias")
    x, w, offs = grouped_inputs(form, torch.float64)
    add = None if bias is None else normal(*(3, w.shape[-1])[2 - bias :], dtype=torch.float64, seed=2)
    leaves = [t.requires_grad_() for t in (x, w, add) if t is not None]

    def call(x: Tensor, w: Tensor, add: Tensor | None = None) -> Tensor:
        return grouped_mm(x, w, offs=offs, bias=add)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@FORMS
def test_grouped_is_torchs(form: str, dtype: torch.dtype) -> None:
    """Values of `F.grouped_mm`, which wants aligned strides and leaves what lies behind the groups undefined."""
    ends = None if form == "batch" else torch.tensor([8, 8, 32], dtype=torch.int32)
    shapes = {"rows": ((32, 16), (3, 16, 8)), "columns": ((3, 8, 16), (16, 32)), "inner": ((8, 32), (32, 16))}
    left, right = shapes.get(form, ((3, 8, 16), (3, 16, 8)))
    x, w = normal(*left, dtype=dtype), normal(*right, dtype=dtype, seed=1)
    exact = twin.grouped_mm_reference(x.double(), w.double(), ends)
    noise = 1e-6 if dtype == torch.float32 else 0.0
    assert_within_budget("grouped_mm", grouped_mm(x, w, offs=ends), F.grouped_mm(x, w, offs=ends), exact, 2.0, noise)


@FORMS
def test_expanded_gradients(form: str) -> None:
    """`sum().backward()` hands in a gradient with strides of 0, where torch's own function fails."""
    x, w, offs = grouped_inputs(form)
    leaves = x.requires_grad_(), w.requires_grad_()
    got = torch.autograd.grad(grouped_mm(x, w, offs=offs).sum(), leaves)
    want = torch.autograd.grad(twin.grouped_mm_reference(x, w, offs).sum(), leaves)
    for g, expected in zip(got, want):
        torch.testing.assert_close(g, expected)
    a, b = lists(SMALL)
    leaves = tuple(t.requires_grad_() for t in (*a, *b))
    got = torch.autograd.grad(sum(c.sum() for c in vgemm(a, b)), leaves)
    want = torch.autograd.grad(sum((p @ q).sum() for p, q in zip(a, b)), leaves)
    for g, expected in zip(got, want):
        torch.testing.assert_close(g, expected)


def test_gradients_of_some_only() -> None:
    """Products without a gradient, and operands that want none, cost nothing and get none."""
    a, b = lists(SIZES[:3] + SIZES[5:6])
    a[3].requires_grad_()
    b[0].requires_grad_()
    out = vgemm(a, b)
    assert torch.autograd.grad(out[0].sum(), [a[3], b[0]], allow_unused=True, retain_graph=True)[0] is None
    (grad,) = torch.autograd.grad(out[3].sum(), [a[3]])
    torch.testing.assert_close(grad, torch.ones_like(out[3]) @ b[3].T)


def test_operands_in_any_place() -> None:
    a, b = lists([(20, 33, 40)])
    expected = vgemm(a, b)[0]
    room = torch.full((22, 45), torch.nan)
    room[1:21, 2:42] = a[0]
    places = [room[1:21, 2:42], a[0].T.contiguous().T, a[0].repeat_interleave(2, 1)[:, ::2], a[0].flip(0).flip(0)]
    for x in places:
        assert torch.equal(vgemm([x], b)[0], expected)
    for x in (torch.ones(1, 1).expand(20, 40), a[0][:1].expand(20, 40), a[0][:, :1].expand(20, 40)):
        assert torch.equal(vgemm([x], b)[0], vgemm([x.contiguous()], b)[0])
    for y in (b[0].T.contiguous().T, torch.ones(1).expand(40, 33), b[0][:1].expand(40, 33)):
        assert torch.equal(vgemm(a, [y])[0], vgemm(a, [y.contiguous()])[0])
    assert torch.equal(vgemm([a[0]] * 3, [b[0]] * 3)[2], expected)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_any_number_of_threads_gives_the_same_bits(threads: Callable[[int], None], count: int) -> None:
    a, b = lists([(500, 300, 300), (3, 3, 3), (200, 700, 40), (64, 1, 900)])
    expected = vgemm(a, b)
    threads(count)
    for got, want in zip(vgemm(a, b), expected):
        assert torch.equal(got, want)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_bad_value_stays_in_its_row_and_group(poison: float) -> None:
    sizes = [(7, 5, 6), (9, 20, 30), (4, 4, 4)]
    a, b = lists(sizes)
    flat_b, table = torch.cat([y.flatten() for y in b]), torch.tensor(sizes)
    clean = vgemm_packed(torch.cat([x.flatten() for x in a]), flat_b, table)
    a[1][3, 7] = poison
    out = vgemm_packed(torch.cat([x.flatten() for x in a]), flat_b, table)
    hit = torch.zeros(len(out), dtype=torch.bool)
    hit[35 + 3 * 20 : 35 + 4 * 20] = True
    assert torch.equal(out[~hit], clean[~hit])
    assert not out[hit].isfinite().any()


def test_padding_behind_the_groups_is_never_read() -> None:
    x, w, offs = grouped_inputs("rows")
    x[4] = torch.nan
    out = grouped_mm(x, w, offs=offs, bias=torch.ones(4))
    assert out.isfinite().all()
    assert not out[4].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_long_sums_are_as_good_as_torchs(dtype: torch.dtype) -> None:
    a, b = lists([(3, 5, 100_000)], dtype)
    wide = a[0].double() @ b[0].double()
    exact = (a[0].double()[:, :, None] * b[0].double()).sum(1) if dtype == torch.float64 else wide
    noise = 4 * torch.finfo(dtype).eps * 100_000**0.5
    assert_within_budget("vgemm", vgemm(a, b)[0], a[0] @ b[0], exact, 2.0, noise)


def test_nothing() -> None:
    assert vgemm([], []) == []
    empty = torch.zeros(0)
    assert vgemm_packed(empty, empty, torch.zeros(0, 3, dtype=torch.int64)).shape == (0,)
    assert grouped_mm(torch.zeros(0, 2), torch.zeros(0, 2, 3), offs=torch.zeros(0, dtype=torch.int32)).shape == (0, 3)
    none = torch.zeros(3, dtype=torch.int32)
    assert not grouped_mm(torch.ones(2, 5), torch.ones(5, 3), offs=none).any()


@pytest.mark.parametrize("at_end", [True, False], ids=["page behind", "page before"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_never_reads_beside_its_operands(at_end: bool, dtype: torch.dtype) -> None:
    """Operands lie against pages that nobody may touch; one element too far kills the process."""

    def fenced(x: Tensor) -> Tensor:
        size = x.numel() * x.element_size()
        memory = (ctypes.c_char * size).from_address(guarded_address(size, at_end=at_end))
        return torch.frombuffer(memory, dtype=dtype).view(x.shape).copy_(x)

    sizes = [(1, 1, 1), (5, 3, 2), (7, 9, 8), (13, 17, 31), (3, 40, 257), (60, 23, 130), (50, 130, 400), (8, 16, 16)]
    a, b = lists(sizes, dtype)
    expected = vgemm(a, b)
    for trans_a, trans_b in ((False, False), (True, False), (False, True), (True, True)):
        left = [fenced(x.T.contiguous() if trans_a else x) for x in a]
        right = [fenced(y.T.contiguous() if trans_b else y) for y in b]
        for got, want in zip(torch.ops.edgeops._vgemm(left, right, trans_a, trans_b), expected):
            assert torch.equal(got, want)


ROWS, EXPERTS = torch.zeros(5, 2), torch.zeros(3, 2, 4)
BAD_LISTS: list[tuple[Any, Any, type[Exception], str, str]] = [
    (ROWS, [ROWS], TypeError, "a must be a list or tuple of matrices", "float32 tensor"),
    ([None], [ROWS], TypeError, r"a\[0\] must be a tensor", "None"),
    ([ROWS], [ROWS, ROWS], ValueError, "the same number of matrices", "1 and 2"),
    ([ROWS], [ROWS], ValueError, r"the columns of a\[0\] must be the rows of b\[0\]", r"\(5, 2\) and shape \(5, 2\)"),
    ([ROWS, ROWS], [ROWS.T, EXPERTS], ValueError, r"a\[1\] and b\[1\] must be matrices", r"\(3, 2, 4\)"),
    ([ROWS], [ROWS.T.double()], TypeError, r"a\[0\] and b\[0\] must have one dtype", "Float and Double"),
    ([ROWS.long()], [ROWS.T.long()], TypeError, r"a\[0\] must be float32, float64, float16 or bfloat16", "Long"),
]


@pytest.mark.parametrize(("a", "b", "kind", "rule", "got"), BAD_LISTS)
def test_vgemm_refuses(a: Any, b: Any, kind: type[Exception], rule: str, got: str) -> None:
    with refused(kind, "vgemm", rule, got):
        vgemm(a, b)


@pytest.mark.parametrize(
    ("change", "kind", "rule", "got"),
    [
        ({"a": torch.zeros(7)}, ValueError, r"a must have shape \(8,\) to fit the sizes", r"\(7,\)"),
        ({"a": torch.zeros(2, 4)}, ValueError, r"a must have shape \(8,\)", r"\(2, 4\)"),
        ({"b": torch.zeros(12).half()}, TypeError, "a and b must have one dtype", "Float and Half"),
        ({"sizes": torch.tensor([2, 3, 4])}, ValueError, r"sizes must be an int64 tensor \[G, 3\]", r"\(3,\)"),
        ({"sizes": torch.tensor([[2, 3, 4]]).int()}, TypeError, "sizes must be int64", "Int"),
        ({"sizes": [[2, 3, 4]]}, TypeError, "sizes must be an int64 tensor", "list"),
        ({"sizes": torch.tensor([[2, 3, -4]]), "total": 6}, ValueError, "must not be negative", "-4 for product 0"),
        ({"sizes": torch.tensor([[2**40, 3, 2**40]]), "total": 6}, ValueError, r"fewer than 2\^63 elements", "x"),
        ({"total": 7}, ValueError, "total must be the number of elements of the result, 6", "7"),
    ],
)
def test_vgemm_packed_refuses(change: dict[str, Any], kind: type[Exception], rule: str, got: str) -> None:
    args = {"a": torch.zeros(8), "b": torch.zeros(12), "sizes": torch.tensor([[2, 3, 4]])} | change
    with refused(kind, "vgemm_packed", rule, got):
        vgemm_packed(**args)


@pytest.mark.parametrize(
    ("x", "w", "offs", "bias", "kind", "rule", "got"),
    [
        (ROWS, EXPERTS, None, None, ValueError, "offs must be given where", "without offs"),
        (EXPERTS.mT, EXPERTS, ENDS, None, ValueError, "offs must be given where", "with offs"),
        (ROWS[0], EXPERTS, ENDS, None, ValueError, "must have 2 or 3 dimensions", r"\(2,\)"),
        (ROWS.T, EXPERTS, ENDS, None, ValueError, "the columns of x must be the rows of w", r"\(2, 5\)"),
        (ROWS, EXPERTS[:2], ENDS, None, ValueError, "one number of groups", r"\(2, 2, 4\)"),
        (EXPERTS.mT, EXPERTS[:2], None, None, ValueError, "one number of groups", r"\(3, 4, 2\)"),
        (ROWS, EXPERTS.double(), ENDS, None, TypeError, "x and w must have one dtype", "Float and Double"),
        (ROWS, EXPERTS, ENDS.float(), None, TypeError, "offs must be int32 or int64", "Float"),
        (ROWS, EXPERTS, ENDS[None], None, ValueError, "", r"\(1, 3\)"),
        (ROWS, EXPERTS, ENDS.flip(0), None, ValueError, "never decrease", "1 after 4 at position 1"),
        (ROWS, EXPERTS, ENDS - 2, None, ValueError, "begin at 0 or more", "-1 after 0"),
        (ROWS, EXPERTS, ENDS + 2, None, ValueError, "must end at or before 5", "6"),
        (ROWS, EXPERTS, ENDS, torch.zeros(3), ValueError, r"bias must have shape \(4,\) or \(3, 4\)", r"\(3,\)"),
        (EXPERTS.mT, ROWS.T, ENDS, torch.zeros(5), ValueError, "bias needs groups with the same columns", "w is 2-D"),
    ],
)
def test_grouped_mm_refuses(
    x: Tensor, w: Tensor, offs: Tensor, bias: Tensor, kind: type[Exception], rule: str, got: str
) -> None:
    with refused(kind, "grouped_mm", rule, got):
        grouped_mm(x, w, offs=offs, bias=bias)
