# SPDX-License-Identifier: Apache-2.0
"""A layer of several rows as a cell: a product, a bias, an activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeops._common.errors import describe, message
from edgeops.batching._program import Program
from edgeops.batching._runtime import runtime
from edgeops.batching.cell import LIST, NUMBER, CellOwner
from edgeops.batching.cells._native_body import NativeBody, width_of

ACTIVATIONS = ("tanh", "sigmoid", "relu")


class Dense(CellOwner, nn.Linear):
    """`nn.Linear` for sessions: `mix(x, y, ...) -> activation(W [x; y; ...] + b)` of rows side by side.

    Parameters and `state_dict` are `nn.Linear`'s.

    Args:
        in_features: the widths of all rows together.
        out_features, bias, device, dtype: as `nn.Linear`.
        activation: `"tanh"`, `"sigmoid"`, `"relu"`, or `None`.

    Raises:
        ValueError: no such activation.

    >>> import torch
    >>> from edgeops import batching
    >>> layer = Dense(5, 4, "tanh")
    >>> x, y = torch.ones(2), torch.zeros(3)
    >>> with batching.session() as s:
    ...     mixed = layer.mix(x, y)
    >>> torch.allclose(mixed.tensor(), layer(torch.cat([x, y])))
    True
    """

    def __init__(self, in_features: int, out_features: int, activation: str | None = None, **options: Any) -> None:
        if activation is not None and activation not in ACTIVATIONS:
            rule = f"activation must be one of {', '.join(ACTIVATIONS)}, or None"
            raise ValueError(message("batching.cells.Dense", rule, describe(activation), "Pick one of them."))
        super().__init__(in_features, out_features, **options)
        self.activation = activation
        self.mix = runtime().Cell(_Mix(self))

    def forward(self, x: Tensor) -> Tensor:
        """`mix` of rows `[..., in_features]` that stand side by side already: plain PyTorch."""
        y = super().forward(x)
        return y if self.activation is None else getattr(torch, self.activation)(y)

    def mix_rows(self, *rows: Tensor) -> Tensor:
        """`mix` on rows `[m, width]` each: plain PyTorch."""
        mixed: Tensor = self(torch.cat(rows, 1))
        return mixed

    def extra_repr(self) -> str:
        """As `nn.Linear`, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation}"


class _Mix(NativeBody):
    pure = False  # takes no integers, which equal calls are found by

    def __init__(self, module: Dense) -> None:
        super().__init__(module, module.mix_rows, "Dense.mix")

    def infer(self, operands: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        who, wanted = f"batching cell {self.name}", self.module.in_features
        if not operands or any(kind in (NUMBER, LIST) for kind, _ in operands):
            rule, advice = "operands must be rows", "Give values or tensors; look integers up in an Embedding."
            raise TypeError(message(who, rule, f"{len(operands)} operands, some of another kind", advice))
        found = sum(width_of(operand) for operand in operands)
        if found != wanted:
            rule = f"rows must be {wanted} wide together"
            raise ValueError(message(who, rule, str(found), "Check in_features and the operands."))
        return super().infer(operands)

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        p, width, activation = program, self.module.out_features, self.module.activation
        rows = [p.operand(slot, width_of(operand)) for slot, operand in enumerate(operands)]
        y, dy, grads = p.result(0), p.d_result(0), p.d_kept(width)
        if activation is None:
            p.copy(grads, dy, section=1)
        else:
            p.cell(1, f"{activation}_bwd", width, y, dy, grads)
        product = p.linear(y, grads, {"weight": rows}, ["bias"])
        if activation is not None:
            p.cell(0, f"{activation}_fwd", width, y)
        for slot, row in enumerate(rows):
            p.backprop(p.d_operand(slot), row, [product])
