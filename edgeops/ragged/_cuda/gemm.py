# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of the variable-size products.

Sizes of lists and packed buffers are known on the host and travel to the GPU as one small table; ends of groups stay
on the GPU, where the kernel holds them to the range that exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeops._common import describe, message
from edgeops.ragged import _reference_gemm as twin
from edgeops.ragged._cuda.paths import Path, pick, why_not_reference, why_not_triton_rows

_Row = tuple[int, ...]  # as `edgeops.triton_kernels.ragged.gemm.FIELDS` says


def _precision() -> str:
    """torch's own switch for float32 products decides; by default they are float32 throughout."""
    fast = torch.backends.cuda.matmul.fp32_precision == "tf32" and torch.version.hip is None
    return "tf32" if fast else "ieee"


def _alignment(rows: Sequence[_Row], major_a: int, major_b: int, *tensors: Tensor) -> int:
    """Elements in 16 bytes if every offset, every stride but 1 and every size is a multiple of them, otherwise 1."""
    step = 16 // tensors[0].element_size()
    if not major_a or not major_b or any(x.data_ptr() % 16 for x in tensors):
        return 1
    looked_at = (0, 1, 2, 3, 4 if major_a == 1 else 5, 6, 7 if major_b == 1 else 8, 9, 10)
    return step if all(row[i] % step == 0 for row in rows for i in looked_at) else 1


def _launch(a: Tensor, b: Tensor, c: Tensor, rows: Sequence[_Row]) -> None:
    from edgeops.triton_kernels.ragged.gemm import FIELDS, majors, vgemm

    kinds_a = {majors(row[4], row[5]) for row in rows}
    kinds_b = {majors(row[7], row[8]) for row in rows}
    major_a, major_b = (kinds.pop() if len(kinds) == 1 else 0 for kinds in (kinds_a, kinds_b))
    table = torch.tensor(rows, dtype=torch.int64).view(-1, FIELDS)
    align = _alignment(rows, major_a, major_b, a, b, c)
    vgemm(a, b, c, table, major_a=major_a, major_b=major_b, align=align, precision=_precision())


def _distance(x: Tensor, first: Tensor) -> int:
    """Elements from the first one of `first` to that of x, which may lie in another allocation."""
    return (x.data_ptr() - first.data_ptr()) // x.element_size()


def _triton_vgemm(a: Sequence[Tensor], b: Sequence[Tensor], trans_a: bool, trans_b: bool) -> list[Tensor]:
    lefts, rights = [x.mT if trans_a else x for x in a], [y.mT if trans_b else y for y in b]
    out = [x.new_empty(x.shape[0], y.shape[1]) for x, y in zip(lefts, rights)]
    rows: list[_Row] = []
    for x, y, c in zip(lefts, rights, out):
        if c.numel():
            places = _distance(x, a[0]), *x.stride(), _distance(y, b[0]), *y.stride(), _distance(c, out[0]), c.stride(0)
            rows.append((*c.shape, x.shape[1], *places))
    if rows:
        _launch(a[0], b[0], out[0], rows)
    return out


def _triton_packed(a: Tensor, b: Tensor, sizes: Tensor, trans_a: bool, trans_b: bool, total: int) -> Tensor:
    a, b, out = a.contiguous(), b.contiguous(), a.new_empty(total)
    rows: list[_Row] = []
    at_a = at_b = at_c = 0
    for m, n, k in sizes.tolist():
        if m and n:
            left, right = (1, m) if trans_a else (k, 1), (1, k) if trans_b else (n, 1)
            rows.append((m, n, k, at_a, *left, at_b, *right, at_c, n))
        at_a, at_b, at_c = at_a + m * k, at_b + k * n, at_c + m * n
    if rows:
        _launch(a, b, out, rows)
    return out


def _triton_grouped(x: Tensor, w: Tensor, offs: Tensor | None) -> Tensor:
    from edgeops.triton_kernels.ragged.gemm import grouped_mm

    return grouped_mm(x, w, None if offs is None else offs.contiguous(), _precision())


def _why_not_triton_list(a: Sequence[Tensor], *_: Any) -> Iterator[str]:
    yield from why_not_triton_rows(a[0])


def _why_not_reference_list(a: Sequence[Tensor], *_: Any) -> Iterator[str]:
    yield from why_not_reference(a[0])


def _why_not_triton_grouped(x: Tensor, w: Tensor, offs: Tensor | None) -> Iterator[str]:
    yield from why_not_triton_rows(x)
    if offs is not None and offs.shape[0] > 4095:
        yield f"takes up to 4095 groups, got {offs.shape[0]}"


VGEMM = (
    Path("triton", _why_not_triton_list, _triton_vgemm),
    Path("reference", _why_not_reference_list, twin.vgemm_reference),
)
PACKED = (
    Path("triton", why_not_triton_rows, _triton_packed),
    Path("reference", why_not_reference, twin.vgemm_packed_reference),
)
GROUPED = (
    Path("triton", _why_not_triton_grouped, _triton_grouped),
    Path("reference", why_not_reference, twin.grouped_mm_reference),
)


