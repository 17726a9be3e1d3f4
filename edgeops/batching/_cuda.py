# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of the batching ops and their registration; the other ops run their twins there.

Row numbers are not read back from the GPU: one outside its table reads as a row of zeros. Nothing here imports triton
before a call needs it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops._common import describe, message
from edgeops.batching import _reference as twin

WHO = "rows_linear"
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def precision() -> str:
    """torch's own switch for float32 products decides; by default they are float32 throughout."""
    fast = torch.backends.cuda.matmul.fp32_precision == "tf32" and torch.version.hip is None
    return "tf32" if fast else "ieee"


def _triton_serves(x: Tensor) -> bool:
    """Whether triton is there, knows the dtype and compiles for the GPU of x."""
    if importlib.util.find_spec("triton") is None or x.dtype not in TRITON_DTYPES:
        return False
    return not x.is_cuda or torch.version.hip is not None or torch.cuda.get_device_capability(x.device) >= (7, 0)


def _check(tables: Sequence[Tensor], rows: Sequence[Tensor], weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Shapes, dtypes and devices of a call; raises errors in four parts."""
    if len(tables) != len(rows) or not tables:
        rule = "tables and rows must be lists of one length, not empty"
        raise ValueError(message(WHO, rule, f"{len(tables)} and {len(rows)}", "Pass a row list for each table."))
    if out.dim() != 2 or (out.numel() and out.stride(1) != 1 and out.shape[1] > 1):
        raise ValueError(
            message(WHO, "out must be [m, N] with dense rows", describe(out), "Pass a segment of a table.")
        )
    m, n = out.shape
    for i, (table, each) in enumerate(zip(tables, rows)):
        if table.dtype != out.dtype or table.device != out.device:
            rule = f"tables[{i}] must have the dtype and device of out"
            raise TypeError(message(WHO, rule, describe(table), "Cast or move one of them."))
        if table.dim() != 2 or (table.numel() and table.stride(1) != 1 and table.shape[1] > 1):
            rule = f"tables[{i}] must be [R, K] with dense rows"
            raise ValueError(message(WHO, rule, describe(table), "Call .contiguous() on it."))
        if each.dtype != torch.int32 or each.dim() != 1 or each.device != out.device:
            rule = f"rows[{i}] must be int32 [m] on the device of out"
            raise TypeError(message(WHO, rule, describe(each), "Cast it with .to(torch.int32)."))
        if each.numel() not in (0, m) or (each.numel() == 0 and m and table.shape[0] != m):
            rule = f"rows[{i}] must have shape ({m},), or (0,) for all rows of a table that has {m}"
            raise ValueError(message(WHO, rule, describe(each), "Pass one row number for each row of the result."))
    k = sum(table.shape[1] for table in tables)
    packed = weight.dim() == 3 and weight.shape[1] == k and weight.shape[0] * weight.shape[2] >= n
    if not packed and weight.shape != (n, k):
        rule = f"weight must have shape ({n}, {k}), or be packed"
        raise ValueError(message(WHO, rule, describe(weight), "Check the order of the tables and the width of out."))
    if bias is not None and (bias.shape != (n,) or bias.dtype != out.dtype or bias.device != out.device):
        rule = f"bias must have shape ({n},) and the dtype and device of out"
        raise ValueError(message(WHO, rule, describe(bias), "Pass one value a column."))


def rows_linear_cuda(
    tables: Sequence[Tensor], rows: Sequence[Tensor], weight: Tensor, bias: Tensor | None, out: Tensor
) -> None:
    """`_rows_linear` on a GPU: one Triton launch for one or two tables, otherwise the twin. Weights need no packing."""
    _check(tables, rows, weight, bias, out)
    if weight.dim() == 3 or len(tables) > 2 or weight.dtype != out.dtype or not _triton_serves(out):
        twin.rows_linear_reference(tables, rows, weight, bias, out)
        return
    from edgeops.triton_kernels.batching.rows_linear import rows_linear

    lists = [each.contiguous() for each in rows]
    rows_linear(list(tables), lists, weight, None if bias is None else bias.contiguous(), out, precision())


KERNELS: dict[str, Callable[..., Any]] = {"_rows_linear": rows_linear_cuda}


def register_cuda(library: torch.library.Library) -> list[str]:
    """Register the GPU kernels above; returns the names of the ops registered here."""
    for name, run in KERNELS.items():
        library.impl(name, run, "CUDA")
    return list(KERNELS)
