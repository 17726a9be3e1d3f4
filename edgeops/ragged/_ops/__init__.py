# SPDX-License-Identifier: Apache-2.0
"""Rules of the ragged ops, a file a topic: public functions, readable twins as fallbacks, fake kernels, batching.

A topic module has four tables by op name: `PUBLIC` (public op -> differentiable function), `TWINS` (kernel op -> twin),
`FAKES` (kernel op -> fake kernel) and `VMAPS` (kernel op -> batching rule, a loop of calls where it is absent).
"""

from __future__ import annotations

import torch

from edgeops import _native
from edgeops.ragged._cuda import register_cuda
from edgeops.ragged._ops import attention, conv, gemm, norm, rows, softmax, triangular

TOPICS = (attention, rows, gemm, triangular, softmax, norm, conv)
PUBLIC = {name: function for topic in TOPICS for name, function in topic.PUBLIC.items()}
TWINS = {name: twin for topic in TOPICS for name, twin in topic.TWINS.items()}


def register() -> torch.library.Library:
    """Register every rule. Returns the library object, which must be kept alive."""
    library = torch.library.Library(_native.NAMESPACE, "IMPL")
    for topic in TOPICS:
        for name, twin in topic.TWINS.items():
            library.impl(name, twin, "CompositeExplicitAutograd")
            qualified = f"{_native.NAMESPACE}::{name}"
            torch.library.register_fake(qualified, topic.FAKES[name], lib=library)
            rule = topic.VMAPS.get(name) or _native.loop_vmap(getattr(torch.ops.edgeops, name))
            torch.library.register_vmap(qualified, rule, lib=library)
    register_cuda(library)
    for name, function in PUBLIC.items():
        library.impl(name, function, "CompositeImplicitAutograd")
    return library
