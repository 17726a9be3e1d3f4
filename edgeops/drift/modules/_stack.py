# SPDX-License-Identifier: Apache-2.0
"""Several modules of one architecture run and trained as one call over stacked parameters. Drift spec, section 12.4."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from edgeops.drift.modules._candidate import Candidate, OptimizerFactory, without_memory

Loss = Callable[[Tensor, Tensor], Tensor]
FUSED = (torch.optim.Adam, torch.optim.AdamW)


class Stack:
    """Candidates whose parameters and buffers lie in one tensor each, `[candidates, ...]`.

    The modules keep their parameters, which become views of the stacks: nothing is held twice, an optimizer that steps
    a parameter steps the stack, and each module still runs by itself. `dissolve` gives them memory of their own.

    Args:
        candidates: of one architecture.
        width: rows of the stacks, where those behind the candidates' are never looked at; 0, as many as candidates.
    """

    def __init__(self, candidates: Sequence[Candidate], width: int = 0) -> None:
        self.candidates = tuple(candidates)
        self.width = max(width, len(candidates))
        first = candidates[0].module
        self.params = {name: self._joined(name, "get_parameter") for name, _ in first.named_parameters()}
        for name, p in first.named_parameters():
            self.params[name].requires_grad_(p.requires_grad)
        self.buffers = {name: self._joined(name, "get_buffer") for name, _ in first.named_buffers()}
        self.leaves = [stack for stack in self.params.values() if stack.requires_grad]
        self._merged: tuple[object, torch.optim.Optimizer] | None = None

    def _joined(self, name: str, getter: str) -> Tensor:
        members = [getattr(c.module, getter)(name) for c in self.candidates]
        stack = torch.stack([member.data for member in (*members, *members[:1] * (self.width - len(members)))])
        for member, part in zip(members, stack.unbind(0), strict=False):
            member.data = part
        return stack

    def widened(self, x: Tensor) -> Tensor:
        """Points `[candidates, ...]` with rows for all of the width."""
        more = self.width - len(x)
        return x if not more else torch.cat([x, x[:1].expand(more, *x.shape[1:])])

    def dissolve(self) -> None:
        """Give each module its own memory again, name by name, so that little is held twice at any time."""
        self._merged = None
        self.leaves = []
        for stacks, getter in ((self.params, "get_parameter"), (self.buffers, "get_buffer")):
            for name in list(stacks):
                del stacks[name]
                for c in self.candidates:
                    member = getattr(c.module, getter)(name)
                    if member.numel():
                        member.data = member.data.clone(memory_format=torch.contiguous_format)

    def merged(self, factory: OptimizerFactory) -> torch.optim.Optimizer:
        """One optimizer over the parameters of all candidates; each keeps the state that it has in its own.

        Groups whose settings agree become one, so that an optimizer with a foreach form steps all of them in one go.
        """
        settings = [[_settings(group) for group in c.optimizer.param_groups] for c in self.candidates]
        if self._merged is not None and self._merged[0] == settings:
            return self._merged[1]
        optimizer = factory([p for c in self.candidates for p in c.trained])
        optimizer.param_groups.clear()
        for number in range(len(settings[0])):
            groups: list[dict[str, Any]] = []
            for c, own in zip(self.candidates, settings, strict=True):
                params = list(c.optimizer.param_groups[number]["params"])
                same = next((g for g in groups if _settings(g) == own[number]), None)
                if same is None:
                    groups.append({**own[number], "params": params})
                else:
                    same["params"] = [*same["params"], *params]
            for group in groups:
                _hasten(optimizer, group)
            optimizer.param_groups.extend(groups)
        for c in self.candidates:
            for p in c.trained:
                optimizer.state[p] = c.optimizer.state[p]
            # a schedule's warning that no step was taken would be wrong: the merged optimizer takes them
            c.optimizer._opt_called = True  # type: ignore[attr-defined]
        self._merged = (settings, optimizer)
        return optimizer


def _hasten(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Choose the form that steps many small tensors in the least time: the same rule, other kernels."""
    if group.get("foreach", False) is not None or group.get("fused"):
        return
    params = group["params"]
    plain = all(p.device.type == "cpu" and p.dtype in (torch.float32, torch.float64) for p in params)
    barred = group.get("differentiable") or group.get("capturable") or isinstance(group.get("lr"), Tensor)
    if type(optimizer) in FUSED and plain and not barred:
        group["fused"] = True
    else:
        group["foreach"] = True


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


