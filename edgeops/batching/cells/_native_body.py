# SPDX-License-Identifier: Apache-2.0
"""What bodies on native kernels share: products with rows of tables, and their gradients, one product a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeops._common.errors import message
from edgeops.batching._classes import value_class
from edgeops.batching._execute import ALL
from edgeops.batching.cell import NUMBER, Body

_ops = torch.ops.edgeops
Rows = tuple[Tensor, Tensor]  # a table, and which of its rows; none means all


class NativeBody(Body):
    """A body of kernels; `run` is its readable twin, used outside of sessions and for unusual dtypes."""

    def __init__(self, module: nn.Module, run: Callable[..., Any], name: str) -> None:
        self.module: Any = module
        self.name = name
        self._run = run

    def parameters(self) -> list[Tensor]:
        return list(self.module.parameters())

    def run(self, *rows: Any) -> Any:
        return self._run(*rows)

    def infer(self, operands: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        dtype = next(self.module.parameters()).dtype
        for slot, (kind, number) in enumerate(operands):
            if kind != NUMBER and value_class(number).dtype != dtype:
                rule = f"operands must have the parameters' dtype {dtype}"
                got = f"{value_class(number).dtype} at {slot}"
                raise TypeError(message(f"batching cell {self.name}", rule, got, "Cast the operand or the module."))
        return super().infer(operands)


def ids(batch: Any, slot: int, limit: int, who: str) -> Tensor:
    """An integer operand that names rows of a weight, `int64 [m]`; checked."""
    given: Tensor = batch.numbers(slot)
    if given.numel():
        low, high = (int(x) for x in torch.aminmax(given))
        if low < 0 or high >= limit:
            rule, got = f"ids must lie in 0..{limit - 1}", str(low if low < 0 else high)
            raise ValueError(message(f"batching cell {who}", rule, got, "Check num_embeddings and the vocabulary."))
    return given


def packed(weight: Tensor, flush: Any) -> Tensor:
    """A weight in the kernels' own order, made once a flush; GPUs take it as it is."""
    if weight.device.type != "cpu":
        return weight
    found: Tensor = flush.once(("packed", id(weight)), lambda: _ops._rows_linear_pack.default(weight))
    return found


def product(flush: Any, parts: Sequence[Rows], weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """`out = concat(rows of the parts) @ weight.T + bias`; out may be some columns of a wider tensor."""
    tables, rows = zip(*parts, strict=True)
    _ops._rows_linear.default(list(tables), list(rows), packed(weight, flush), bias, out)


def joined(parts: Sequence[Rows]) -> Rows:
    """Operands of several batches as one, which read the same table or segments of one table."""
    if len(parts) == 1:
        return parts[0]
    if all(rows.numel() and table is parts[0][0] for table, rows in parts):
        return parts[0][0], torch.cat([rows for _, rows in parts])
    return torch.cat([table if not rows.numel() else table.index_select(0, rows) for table, rows in parts]), ALL


def weight_grad(grad: Tensor, parts: Sequence[Rows], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Any]:
    """Gradients of a product's weight and bias over all rows at once."""
    dweight = torch.zeros_like(weight)
    dbias = None if bias is None else torch.zeros_like(bias)
    tables, rows = zip(*parts, strict=True)
    _ops._rows_linear_wgrad.default(grad, list(tables), list(rows), dweight, dbias)
    return dweight, dbias
