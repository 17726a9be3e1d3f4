# SPDX-License-Identifier: Apache-2.0
"""Scores of classes and their cross entropy as cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from edgeops._common.errors import message
from edgeops.batching._classes import value_class
from edgeops.batching._program import Program
from edgeops.batching._runtime import runtime
from edgeops.batching.cell import LIST, NUMBER, CellOwner
from edgeops.batching.cells._native_body import NativeBody


class Classifier(CellOwner, nn.Linear):
    """`nn.Linear` for sessions, with the usual loss: `scores(x) -> [out_features]` and `loss(x, label) -> []`.

    `loss` is `F.cross_entropy(scores(x), label)` of an integer label from 0 to `out_features - 1`, in one kernel with
    its backward; it has no weights of classes and no index to ignore. Constructor, parameters and `state_dict` are
    `nn.Linear`'s.

    Raises:
        ValueError: when the session runs, a label outside of the classes.

    >>> import torch
    >>> from edgeops import batching
    >>> classes = Classifier(4, 3)
    >>> with batching.session() as s:
    ...     loss = classes.loss(torch.ones(4), 2)
    >>> torch.allclose(loss.tensor(), F.cross_entropy(classes(torch.ones(1, 4)), torch.tensor([2])))
    True
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scores = runtime().Cell(_Scores(self))
        self.loss = runtime().Cell(_Loss(self))

    def loss_rows(self, x: Tensor, label: Tensor) -> Tensor:
        """`loss` on rows `[m, in_features]` and integers `[m]`: plain PyTorch."""
        return F.cross_entropy(self(x), label, reduction="none")


class _Body(NativeBody):
    takes = 1

    def infer(self, operands: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        who, labels = f"batching cell {self.name}", operands[1:]
        if len(operands) != self.takes or any(kind != NUMBER for kind, _ in labels):
            rule, advice = "takes a row, and its loss an integer", "Call scores(x), or loss(x, label)."
            raise TypeError(message(who, rule, f"{len(operands)} operands", advice))
        kind, number = operands[0]
        shape = None if kind in (NUMBER, LIST) else value_class(number).shape
        if shape != (self.module.in_features,):
            rule = f"x must have shape ({self.module.in_features},)"
            raise ValueError(message(who, rule, str(shape), "Check the width of the states."))
        return super().infer(operands)


class _Scores(_Body):
    def __init__(self, module: Classifier) -> None:
        super().__init__(module, module.forward, "Classifier.scores")

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        p, m = program, self.module
        x, grads = p.operand(0, m.in_features), p.d_kept(m.out_features)
        p.copy(grads, p.d_result(0), section=1)
        product = p.linear(p.result(0), grads, {"weight": [x]}, ["bias"])
        p.backprop(p.d_operand(0), x, [product])


class _Loss(_Body):
    takes = 2

    def __init__(self, module: Classifier) -> None:
        super().__init__(module, module.loss_rows, "Classifier.loss")

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        p, m = program, self.module
        x = p.operand(0, m.in_features)
        scores, dscores = p.kept(m.out_features), p.d_kept(m.out_features)
        product = p.linear(scores, dscores, {"weight": [x]}, ["bias"])
        p.cross_entropy(scores, dscores, 0, 1)
        p.backprop(p.d_operand(0), x, [product])
