# SPDX-License-Identifier: Apache-2.0
"""Rows of an embedding as a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from edgeops.batching._program import Program
from edgeops.batching._runtime import runtime
from edgeops.batching.cell import CellOwner
from edgeops.batching.cells._native_body import NativeBody


class Embedding(CellOwner, nn.Embedding):
    """`nn.Embedding` for sessions: `look_up(id) -> row`. Constructor, parameters and `state_dict` are `nn.Embedding`'s.

    `padding_idx`, `max_norm`, `scale_grad_by_freq` and `sparse` are `nn.Embedding`'s own and not read by `look_up`.

    >>> import torch
    >>> from edgeops import batching
    >>> words = Embedding(10, 4)
    >>> with batching.session() as s:
    ...     x = words.look_up(3)
    >>> torch.equal(x.tensor(), words.weight[3])
    True
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.look_up = runtime().Cell(_LookUp(self))

    def rows(self, ids: Tensor) -> Tensor:
        """`look_up` of integers `[m]`: plain PyTorch."""
        return F.embedding(ids, self.weight)


class _LookUp(NativeBody):
    def __init__(self, module: Embedding) -> None:
        super().__init__(module, module.rows, "Embedding.look_up")

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        p, width = program, self.module.embedding_dim
        p.copy(p.result(0), p.named(0, "weight", width))
        grads = p.d_kept(width)
        p.copy(grads, p.d_result(0), section=1)
        p.add(p.named(0, "weight", width, grad=True), grads, section=2)
