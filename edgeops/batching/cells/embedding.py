# SPDX-License-Identifier: Apache-2.0
"""Rows of an embedding as a cell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeops.batching._runtime import runtime
from edgeops.batching.cells._native_body import NativeBody, ids


class Embedding(nn.Embedding):
    """`nn.Embedding` for sessions: `look_up(id) -> row`. Constructor, parameters and `state_dict` are `nn.Embedding`'s.

    `padding_idx`, `max_norm`, `scale_grad_by_freq` and `sparse` are `nn.Embedding`'s own and not read by `look_up`.

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

    def forward(self, batch: Any, training: bool) -> None:
        weight = self.module.weight.detach()
        torch.index_select(weight, 0, ids(batch, 0, len(weight), self.name), out=batch.out(0))

    def backward(self, batch: Any, saved: None) -> Tensor:
        return batch.grad_out(0).clone()

    def finish(self, flush: Any, batches: list[Any]) -> None:
        ids, grad = torch.cat([b.numbers(0) for b, _ in batches]), torch.cat([g for _, g in batches])
        weight = self.module.weight
        flush.add_captured(weight, torch.zeros_like(weight).index_add_(0, ids, grad))