def vgemm_cuda(a: Sequence[Tensor], b: Sequence[Tensor], trans_a: bool, trans_b: bool) -> list[Tensor]:
    """`_vgemm` on a GPU."""
    if len(a) != len(b):
        rule = "a and b must have the same number of matrices"
        raise ValueError(message("vgemm", rule, f"{len(a)} and {len(b)}", "Pair each matrix of a with one of b."))
    first = a[0]
    for g, (x, y) in enumerate(zip(a, b)):
        got = f"{describe(x)} and {describe(y)}"
        if not x.dtype == y.dtype == first.dtype:
            rule = f"a[{g}] and b[{g}] must have the dtype of a[0], {first.dtype}"
            raise TypeError(message("vgemm", rule, got, "Cast them with .to(dtype)."))
        if not x.device == y.device == first.device:
            rule = f"a[{g}] and b[{g}] must be on {first.device}"
            raise ValueError(message("vgemm", rule, got, "Move them with .to(device)."))
        if x.dim() != 2 or y.dim() != 2 or x.shape[0 if trans_a else 1] != y.shape[1 if trans_b else 0]:
            rule = f"the columns of a[{g}] must be the rows of b[{g}]"
            raise ValueError(message("vgemm", rule, got, "Check the order of the lists."))
    result: list[Tensor] = pick("vgemm", VGEMM, a, b, trans_a, trans_b).run(a, b, trans_a, trans_b)
    return result


def vgemm_packed_cuda(a: Tensor, b: Tensor, sizes: Tensor, trans_a: bool, trans_b: bool, total: int) -> Tensor:
    """`_vgemm_packed` on a GPU; sizes are on the CPU."""
    who = "vgemm_packed"
    if a.dtype != b.dtype:
        rule = "a and b must have one dtype"
        raise TypeError(message(who, rule, f"{a.dtype} and {b.dtype}", "Cast one of them with .to(dtype)."))
    if a.device != b.device:
        rule = "a and b must be on one device"
        raise ValueError(message(who, rule, f"{a.device} and {b.device}", "Move one of them with .to(device)."))
    if sizes.dtype != torch.int64:
        raise TypeError(message(who, "sizes must be int64", describe(sizes), "Cast it with .to(torch.int64)."))
    if sizes.dim() != 2 or sizes.shape[1] != 3 or sizes.device.type != "cpu":
        rule = "sizes must have shape [G, 3], the m, n, k of each product, on the CPU"
        raise ValueError(message(who, rule, describe(sizes), "Build it with torch.tensor([(m, n, k), ...])."))
    table = sizes.tolist()
    least = min((x for row in table for x in row), default=0)
    if least < 0:
        raise ValueError(message(who, "sizes must not be negative", str(least), "Use 0 for an empty product."))
    for name, x, wanted in (
        ("a", a, sum(m * k for m, n, k in table)),
        ("b", b, sum(k * n for m, n, k in table)),
    ):
        if x.dim() != 1 or x.shape[0] != wanted:
            rule = f"{name} must have shape ({wanted},) to fit the sizes"
            raise ValueError(message(who, rule, describe(x), "Concatenate the flattened matrices."))
    if total != sum(m * n for m, n, k in table):
        rule = f"total must be the number of elements of the result, {sum(m * n for m, n, k in table)}"
        raise ValueError(message(who, rule, str(total), "Leave it out to have it computed."))
    args = (a, b, sizes, trans_a, trans_b, total)
    result: Tensor = pick(who, PACKED, *args).run(*args)
    return result


def grouped_mm_cuda(x: Tensor, w: Tensor, offs: Tensor | None) -> Tensor:
    """`_grouped_mm` on a GPU."""
    who, got = "grouped_mm", f"{describe(x)} and {describe(w)}"
    if x.dtype != w.dtype:
        raise TypeError(message(who, "x and w must have one dtype", got, "Cast one of them with .to(dtype)."))
    if x.dim() not in (2, 3) or w.dim() not in (2, 3):
        rule = "x and w must have 2 or 3 dimensions"
        raise ValueError(message(who, rule, got, "Put the groups in the first dimension, or in offs."))
    if (offs is None) != (x.dim() == 3 and w.dim() == 3):
        rule = "offs must be given where x or w has 2 dimensions, and only there"
        raise ValueError(message(who, rule, got, "Pass the end of each group in the dimension that they share."))
    if x.shape[-1] != w.shape[-2]:
        rule = "the columns of x must be the rows of w"
        raise ValueError(message(who, rule, got, "Check whether w needs .mT."))
    if offs is not None and offs.dtype not in (torch.int32, torch.int64):
        raise TypeError(message(who, "offs must be int32 or int64", describe(offs), "Cast it with .to(torch.int32)."))
    if w.device != x.device or (offs is not None and (offs.dim() != 1 or offs.device != x.device)):
        rule = f"w and offs, of shape [G], must be on {x.device}"
        got = f"{describe(w)} and {describe(offs)}"
        raise ValueError(message(who, rule, got, "Pass the end of each group: lengths.cumsum(0)."))
    counts = {t.shape[0] for t in (x, w) if t.dim() == 3} | ({offs.shape[0]} if offs is not None else set())
    if len(counts) != 1:
        rule = "x, w and offs must have one number of groups"
        raise ValueError(message(who, rule, got, "Pass one matrix and one end for each group."))
    result: Tensor = pick(who, GROUPED, x, w, offs).run(x, w, offs)
    return result


KERNELS: dict[str, Callable[..., Any]] = {
    "_vgemm": vgemm_cuda,
    "_vgemm_packed": vgemm_packed_cuda,
    "_grouped_mm": grouped_mm_cuda,
}
