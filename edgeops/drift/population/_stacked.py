# SPDX-License-Identifier: Apache-2.0
"""Many models of one architecture as rows of a matrix: one forward, one backward, one update for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from edgeops._common import message

LossFn = Callable[[Tensor, Tensor], Tensor]


class Elementwise(Protocol):
    """An optimizer whose update of a number depends on that number's own gradient and state alone."""

    @property
    def states(self) -> int:
        """Numbers of state for each parameter."""
        ...

    def update(self, param: Tensor, grad: Tensor, state: list[Tensor], step: Tensor) -> None:
        """A step in place of parameters and state; `step`, one number a row, counts this one."""
        ...


@dataclass(frozen=True)
class SGD:
    """`torch.optim.SGD` on rows, to the rounding.

    Args:
        lr: step size.
        momentum: of the gradient's running sum.
        weight_decay: added to the gradient, times the parameter.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def states(self) -> int:
        return 1 if self.momentum else 0

    def update(self, param: Tensor, grad: Tensor, state: list[Tensor], step: Tensor) -> None:
        if self.weight_decay:
            grad = grad.add(param, alpha=self.weight_decay)
        if self.momentum:
            grad = state[0].mul_(self.momentum).add_(grad)
        param.sub_(grad, alpha=self.lr)


@dataclass(frozen=True)
class Adam:
    """`torch.optim.AdamW` on rows, each with its own number of steps; without weight decay it is Adam.

    Args:
        lr: step size.
        betas: weights of the running means.
        eps: added to the denominator.
        weight_decay: decoupled.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def states(self) -> int:
        return 2

    def update(self, param: Tensor, grad: Tensor, state: list[Tensor], step: Tensor) -> None:
        first, second = self.betas
        mean, square = state[0].lerp_(grad, 1 - first), state[1].mul_(second).addcmul_(grad, grad, value=1 - second)
        count = step.to(torch.float64).view(-1, *[1] * (param.dim() - 1))
        size = (self.lr / (1 - first**count)).to(param.dtype)
        root = (1 - second**count).sqrt().to(param.dtype)
        if self.weight_decay:
            param.mul_(1 - self.lr * self.weight_decay)
        param.sub_((mean * size).div_(square.sqrt().div_(root).add_(self.eps)))


class Rows:
    """Parameters and optimizer state of models, one a row: `[rows, numbers]` each, and the steps `[rows]`.

    Copying models from here to there is one indexed copy, whatever they are made of.
    """

    def __init__(self, values: Tensor, states: int) -> None:
        self.values = values
        self.states = [torch.zeros_like(values) for _ in range(states)]
        self.steps = torch.zeros(len(values), dtype=torch.int64, device=values.device)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.values, *self.states, self.steps]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def take(self, rows: Tensor) -> Rows:
        """Copies of some rows."""
        return Rows.of([t.index_select(0, rows) for t in self.tensors])

    def put(self, rows: Tensor, other: Rows) -> None:
        """Replace some rows."""
        for mine, new in zip(self.tensors, other.tensors, strict=True):
            mine.index_copy_(0, rows, new)

    def part(self, begin: int, end: int) -> Rows:
        """Rows next to one another, in place."""
        return Rows.of([t[begin:end] for t in self.tensors])

    def resized(self, rows: int) -> Rows:
        """The first rows of a copy that has this many, zeros behind them."""
        made = [t.new_zeros(rows, *t.shape[1:]) for t in self.tensors]
        for new, old in zip(made, self.tensors, strict=True):
            new[: min(rows, len(old))] = old[:rows]
        return Rows.of(made)

    @staticmethod
    def of(tensors: list[Tensor]) -> Rows:
        rows = Rows.__new__(Rows)
        rows.values, *rows.states, rows.steps = tensors
        return rows


