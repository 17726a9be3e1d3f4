# SPDX-License-Identifier: Apache-2.0
"""One model of a trial with all that belongs to it: optimizer, schedule, scaler, statistics, random state, window."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgeops._common import describe, message

Factory = Callable[[], nn.Module]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def random_states(device: torch.device, seed: int | None = None) -> list[Tensor]:
    """States of the global generators that a model on `device` draws from: as they are, or as `seed` sets them."""
    if seed is None:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
    states = [torch.Generator().manual_seed(seed).get_state()]
    return [*states, torch.Generator(device).manual_seed(seed).get_state()] if device.type == "cuda" else states


def set_random_states(device: torch.device, states: list[Tensor]) -> None:
    """Put such states into force."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def random_from(device: torch.device, states: list[Tensor]) -> Iterator[None]:
    """Draw from these states, which move on; the global generators are afterwards as they were before."""
    before = random_states(device)
    set_random_states(device, states)
    try:
        yield
    finally:
        states[:] = random_states(device)
        set_random_states(device, before)


def without_memory(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers take no memory (device "meta")."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p.data, device="meta"), requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(module, memo)


class Reinitialised:
    """A factory made of a module: each call gives its layers new values by their own `reset_parameters`.

    Keeps the shapes and, for layers that have no such method, the buffers; not the parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        memo: dict[int, Any] = {}
        for p in module.parameters():
            memo[id(p)] = nn.Parameter(torch.empty_like(p.data, device="meta"), requires_grad=p.requires_grad)
        for name, part in module.named_modules():
            if any(True for _ in part.parameters(recurse=False)) and _reset(part) is None:
                rule = "to make new models of a module, each of its layers with parameters needs reset_parameters()"
                got, advice = f"{type(part).__name__} {name!r} without", "Pass a function that builds the module."
                raise ValueError(message("DriftSurf", rule, got, advice))
        self.device = device_of(module)
        self.shape = copy.deepcopy(module, memo)

    def __call__(self) -> nn.Module:
        memo: dict[int, Any] = {}
        for p in self.shape.parameters():
            memo[id(p)] = nn.Parameter(torch.empty_like(p.data, device=self.device), requires_grad=p.requires_grad)
        module = copy.deepcopy(self.shape, memo)
        for part in module.modules():
            reset = _reset(part)
            if reset is not None:
                reset()
        return module


def _reset(part: nn.Module) -> Callable[[], Any] | None:
    found = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
    return found if callable(found) else None


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter or buffer is."""
    tensor = next(tensors_of(module), None)
    return torch.device("cpu") if tensor is None else tensor.device


class Recipe:
    """How candidates are made.

    Args:
        factory: makes a module with new values.
        optimizer: makes the optimizer of parameters.
        scheduler: makes the schedule of an optimizer.
        scaler: makes the scaler of half-precision gradients.
        seed: of the first values, the order of points and dropout; each candidate gets its own.
    """

    def __init__(
        self,
        factory: Factory | None,
        optimizer: OptimizerFactory,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None,
        scaler: Callable[[], Any] | None,
        seed: int,
    ) -> None:
        self.factory, self.optimizer, self.scheduler = factory, optimizer, scheduler
        self.scaler, self.seed = scaler, seed
        self.made = 0
        self.device = torch.device("cpu")

    def move(self, device: torch.device) -> None:
        """Make candidates there from now on."""
        self.device = device
        if isinstance(self.factory, Reinitialised):
            self.factory.device = device

    def fresh(self, module: nn.Module | None = None) -> Candidate:
        """A new candidate, around a given module or one with new values."""
        seed = (self.seed * 1_000_003 + self.made) % 2**63
        self.made += 1
        random = random_states(self.device, seed)
        if module is None:
            assert self.factory is not None
            with random_from(self.device, random):
                module = self.factory()
            if not isinstance(module, nn.Module):
                rule = "the factory must return an nn.Module"
                raise TypeError(message("DriftSurf", rule, describe(module), "Return the module."))
            module = module.to(self.device)
        return Candidate(self, module, self.made, random, torch.Generator().manual_seed(seed))

    def like(self, other: Candidate) -> Candidate:
        """A copy with all that belongs to it, and with the order of points of its own."""
        seed = (self.seed * 1_000_003 + self.made) % 2**63
        self.made += 1
        random = [state.clone() for state in other.random]
        copied = Candidate(
            self, copy.deepcopy(other.module), self.made, random, torch.Generator().manual_seed(seed), other
        )
        copied.start = other.start
        return copied


class Candidate:
    """A module and what belongs to it.

    Args:
        recipe: how its parts are made.
        module: the model; rests in evaluation mode.
        uid: a number that no other candidate has.
        random: states of the generators that dropout draws from.
        generator: decides which points it is trained on again, in which order.
        like: whose optimizer, schedule and scaler it takes over.
    """

    def __init__(
        self,
        recipe: Recipe,
        module: nn.Module,
        uid: int,
        random: list[Tensor],
        generator: torch.Generator,
        like: Candidate | None = None,
    ) -> None:
        self.module, self.uid, self.random, self.generator = module.eval(), uid, random, generator
        self.start = self.steps = self.skipped = 0
        self.params = dict(module.named_parameters())
        self.trained = [p for p in self.params.values() if p.requires_grad]
        kinds = {p.dtype for p in self.trained}
        sparse = any(getattr(part, "sparse", False) for part in module.modules())
        self.dtype = kinds.pop() if len(kinds) == 1 and not sparse else None
        """That of every gradient, where they are dense and of one dtype."""
        self.optimizer = recipe.optimizer(self.trained)
        self.scheduler = None if recipe.scheduler is None else recipe.scheduler(self.optimizer)
        self.scaler = None if recipe.scaler is None else recipe.scaler()
        if like is not None:
            self._load_parts(like.parts())

    def parts(self) -> dict[str, Any]:
        """State of the optimizer, the schedule and the scaler."""
        kept = {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        return {name: None if part is None else cloned(part.state_dict()) for name, part in kept.items()}

    def _load_parts(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])

    @property
    def finite(self) -> bool:
        """Whether every parameter and buffer is finite."""
        return all(bool(t.isfinite().all()) for t in tensors_of(self.module))

    @property
    def nbytes(self) -> int:
        """Bytes of parameters, buffers and the optimizer's state."""
        held = [*tensors_of(self.module)]
        held += [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in held)

    def release(self) -> None:
        """Give the memory back now."""
        for tensor in tensors_of(self.module):
            tensor.data = tensor.data.new_empty(0)
        for p in self.trained:
            p.grad = None
        self.optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        numbers = {name: getattr(self, name) for name in ("uid", "start", "steps", "skipped")}
        random = [state.clone() for state in self.random]
        module = dict(cloned(self.module.state_dict()))
        hidden = {name: b.clone() for name, b in self.module.named_buffers() if name not in module}
        order = self.generator.get_state()
        return {**numbers, **self.parts(), "module": module, "hidden": hidden, "random": random, "order": order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put everything back."""
        for name in ("uid", "start", "steps", "skipped"):
            setattr(self, name, state[name])
        self.module.load_state_dict(state["module"])
        for name, buffer in self.module.named_buffers():
            if name in state["hidden"]:
                buffer.copy_(state["hidden"][name])
        self._load_parts(cloned({name: state[name] for name in ("optimizer", "scheduler", "scaler")}))
        self.random = [given.clone() for given in state["random"]]
        self.generator.set_state(state["order"])


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def cloned(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples with copies of their tensors, which share no memory."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: cloned(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(cloned(part) for part in value)
    return copy.deepcopy(value)
