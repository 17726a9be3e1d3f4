# SPDX-License-Identifier: Apache-2.0
"""A module becomes a converted one by a change of class: its parameters, children, names and hooks stay as they are.

The new class derives from the old one, so `isinstance` holds, and carries its name, so that files written by
`save_pretrained` name the stock model. Pickles hold the old class and the adapter, both importable.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from edgeops._common import message
from edgeops.ragged.convert._projection import FusedWeights, Linears, fuse

_FUSED = "_edgeops_fused"


class Converted:
    """Mixed in front of the stock class; a family's adapter derives from it.

    An adapter defines `forward`, `encode_packed`, `why_not` (reasons against converting a module, as class method) and
    `linears` (query, key and value projection of each layer).
    """

    _edgeops_origin: tuple[type[Converted], type[nn.Module]]
    embedded_argument: str
    """Name of the argument of `encode_packed` that takes embedded tokens."""

    @classmethod
    def recognises(cls, module: nn.Module) -> bool:
        """Whether this adapter is the one for a stock module."""
        raise NotImplementedError

    @classmethod
    def why_not(cls, module: nn.Module) -> Iterator[str]:
        """Reasons why a recognised module cannot be converted."""
        raise NotImplementedError

    def linears(self) -> list[Linears]:
        """The projections of each layer that may share storage; empty when they do already."""
        return []

    def fuse_projections(self) -> None:
        """Lay the projections of each layer side by side (again): see `_projection`."""
        self.__dict__[_FUSED] = [fuse(linears) for linears in self.linears()]

    def fused_projections(self) -> list[FusedWeights | None]:
        """One entry a layer; all `None` in a compiled graph, where addresses are not known."""
        held = self.__dict__.get(_FUSED) or []
        count = len(self.linears()) if not held else len(held)
        return [None] * count if torch.compiler.is_compiling() or not held else held

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)  # type: ignore[misc]
        self.fuse_projections()
        return result

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != _FUSED}
        return _rebuild, type(self)._edgeops_origin, state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self.fuse_projections()

    def _get_name(self) -> str:
        return f"Ragged[{type(self).__name__}]"


_classes: dict[tuple[type, type], type[nn.Module]] = {}  # a class is made once: pickles and isinstance rely on it


def converted_class(adapter: type[Converted], stock: type[nn.Module]) -> type[nn.Module]:
    """The class (adapter, stock) under the name of the stock class."""
    if (adapter, stock) not in _classes:
        body = {
            "__module__": stock.__module__,
            "__qualname__": stock.__qualname__,
            "__doc__": stock.__doc__,
            "_edgeops_origin": (adapter, stock),
        }
        _classes[adapter, stock] = type(stock.__name__, (adapter, stock), body)
    return _classes[adapter, stock]


def _rebuild(adapter: type[Converted], stock: type[nn.Module]) -> nn.Module:
    cls = converted_class(adapter, stock)
    return cls.__new__(cls)


def swap(module: nn.Module, adapter: type[Converted]) -> None:
    """Turn a stock module into a converted one, in place."""
    module.__class__ = converted_class(adapter, type(module))
    module.fuse_projections()  # type: ignore[operator]


def is_stock(module: nn.Module, stock: type[nn.Module]) -> bool:
    """Whether `module` is a `stock` whose forward nobody has overridden, in a subclass or on the instance."""
    if not isinstance(module, stock) or "forward" in module.__dict__:
        return False
    return inspect.unwrap(type(module).forward) is inspect.unwrap(stock.forward)


def bypassed(name: str, module: nn.Module, stock: type[nn.Module]) -> Iterator[str]:
    """Reasons against replacing the call of an inner module by what the stock class computes."""
    if not is_stock(module, stock):
        yield f"{name} is a {type(module).__name__} with a forward of its own, not the stock {stock.__name__}"
        return
    for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
        # transformers records hidden states through hooks of its own; the packed loop records them itself
        if "output_captur" not in getattr(hook, "__qualname__", ""):
            yield f"{name} has a forward hook that the packed loop would not call; remove it or hook the whole model"
            return


def refuse_call(model: nn.Module, reasons: list[str]) -> None:
    """Raise `NotImplementedError` with all reasons, if there are any."""
    if reasons:
        who = f"converted {type(model).__name__}"
        raise NotImplementedError(
            message(who, "cannot run this call on packed rows", "\n  - " + "\n  - ".join(reasons) + "\n", _ADVICE)
        )


_ADVICE = "Call the unconverted model for this."