class Architecture:
    """What the models have in common: where each parameter lies in a row, and how a row is called.

    Args:
        module: one of the models.
        optimizer: updates rows.
        loss_fn: loss of each point, `(outputs [n, ...], y [n, ...]) -> [n]`.

    Raises:
        ValueError: the module keeps running statistics, which are not a function of its parameters, or its parameters
            have several dtypes.
    """

    def __init__(self, module: nn.Module, optimizer: Elementwise, loss_fn: LossFn) -> None:
        who = "DriftSurfPopulation"
        for name, part in module.named_modules():
            if getattr(part, "track_running_stats", False):
                rule, got = "modules must not keep running statistics", f"{type(part).__name__} at '{name}'"
                raise ValueError(message(who, rule, got, "Use GroupNorm, LayerNorm, or track_running_stats=False."))
        params = dict(module.named_parameters())
        kinds = {p.dtype for p in params.values()}
        if len(kinds) != 1 or not next(iter(kinds)).is_floating_point:
            got = ", ".join(sorted(map(str, kinds))) or "no parameters"
            raise ValueError(message(who, "needs parameters of one floating dtype", got, "Convert the module."))
        self.module, self.optimizer, self.loss_fn = module, optimizer, loss_fn
        self.places: dict[str, tuple[int, int, torch.Size]] = {}
        at = 0
        for name, p in params.items():
            self.places[name] = (at, at + p.numel(), p.shape)
            at += p.numel()
        self.numbers = at
        self._call = vmap(self._one, in_dims=(0, 0))

    def _one(self, params: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(self.module, params, (x,))

    def flat(self, module: nn.Module) -> Tensor:
        """A model's row, `[numbers]`."""
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    def fill(self, module: nn.Module, row: Tensor) -> nn.Module:
        """Give a module a row's parameters."""
        with torch.no_grad():
            for name, p in module.named_parameters():
                begin, end, shape = self.places[name]
                p.copy_(row[begin:end].view(shape))
        return module

    def _views(self, values: Tensor) -> dict[str, Tensor]:
        # `.data`: rows of a matrix share a version counter, and an update of some must not forbid others' backward
        return {n: values[:, a:b].data.view(len(values), *shape) for n, (a, b, shape) in self.places.items()}

    @torch.no_grad()
    def outputs(self, values: Tensor, x: Tensor) -> Tensor:
        """Outputs `[rows, n, ...]` of rows on points `[rows, n, ...]`."""
        return self._call(self._views(values), x)

    def forward(self, values: Tensor, x: Tensor, y: Tensor) -> Pass:
        """Losses of each row on its own points, and what is needed for the gradient."""
        leaves = {name: view.requires_grad_() for name, view in self._views(values).items()}
        with torch.enable_grad():
            out = self._call(leaves, x)
            loss = self.each(self.loss_fn, out, y)
        return Pass(leaves, out.detach(), loss)

    def each(self, fn: LossFn, outputs: Tensor, y: Tensor) -> Tensor:
        """A loss of each point, `[rows, n]`."""
        rows, n = y.shape[:2]
        loss = fn(outputs.flatten(0, 1), y.flatten(0, 1))
        if loss.shape != (rows * n,):
            rule, got = "loss_fn must give one number a point", f"shape {tuple(loss.shape)} for {rows * n} points"
            raise ValueError(message("DriftSurfPopulation", rule, got, "Use reduction='none'."))
        return loss.view(rows, n)

    def update(self, rows: Rows, done: Pass, which: Tensor | None = None) -> None:
        """One step of each row along the mean loss of its points, in place; only those that `which` names."""
        grads = torch.autograd.grad(done.loss.mean(1).sum(), list(done.leaves.values()))
        rows.steps += 1 if which is None else which
        for (begin, end, shape), grad in zip(self.places.values(), grads, strict=True):
            mine = [t[:, begin:end].view(-1, *shape) for t in (rows.values, *rows.states)]
            before = [] if which is None else [t.clone() for t in mine]
            self.optimizer.update(mine[0], grad, mine[1:], rows.steps)
            for new, old in zip(mine, before):
                new.copy_(torch.where(which.view(-1, *[1] * len(shape)), new, old))  # type: ignore[union-attr]

    def fit(self, rows: Rows, x: Tensor, y: Tensor) -> None:
        """One step of each row on its own points, in place."""
        if len(rows):
            self.update(rows, self.forward(rows.values, x, y))


@dataclass
class Pass:
    """A forward pass whose gradient is still to be taken."""

    leaves: dict[str, Tensor]
    outputs: Tensor
    loss: Tensor


def chunks(rows: int, size: int | None) -> Iterator[tuple[int, int]]:
    """Bounds of parts of about equal size."""
    parts = 1 if size is None else max(1, -(-rows // size))
    for part in range(parts):
        yield rows * part // parts, rows * (part + 1) // parts


def draw(seed: int, *numbers: Tensor) -> Tensor:
    """A hash in [0, 2**31) of whole numbers, `[n]`: draws that need no generator, the same on every device."""
    state = torch.full_like(numbers[0], seed * 2654435761 % (1 << 31))
    for number in numbers:
        for factor in (0x45D9F3B, 0x119DE1F3):
            state = (state ^ (number + 0x9E3779B9)) % (1 << 31)
            state = ((state >> 16) ^ state) * factor % (1 << 31)
        state = (state >> 16) ^ state
    return state
