# SPDX-License-Identifier: Apache-2.0
"""Variable-size and grouped products against the float64 twins, in the interpreter, through the GPU dispatch."""

import pytest
import torch

from edgeops.ragged import _reference_gemm as twin
from edgeops.ragged._cuda import gemm
from tests.messages import refused

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
FORMS = pytest.mark.parametrize("form", ["rows", "columns", "inner", "batch"])
SIZES = [(3, 4, 5), (0, 2, 3), (70, 35, 40), (7, 9, 0), (1, 1, 1), (33, 2, 17)]
ALIGNED = [(8, 16, 8), (40, 72, 64), (64, 8, 16)]


def close(got, exact, depth):
    """Within the rounding of float32 sums over `depth` terms, and one of the dtype."""
    eps = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=2 * eps, atol=1e-6 * (depth + 1) ** 0.5 + eps)


@FLOATS
@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("sizes", [SIZES, ALIGNED, SIZES[:1], SIZES[1:2]], ids=["mixed", "aligned", "one", "nothing"])
def test_lists_and_packed(sizes, trans_a, trans_b, dtype):
    a = [torch.randn((k, m) if trans_a else (m, k), dtype=dtype) for m, n, k in sizes]
    b = [torch.randn((n, k) if trans_b else (k, n), dtype=dtype) for m, n, k in sizes]
    got = gemm.vgemm_cuda(a, b, trans_a, trans_b)
    exact = twin.vgemm_reference([x.double() for x in a], [y.double() for y in b], trans_a, trans_b)
    for c, want, (_, _, k) in zip(got, exact, sizes, strict=True):
        close(c, want, k)
    flat = torch.cat([c.flatten() for c in got])
    args = torch.cat([x.flatten() for x in a]), torch.cat([y.flatten() for y in b]), torch.tensor(sizes)
    assert torch.equal(gemm.vgemm_packed_cuda(*args, trans_a, trans_b, flat.shape[0]), flat)


def test_any_stride():
    a, b = torch.randn(20, 9), torch.randn(9, 11)
    expected = gemm.vgemm_cuda([a], [b], False, False)[0]
    for x in (a.T.contiguous().T, torch.stack([a, a], -1)[..., 1], torch.cat([a, a], 1)[:, 9:]):
        for y in (b.T.contiguous().T, torch.stack([b, b], -1)[..., 0]):
            assert torch.equal(gemm.vgemm_cuda([x, a], [y, b], False, False)[0], expected)
    row = a[:1].expand(20, 9)
    torch.testing.assert_close(gemm.vgemm_cuda([row], [b], False, False)[0], expected[:1].expand(20, 11))


@FLOATS
@FORMS
@pytest.mark.parametrize("lengths", [[3, 0, 70, 1], [0, 0], [40], []], ids=str)
def test_grouped(form, lengths, dtype):
    total, count = sum(lengths) + 3, len(lengths)
    ends = None if form == "batch" else torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    shapes = {
        "rows": ((total, 9), (count, 9, 40)),
        "columns": ((count, 40, 9), (9, total)),
        "inner": ((20, total), (total, 40)),
        "batch": ((count, 20, 9), (count, 9, 40)),
    }
    x, w = (torch.randn(shape, dtype=dtype) for shape in shapes[form])
    exact = twin.grouped_mm_reference(x.double(), w.double(), ends)
    close(gemm.grouped_mm_cuda(x, w, ends), exact, total)
    x, w = x.mT.contiguous().mT, w.mT.contiguous().mT
    close(gemm.grouped_mm_cuda(x, w, ends), exact, total)


def test_what_lies_behind_the_groups_is_never_read():
    x, w, ends = torch.randn(50, 9), torch.randn(2, 9, 5), torch.tensor([3, 41])
    x[41:] = torch.nan
    out = gemm.grouped_mm_cuda(x, w, ends)
    assert out.isfinite().all()
    assert not out[41:].any()


@FORMS
def test_wrong_ends_stay_inside(form):
    if form == "batch":
        pytest.skip("has no ends")
    shapes = {"rows": ((9, 4), (3, 4, 5)), "columns": ((3, 4, 5), (5, 9)), "inner": ((4, 9), (9, 5))}
    x, w = (torch.randn(shape) for shape in shapes[form])
    for ends in ([-5, 4, 100], [9, 3, 9], [2**31 - 1] * 3):
        assert gemm.grouped_mm_cuda(x, w, torch.tensor(ends, dtype=torch.int32)).isfinite().any()


def test_refuses():
    a, b = [torch.zeros(2, 3)], [torch.zeros(3, 4)]
    with refused(ValueError, "vgemm", r"the columns of a\[0\] must be the rows of b\[0\]"):
        gemm.vgemm_cuda(a, a, False, False)
    with refused(TypeError, "vgemm", r"must have the dtype of a\[0\]"):
        gemm.vgemm_cuda(a, [b[0].half()], False, False)
    with refused(ValueError, "vgemm", "the same number of matrices", "1 and 2"):
        gemm.vgemm_cuda(a, b * 2, False, False)
    sizes = torch.tensor([[2, 4, 3]])
    flat = a[0].flatten(), b[0].flatten()
    for change, kind, rule in (
        ({0: a[0]}, ValueError, r"a must have shape \(6,\)"),
        ({1: flat[1].half()}, TypeError, "one dtype"),
        ({2: sizes.int()}, TypeError, "sizes must be int64"),
        ({2: sizes[0]}, ValueError, r"sizes must have shape \[G, 3\]"),
        ({2: -sizes}, ValueError, "must not be negative"),
        ({5: 7}, ValueError, "total must be the number of elements of the result, 8"),
    ):
        args = dict(enumerate((*flat, sizes, False, False, 8))) | change
        with refused(kind, "vgemm_packed", rule):
            gemm.vgemm_packed_cuda(*args.values())
    x, w, ends = torch.zeros(5, 2), torch.zeros(3, 2, 4), torch.tensor([1, 1, 4])
    for change, kind, rule in (
        ({1: w.half()}, TypeError, "one dtype"),
        ({0: x[0]}, ValueError, "2 or 3 dimensions"),
        ({2: None}, ValueError, "offs must be given where"),
        ({0: x.T}, ValueError, "the columns of x must be the rows of w"),
        ({2: ends.float()}, TypeError, "offs must be int32 or int64"),
        ({2: ends[None]}, ValueError, r"of shape \[G\]"),
        ({1: w[:2]}, ValueError, "one number of groups"),
    ):
        args = dict(enumerate((x, w, ends))) | change
        with refused(kind, "grouped_mm", rule):
            gemm.grouped_mm_cuda(*args.values())
