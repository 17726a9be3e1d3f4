# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose backward makes the compressed gradient and never the whole one. LSP-Offload, section 4."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeops.offload import _compiled
from edgeops.offload._reference import compute_dtype
from edgeops.offload.pair import Pair

SUBSPACE = "subspace"
Learn = Callable[[Tensor], Pair]


def _dense_backward(ctx: Any, dy: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """What both ways share: the gradient of x, dy as rows, the gradient of the bias."""
    dx = dy @ weight if ctx.needs_input_grad[0] else None
    rows = dy.reshape(-1, dy.shape[-1])
    return dx, rows, rows.sum(0) if ctx.needs_input_grad[2] else None


class _Linear(torch.autograd.Function):
    """`y = x W^T`, with `P^T (dy^T x) Q` as the gradient of the subspace's coordinates."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, subspace: Tensor, pair: Pair) -> Tensor:
        ctx.pair = pair
        ctx.save_for_backward(weight, pair.right.project(x.reshape(-1, x.shape[-1]).T))
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, right = ctx.saved_tensors
        dx, rows, dbias = _dense_backward(ctx, dy, weight)
        small = ctx.pair.left.project(rows.T) @ right.T if ctx.needs_input_grad[3] else None
        return dx, None, dbias, small, None


class _Learning(torch.autograd.Function):
    """The same where the pair is to be learned: the whole gradient exists for as long as `learn` looks at it.

    A compiled graph holds the layer's number in place of `learn`, see `_compiled`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        subspace: Tensor,
        learn: Learn | int,
    ) -> Tensor:
        ctx.learn, ctx.shape = learn, subspace.shape
        ctx.save_for_backward(weight, x)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, x = ctx.saved_tensors
        dx, rows, dbias = _dense_backward(ctx, dy, weight)
        small = None
        if ctx.needs_input_grad[3]:
            grad = rows.T @ x.reshape(-1, x.shape[-1])
            if isinstance(ctx.learn, int):
                small = _compiled.learn(grad, ctx.learn, *ctx.shape)
            else:
                small = ctx.learn(grad).compress(grad)
        return dx, None, dbias, small, None


def _zeros(pair: Pair, weight: Tensor) -> Tensor:
    """Coordinates: one zero, seen as many, on one process; as many as are seen on several, which copy into them."""
    dtype, several = compute_dtype(weight.dtype), int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several or (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return torch.zeros(pair.shape, dtype=dtype, device=weight.device)
    return torch.zeros((), dtype=dtype, device=weight.device).expand(pair.shape)


class SubspaceLinear(nn.Linear):
    """`nn.Linear` trained through a subspace: what `LSPAdamW` turns its targets into, and back with `release`.

    Its weight needs no gradient; the coordinates `subspace` `[p, q]` do, which stay zero: their gradient is
    `P^T G Q`. Everything that works on gradients of parameters (clipping, scaling, accumulation, averaging over
    devices) works on them. `state_dict` is that of `nn.Linear`.

    Attributes:
        subspace: the coordinates, a parameter of zeros, which are one number in memory (on several processes they are
            as many as they seem: `torch.distributed` copies parameters. Start it before the optimizer is built).
        pair: the projectors of the weight.
        learn: called with the whole gradient in a backward pass, returns the pair to use from now on; `None` while
            there is nothing to learn.
        before: called before a forward pass, where an update may still be under way; or `None`.
        number: stands for the layer in compiled graphs, once it has learned; before -1.
    """

    subspace: nn.Parameter
    pair: Pair
    learn: Learn | None
    before: Callable[[], object] | None
    number: int

    @staticmethod
    def adopt(linear: nn.Linear, pair: Pair) -> SubspaceLinear:
        """Turn a linear layer into this class, in place: references to it stay good."""
        linear.__class__ = SubspaceLinear
        assert isinstance(linear, SubspaceLinear)
        linear.pair, linear.learn, linear.before, linear.number = pair, None, None, -1
        weight = linear.weight
        linear.subspace = nn.Parameter(_zeros(pair, weight))
        weight.requires_grad_(False)
        weight.grad = None
        return linear

    def release(self) -> nn.Linear:
        """Turn it back into an `nn.Linear` whose weight needs a gradient."""
        del self.subspace, self.pair, self.learn, self.before, self.number
        self.__class__ = nn.Linear  # type: ignore[assignment]
        self.weight.requires_grad_(True)
        return self

    def watch(self, learn: Learn) -> None:
        """Let the next backward passes form the whole gradient and hand it to `learn`."""
        self.learn = learn
        if self.number < 0:
            self.number = _compiled.number(self)

    def forward(self, input: Tensor) -> Tensor:
        if self.before is not None:
            self.before()
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if not torch.is_grad_enabled() or not self.subspace.requires_grad:
            return F.linear(input, weight, bias)
        if torch.is_autocast_enabled(input.device.type):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, weight = input.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        result: Tensor
        if self.learn is None:
            result = _Linear.apply(input, weight, bias, self.subspace, self.pair)
        else:
            by = self.number if torch.compiler.is_compiling() else self.learn
            result = _Learning.apply(input, weight, bias, self.subspace, by)
        return result

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """What moves or casts the layer moves its projectors, too."""
        super()._apply(fn, recurse)
        self.pair = self.pair.to(self.weight.device, compute_dtype(self.weight.dtype))
        self.subspace.data = _zeros(self.pair, self.weight)
        return self

    def __getstate__(self) -> dict[str, Any]:
        if self.before is not None:
            self.before()
        return {**self.__dict__, "learn": None, "before": None, "number": -1}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.before is not None:
            self.before()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(prefix + SUBSPACE, None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        coordinates = self._parameters.pop(SUBSPACE)  # nothing of them is saved
        try:
            super()._load_from_state_dict(state_dict, prefix, *rest)
        finally:
            self._parameters[SUBSPACE] = coordinates

    def extra_repr(self) -> str:
        p, q = self.pair.shape
        return f"{super().extra_repr()}, subspace=({p}, {q})"
