# SPDX-License-Identifier: Apache-2.0
"""Products of rows of tables against the float64 twin, in the interpreter, through the GPU dispatch."""

import pytest
import torch

from edgeops.batching import _reference as twin
from edgeops.batching._cuda import rows_linear_cuda
from tests.messages import refused


def rows_of(m, count):
    return torch.randint(0, count, (m,), dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, (3,)), (1, 70, (33,)), (17, 20, (8, 40)), (70, 33, (16, 16))])
@pytest.mark.parametrize("form", ["dense", "turned", "spread"])
def test_agrees_with_the_twin(form, m, n, k, dtype):
    tables = [torch.randn(9, width + 2).to(dtype)[:, 1:-1] for width in k]
    rows, bias = [rows_of(m, 9) for _ in k], torch.randn(n).to(dtype)
    weight = torch.randn(n, sum(k)).to(dtype)
    if form == "turned":
        weight = weight.T.contiguous().T
    if form == "spread":
        weight = torch.stack([weight, weight], -1)[..., 0]
    room = torch.full((m + 2, n + 3), torch.nan, dtype=dtype)
    out = room[1:-1, 1:-2]
    rows_linear_cuda(tables, rows, weight, bias if form == "dense" else None, out)
    exact = torch.empty(m, n, dtype=torch.float64)
    wide = [x.double() for x in tables]
    twin.rows_linear_reference(wide, rows, weight.double(), bias.double() if form == "dense" else None, exact)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=2 * eps, atol=1e-5 + eps)
    assert room[0].isnan().all()
    assert room[:, 0].isnan().all()


def test_rows_in_order_and_outside():
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    out = torch.empty(3, 5)
    rows_linear_cuda([x], [torch.empty(0, dtype=torch.int32)], weight, None, out)
    torch.testing.assert_close(out, x @ weight.T)
    rows_linear_cuda([x], [torch.tensor([0, 3, -1], dtype=torch.int32)], weight, None, out)
    torch.testing.assert_close(out[0], x[0] @ weight.T)
    assert bool((out[1:] == 0).all())


def test_packed_weights_and_more_tables_run_the_twin():
    x, weight, out = torch.randn(3, 4), torch.randn(5, 12), torch.empty(2, 5)
    rows = [rows_of(2, 3) for _ in range(3)]
    want = torch.cat([x[r.long()] for r in rows], 1) @ weight.T
    for w in (weight, twin.rows_linear_pack_reference([weight])):
        rows_linear_cuda([x, x, x], rows, w, None, out)
        torch.testing.assert_close(out, want)


def test_refusals():
    x, weight, out, rows = torch.randn(3, 4), torch.randn(5, 4), torch.empty(2, 5), rows_of(2, 3)
    for kind, rule, args in (
        (ValueError, "one length", ([], [], weight, None, out)),
        (ValueError, "out must be", ([x], [rows], weight, None, out.T)),
        (TypeError, r"tables\[0\] must have the dtype", ([x.half()], [rows], weight, None, out)),
        (TypeError, r"rows\[0\] must be int32", ([x], [rows.long()], weight, None, out)),
        (ValueError, r"rows\[0\] must have shape", ([x], [rows[:1]], weight, None, out)),
        (ValueError, "weight must have shape", ([x], [rows], weight[:, :3], None, out)),
        (ValueError, "bias must have shape", ([x], [rows], weight, torch.randn(4), out)),
    ):
        with refused(kind, "rows_linear", rule):
            rows_linear_cuda(*args)
