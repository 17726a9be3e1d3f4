# SPDX-License-Identifier: Apache-2.0
"""Variable-size and grouped products on a GPU, through the public functions."""

import pytest
import torch
import torch.nn.functional as F

from edgeops.ragged import _reference_gemm as twin
from edgeops.ragged import grouped_mm, vgemm, vgemm_packed
from tests.budget import assert_within_budget

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
SIZES = {
    "odd": [(3, 4, 5), (0, 2, 3), (170, 35, 400), (7, 9, 0), (1, 1, 1), (33, 2, 1700)],
    "aligned": [(8, 16, 8), (400, 72, 640), (64, 1024, 16), (256, 256, 256)],
    "tiny": [(4 + g % 28, 4 + g % 13, 4 + g % 17) for g in range(256)],
}
FORMS = pytest.mark.parametrize("form", ["rows", "columns", "inner", "batch"])


def lists(sizes, dtype):
    a = [torch.randn(m, k, device="cuda", dtype=dtype) for m, n, k in sizes]
    return a, [torch.randn(k, n, device="cuda", dtype=dtype) for m, n, k in sizes]


def assert_close(got, peer, exact, depth):
    noise = 1e-6 * (depth + 1) ** 0.5
    assert_within_budget("product", got.detach().cpu(), peer.detach().cpu(), exact.detach().cpu(), noise=noise)


@FLOATS
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_lists_and_packed(sizes, dtype):
    a, b = lists(sizes, dtype)
    out = vgemm(a, b)
    for c, x, y in zip(out, a, b, strict=True):
        assert_close(c, x @ y, x.double() @ y.double(), x.shape[1])
    flat_a, flat_b = (torch.cat([x.flatten() for x in side]) for side in (a, b))
    got = vgemm_packed(flat_a, flat_b, torch.tensor(sizes))
    exact = torch.cat([(x.double() @ y.double()).flatten() for x, y in zip(a, b)])
    assert_close(got, torch.cat([(x @ y).flatten() for x, y in zip(a, b)]), exact, max(k for *_, k in sizes))


@FLOATS
def test_gradients_of_lists(dtype):
    a, b = lists(SIZES["odd"], dtype)
    leaves = [x.requires_grad_() for x in (*a, *b)]
    got = torch.autograd.grad(sum(c.sum() for c in vgemm(a, b)), leaves)
    same = torch.autograd.grad(sum((x @ y).sum() for x, y in zip(a, b)), leaves)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    pairs = zip(wide[: len(a)], wide[len(a) :])
    exact = torch.autograd.grad(sum((x @ y).sum() for x, y in pairs), wide)
    for g, s, e in zip(got, same, exact):
        assert_close(g, s, e, 400)


@FLOATS
@FORMS
@pytest.mark.parametrize("lengths", [[300, 0, 1000, 1], [0, 0], [8, 16, 512, 8]], ids=str)
def test_groups(form, lengths, dtype):
    total, count = sum(lengths) + 9, len(lengths)
    ends = None if form == "batch" else torch.tensor(lengths, device="cuda").cumsum(0).int()
    shapes = {
        "rows": ((total, 64), (count, 64, 200)),
        "columns": ((count, 200, 64), (64, total)),
        "inner": ((100, total), (total, 200)),
        "batch": ((count, 100, 64), (count, 64, 200)),
    }
    x, w = (torch.randn(s, device="cuda", dtype=dtype, requires_grad=True) for s in shapes[form])
    wide = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    exact, same = twin.grouped_mm_reference(*wide, ends), twin.grouped_mm_reference(x, w, ends)
    out = grouped_mm(x, w, offs=ends)
    assert_close(out, same, exact, total)
    for g, s, e in zip(*(torch.autograd.grad(y.sum(), t) for y, t in ((out, (x, w)), (same, (x, w)), (exact, wide)))):
        assert_close(g, s, e, total)


def test_groups_are_torchs():
    if torch.cuda.get_device_capability() < (8, 0) or torch.version.hip:
        pytest.skip("F.grouped_mm needs compute capability 8.0")
    x = torch.randn(512, 256, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(4, 256, 128, device="cuda", dtype=torch.bfloat16)
    ends = torch.tensor([8, 8, 256, 512], device="cuda", dtype=torch.int32)
    exact = twin.grouped_mm_reference(x.double(), w.double(), ends)
    assert_close(grouped_mm(x, w, offs=ends), F.grouped_mm(x, w, offs=ends), exact, 256)


def test_groups_do_not_wait_for_the_gpu(no_sync):
    x, w = torch.randn(50, 8, device="cuda"), torch.randn(3, 8, 5, device="cuda")
    ends, bias = torch.tensor([3, 3, 41], device="cuda", dtype=torch.int32), torch.randn(3, 5, device="cuda")
    grouped_mm(x, w, offs=ends, bias=bias)
    with no_sync:
        grouped_mm(x, w, offs=ends, bias=bias)
