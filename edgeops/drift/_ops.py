# SPDX-License-Identifier: Apache-2.0
"""Rules of the drift ops: readable twins as fallbacks, fake kernels, batching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edgeops import _native
from edgeops.drift import _reference as twin

TWINS: dict[str, Callable[..., Any]] = {"_strsaga_run": twin.strsaga_run_reference}
_REFUSAL = (
    "updates tensors in place and cannot be transformed by torch.func",
    "Call it once: it takes many independent models.",
)


def register() -> torch.library.Library:
    """Register every rule. Returns the library object, which must be kept alive."""
    library = torch.library.Library(_native.NAMESPACE, "IMPL")
    for name, function in TWINS.items():
        qualified = f"{_native.NAMESPACE}::{name}"
        library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(qualified, _native.writes_only, lib=library)
        torch.library.register_vmap(qualified, _native.refuse_vmap(name, *_REFUSAL), lib=library)
    return library