class Program:
    """The calls over one or several candidates, eager or compiled; built once for an architecture.

    Args:
        module: the architecture; its parameters are not kept.
        loss: losses `[n]` of outputs `[n, ...]` and labels.
        compiled: whether the step's forward and backward are compiled, or the backend that does it.
    """

    def __init__(self, module: nn.Module, loss: Loss, compiled: object) -> None:
        self.template = without_memory(module)
        self.slots = [
            (kind, held, name, f"{prefix}.{name}" if prefix else name)
            for prefix, part in self.template.named_modules()
            for kind, held in ((0, part._parameters), (1, part._buffers))
            for name in held
            if held[name] is not None
        ]
        first = {id(t): name for name, t in self._named()}
        self.slots = [(k, held, name, first[id(held[name])]) for k, held, name, _ in self.slots]
        self.loss, self.compiled = loss, compiled not in (False, None)
        self._one: Callable[..., Tensor] = self._one_loss
        self._many: Callable[..., Tensor] = self._many_losses
        if self.compiled:
            backend = "inductor" if compiled is True else compiled
            self._one = torch.compile(self._one_loss, fullgraph=True, backend=backend)  # type: ignore[call-overload]
            self._many = torch.compile(self._many_losses, fullgraph=True, backend=backend)  # type: ignore[call-overload]

    def _named(self) -> list[tuple[str, Tensor]]:
        return [*self.template.named_parameters(), *self.template.named_buffers()]

    def outputs(self, stack: Stack, x: Tensor, *, each: bool, train: bool) -> Tensor:
        """Outputs `[candidates, n, ...]` on points `[n, ...]`, or `[candidates, n, ...]` where `each` has its own."""
        self.template.train(train)
        named = (stack.params, stack.buffers)
        tensors = [named[kind][key] for kind, _, _, key in self.slots]
        meta = [held[name] for _, held, name, _ in self.slots]

        def run(x: Tensor, *parts: Tensor) -> Tensor:
            for (_, held, name, _), part in zip(self.slots, parts, strict=True):
                held[name] = part
            result: Tensor = self.template(x)
            return result

        try:
            dims = (0 if each else None, *[0] * len(tensors))
            result: Tensor = vmap(run, in_dims=dims, randomness="error")(stack.widened(x) if each else x, *tensors)
            return result[: len(stack.candidates)]
        finally:
            for (_, held, name, _), part in zip(self.slots, meta, strict=True):
                held[name] = part

    def _one_loss(self, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.loss(functional_call(self.template, (params, buffers), (x,)), y)

    def _many_losses(self, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = vmap(lambda p, b, x: functional_call(self.template, (p, b), (x,)))(params, buffers, x)
        return self.loss(outputs.flatten(0, 1), y.flatten(0, 1)).view(len(x), -1)

    def one(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Losses `[n]` of a module in training mode."""
        if not self.compiled:
            return self.loss(module(x), y)
        self.template.train()
        for tensor in (x, y):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return self._one(dict(module.named_parameters()), dict(module.named_buffers()), x, y)

    def many(self, stack: Stack, x: Tensor, y: Tensor) -> Tensor:
        """Losses `[candidates, n]` in training mode on points `[candidates, n, ...]` of each."""
        if not self.compiled:
            outputs = self.outputs(stack, x, each=True, train=True)
            return self.loss(outputs.flatten(0, 1), y.flatten(0, 1)).view(len(x), -1)
        self.template.train()
        count, x, y = len(x), stack.widened(x).contiguous(), stack.widened(y).contiguous()
        for tensor in (x, y):
            torch._dynamo.maybe_mark_dynamic(tensor, 1 if stack.buffers else (0, 1))
        for tensor in () if stack.buffers else stack.params.values():
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return self._many(stack.params, stack.buffers, x, y)[:count]


def agree(program: Program, stack: Stack, x: Tensor) -> None:
    """Raise where the stacked call of some points does not do what the modules do one by one; changes nothing.

    Raises:
        RuntimeError: outputs or buffers differ, or the module does what cannot be stacked, which torch words itself.
    """
    saved = {name: buffer.clone() for name, buffer in stack.buffers.items()}
    outputs, after = [], []
    try:
        with torch.no_grad():
            for c in stack.candidates:
                c.module.train()
                outputs.append(c.module(x))
                c.module.eval()
                after.append([c.module.get_buffer(name).clone() for name in saved])
            _put_back(stack, saved)
            stacked = program.outputs(stack, x.expand(len(outputs), *x.shape), each=True, train=True)
        same = stacked.shape == (len(outputs), *outputs[0].shape)
        pairs = [(stacked, torch.stack(outputs))] if same else []
        count = len(outputs)
        for buffer, own in zip(stack.buffers.values(), zip(*after), strict=True):
            pairs.append((buffer[:count], torch.stack(own)))
        close = [torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in pairs]
        if not same or not all(close):
            raise RuntimeError("stacked, the module gives other outputs or statistics than alone")
    finally:
        for c in stack.candidates:
            c.module.eval()
        _put_back(stack, saved)


def _put_back(stack: Stack, saved: dict[str, Tensor]) -> None:
    for name, buffer in stack.buffers.items():
        buffer.copy_(saved[name])
        for c, own in zip(stack.candidates, saved[name], strict=False):
            c.module.get_buffer(name).copy_(own)
