# SPDX-License-Identifier: Apache-2.0
"""Rules of the variable-size products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops.ragged import _reference_gemm as twin
from edgeops.ragged.gemm import grouped_mm, vgemm, vgemm_packed

PUBLIC: dict[str, Callable[..., Any]] = {"vgemm": vgemm, "vgemm_packed": vgemm_packed, "grouped_mm": grouped_mm}
TWINS: dict[str, Callable[..., Any]] = {
    "_vgemm": twin.vgemm_reference,
    "_vgemm_packed": twin.vgemm_packed_reference,
    "_grouped_mm": twin.grouped_mm_reference,
}


def _vgemm_fake(a: Sequence[Tensor], b: Sequence[Tensor], trans_a: bool, trans_b: bool) -> list[Tensor]:
    torch._check(len(a) == len(b), lambda: "vgemm: a and b must have the same number of matrices")
    results = []
    for x, y in zip(a, b):
        torch._check(x.dim() == 2 and y.dim() == 2, lambda: "vgemm: a and b must hold matrices")
        torch._check(
            x.shape[0 if trans_a else 1] == y.shape[1 if trans_b else 0],
            lambda: "vgemm: the columns of a[g] must be the rows of b[g]",
        )
        results.append(x.new_empty(x.shape[1 if trans_a else 0], y.shape[0 if trans_b else 1]))
    return results


def _vgemm_vmap(info: Any, in_dims: Sequence[Any], a: Sequence[Tensor], b: Sequence[Tensor], *flags: bool) -> Any:
    """A loop of calls, as `loop_vmap`, over lists."""

    def take(list_: Sequence[Tensor], dims: Sequence[int | None], i: int) -> list[Tensor]:
        return [x if d is None else x.select(d, i) for x, d in zip(list_, dims)]

    op = torch.ops.edgeops._vgemm
    calls = [op(take(a, in_dims[0], i), take(b, in_dims[1], i), *flags) for i in range(info.batch_size)]
    return [torch.stack(parts) for parts in zip(*calls)], [0] * len(a)


def _grouped_fake(x: Tensor, w: Tensor, offs: Tensor | None) -> Tensor:
    torch._check(x.dtype == w.dtype, lambda: "grouped_mm: x and w must have one dtype")
    torch._check(
        (offs is None) == (x.dim() == 3 and w.dim() == 3), lambda: "grouped_mm: offs must be given where x or w is 2-D"
    )
    torch._check(x.shape[-1] == w.shape[-2], lambda: "grouped_mm: the columns of x must be the rows of w")
    if x.dim() != w.dim():
        return x.new_empty(x.shape[-2], w.shape[-1])
    groups = x.shape[0] if offs is None else offs.shape[0]
    return x.new_empty(groups, x.shape[-2], w.shape[-1])


FAKES: dict[str, Callable[..., Any]] = {
    "_vgemm": _vgemm_fake,
    "_vgemm_packed": lambda a, b, sizes, trans_a, trans_b, total: a.new_empty(total),
    "_grouped_mm": _grouped_fake,
}
VMAPS: dict[str, Callable[..., Any]] = {"_vgemm": _vgemm_vmap}
