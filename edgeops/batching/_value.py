# SPDX-License-Identifier: Apache-2.0
"""What a value can do before it exists: tell its shape, become a tensor, be awaited."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from edgeops.batching._classes import value_class


def _tensor(self: Any) -> Tensor:
    """The value as a tensor; runs what is recorded. Gradients flow back through it."""
    result: Tensor = self._session.tensor(self)
    return result


def _await(self: Any) -> Generator[Any, Tensor, Tensor]:
    return (yield self)


def _torch_function(cls: type, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """A value given to a PyTorch function becomes a tensor first."""

    def exists(x: Any) -> Any:
        if isinstance(x, cls):
            return x.tensor()  # type: ignore[attr-defined]
        return type(x)(exists(y) for y in x) if type(x) in (list, tuple) else x

    return function(*exists(tuple(args)), **{k: exists(v) for k, v in (kwargs or {}).items()})


def _repr(self: Any) -> str:
    of = value_class(self._class)
    return f"Value(shape={of.shape}, dtype={of.dtype})"


def dress(value: Any) -> None:
    """Give the native type its Python methods."""
    value.tensor = _tensor
    value.item = lambda self: self.tensor().item()
    value.shape = property(lambda self: torch.Size(value_class(self._class).shape))
    value.dtype = property(lambda self: value_class(self._class).dtype)
    value.device = property(lambda self: value_class(self._class).device)
    value.__await__ = _await
    value.__repr__ = _repr
    value.__torch_function__ = classmethod(_torch_function)
