# SPDX-License-Identifier: Apache-2.0
"""What bodies with programs for the native runner share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.utils.parametrize
from torch import Tensor, nn
from torch.nn import functional as F

from edgeops._common.errors import message
from edgeops.batching._classes import value_class
from edgeops.batching._program import Program
from edgeops.batching.cell import NUMBER, Body


class NativeBody(Body):
    """A body with a program; `run` is its readable twin, used outside of sessions and to find out shapes."""

    pure = True

    def __init__(self, module: nn.Module, run: Callable[..., Any], name: str) -> None:
        self.module: Any = module
        self.name = name
        self._run = run
        self._programs: dict[int, Program] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_programs": {}}

    def parameters(self) -> list[Tensor]:
        return [p for p in self.module._parameters.values() if p is not None]

    def run(self, *rows: Any) -> Any:
        return self._run(*rows)

    def check(self, operands: Sequence[tuple[int, int]]) -> None:
        """Refuse operands that a program cannot take."""
        if torch.nn.utils.parametrize.is_parametrized(self.module):
            rule, advice = "parameters must be plain ones", "Remove the parametrizations, or use batching.cell."
            raise TypeError(message(f"batching cell {self.name}", rule, "a parametrized module", advice))
        dtype = next(self.module.parameters()).dtype
        for slot, (kind, number) in enumerate(operands):
            if kind != NUMBER and value_class(number).dtype != dtype:
                rule = f"operands must have the parameters' dtype {dtype}"
                got = f"{value_class(number).dtype} at {slot}"
                raise TypeError(message(f"batching cell {self.name}", rule, got, "Cast the operand or the module."))

    def infer(self, operands: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        self.check(operands)
        return super().infer(operands)

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        """Write the steps for operands of these kinds and classes."""
        raise NotImplementedError

    def program(self, variant: int, operands: Sequence[tuple[int, int]]) -> Program:
        found = self._programs.get(variant)
        if found is None:
            first = self.parameters()[0]
            found = self._programs[variant] = Program(self.module, first.dtype, first.device)
            self.write(found, operands)
        for p in self.parameters():
            if p.dtype != found.dtype or p.device != found.device:
                rule = "parameters must keep the dtype and device of the first call"
                got, advice = f"{p.dtype} on {p.device}", "Convert the whole module with .to()."
                raise TypeError(message(f"batching cell {self.name}", rule, got, advice))
        return found


class GatesAhead(NativeBody):
    """What a recurrence makes of its input alone: `weight_ih` times x and biases, for all steps at once."""

    def __init__(self, module: nn.Module, biases: Sequence[str], name: str) -> None:
        super().__init__(module, self.gates, name)
        self.biases = biases

    def gates(self, x: Tensor) -> Tensor:
        """Rows `[m, input_size]` to rows of gates."""
        m = self.module
        there = [getattr(m, name) for name in self.biases if getattr(m, name) is not None]
        return F.linear(x, m.weight_ih, sum(there) if there else None)

    def write(self, program: Program, operands: Sequence[tuple[int, int]]) -> None:
        p, (width, depth) = program, self.module.weight_ih.shape
        x, grads = p.operand(0, depth), p.d_kept(width)
        p.copy(grads, p.d_result(0), section=1)
        product = p.linear(p.result(0), grads, {"weight_ih": [x]}, self.biases)
        p.backprop(p.d_operand(0), x, [product])


def width_of(operand: tuple[int, int]) -> int:
    """Numbers in a row of an operand."""
    width = 1
    for size in value_class(operand[1]).shape:
        width *= size
    return width
