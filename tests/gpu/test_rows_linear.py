# SPDX-License-Identifier: Apache-2.0
"""Products of rows of tables on a GPU, and the other steps of batching, which run their twins there."""

import pytest
import torch

from edgeops.batching import _reference as twin

OPS = torch.ops.edgeops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("m", [1, 16, 70, 1000])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_rows_linear(m, packed, dtype):
    tables = [torch.randn(500, width, device="cuda").to(dtype) for width in (256, 200)]
    rows = [torch.randint(0, 500, (m,), device="cuda", dtype=torch.int32) for _ in tables]
    weight, bias = torch.randn(330, 456, device="cuda").to(dtype), torch.randn(330, device="cuda").to(dtype)
    out = torch.empty(m, 340, device="cuda", dtype=dtype)[:, 5:335]
    OPS._rows_linear(tables, rows, OPS._rows_linear_pack([weight]) if packed else weight, bias, out)
    exact = torch.empty(m, 330, device="cuda", dtype=torch.float64)
    twin.rows_linear_reference([t.double() for t in tables], rows, weight.double(), bias.double(), exact)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=2 * eps, atol=1e-3 if dtype == torch.float32 else 60 * eps)


def test_cells_run_their_twins():
    gates, table = torch.randn(6, 40, device="cuda"), torch.randn(9, 8, device="cuda")
    rows = torch.tensor([0, 8, 1, 1, 2, 3], device="cuda", dtype=torch.int32)
    h, c = torch.empty(2, 6, 8, device="cuda")
    want = [x.cpu() for x in (gates, table, rows, table, rows, h, c)]
    OPS._treelstm_cell_fwd(gates, table, rows, table, rows, h, c)
    OPS._treelstm_cell_fwd(*want)
    torch.testing.assert_close((h.cpu(), c.cpu()), tuple(want[-2:]))
