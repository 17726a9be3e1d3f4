# SPDX-License-Identifier: Apache-2.0
"""What benchmarks of backward share: the runner measures in inference mode, and gradients need to leave it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.registry import Built, Case

Build = Callable[[Case, torch.device], Built]


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Autograd on, whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def with_gradients(build: Build) -> Build:
    """A workload's `build`, so that its inputs can take part in autograd."""

    def run(case: Case, device: torch.device) -> Built:
        with recording():
            return build(case, device)

    return run


def backward_of(make: Callable[[], Tensor], leaves: Sequence[Tensor], grad: Tensor) -> Callable[[], Any]:
    """The backward pass alone: the forward graph is made once and kept."""
    out = make()

    def run() -> Any:
        with recording():
            return torch.autograd.grad(out, leaves, grad, retain_graph=True)

    return run


def flat(parts: Sequence[Tensor]) -> Tensor:
    """All elements of the parts in a row, for the gate."""
    return torch.cat([part.detach().flatten() for part in parts])
