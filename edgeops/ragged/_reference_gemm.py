# SPDX-License-Identifier: Apache-2.0
"""The readable twins of the variable-size products: plain PyTorch, one product at a time. They are the specification.

CoRa (MLSys 2022), section 5: vgemm. Half precision is computed in float32 and rounded once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def _product(a: Tensor, b: Tensor) -> Tensor:
    dtype = torch.promote_types(a.dtype, torch.float32)
    return (a.to(dtype) @ b.to(dtype)).to(a.dtype)


def vgemm_reference(a: Sequence[Tensor], b: Sequence[Tensor], trans_a: bool, trans_b: bool) -> list[Tensor]:
    """`a[g] @ b[g]` for every g, each side transposed first where asked."""
    return [_product(x.mT if trans_a else x, y.mT if trans_b else y) for x, y in zip(a, b, strict=True)]


def vgemm_packed_reference(a: Tensor, b: Tensor, sizes: Tensor, trans_a: bool, trans_b: bool, total: int) -> Tensor:
    """The same for matrices flattened one after another; `sizes` holds (m, n, k) of each product.

    A transposed side is stored as `[k, m]` or `[n, k]`. The result is flat too, `total` elements.
    """
    rows = [[int(x) for x in row] for row in sizes.tolist()]
    lefts = a.split([m * k for m, n, k in rows]) if rows else ()
    rights = b.split([k * n for m, n, k in rows]) if rows else ()
    results = [a.new_empty(0)]
    for (m, n, k), x, y in zip(rows, lefts, rights):
        left = x.reshape(k, m).mT if trans_a else x.reshape(m, k)
        right = y.reshape(n, k).mT if trans_b else y.reshape(k, n)
        results.append(_product(left, right).flatten())
    return torch.cat(results)


def grouped_mm_reference(x: Tensor, w: Tensor, offs: Tensor | None) -> Tensor:
    """`torch.nn.functional.grouped_mm`: products of groups, each a matrix of a 3-D side or a slice of a 2-D one.

    `offs` holds the end of each slice: of rows of a 2-D x, of columns of a 2-D w, of the inner dimension where both
    are 2-D. Rows or columns of the result behind the last end are 0.
    """
    if offs is None:
        return _product(x, w)
    ends = [0, *(int(e) for e in offs.tolist())]
    slices = [slice(first, end) for first, end in itertools.pairwise(ends)]
    if x.dim() == 2 and w.dim() == 2:
        products = [_product(x[:, part], w[part]) for part in slices]
        return torch.stack(products) if products else x.new_empty(0, x.shape[0], w.shape[1])
    if x.dim() == 2:
        out = x.new_zeros(x.shape[0], w.shape[2])
        for g, part in enumerate(slices):
            out[part] = _product(x[part], w[g])
    else:
        out = x.new_zeros(x.shape[1], w.shape[1])
        for g, part in enumerate(slices):
            out[:, part] = _product(x[g], w[:, part])
    return out
