# SPDX-License-Identifier: Apache-2.0
"""How layers learn inside of compiled graphs: one op that hands the whole gradient to the layer of a number.

A graph cannot hold a Python function, and learning reads values on the host. So the graph of a learning step holds the
layer's number, and the op calls its `learn`: the graph stays whole, and is the same in every learning step.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from edgeops.offload.linear import SubspaceLinear

_NAMESPACE = "edgeops_offload"  # not a kernel: no twin, no device
_layers: weakref.WeakValueDictionary[int, SubspaceLinear] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def number(layer: SubspaceLinear) -> int:
    """A number that stands for the layer for as long as it lives."""
    own = next(_numbers)
    _layers[own] = layer
    return own


def _learn(grad: Tensor, layer: int, p: int, q: int) -> Tensor:
    """`P^T G Q` `[p, q]` of the layer's pair, after its look at G."""
    own = _layers[layer]
    pair = own.pair if own.learn is None else own.learn(grad)
    return pair.compress(grad).clone(memory_format=torch.contiguous_format)  # never grad itself


# kept for the life of the process: dropping a torch Library unregisters its rules
_library = torch.library.Library(_NAMESPACE, "DEF")
_library.define("learn(Tensor grad, int layer, int p, int q) -> Tensor")
_library.impl("learn", _learn, "CompositeExplicitAutograd")
torch.library.register_fake(f"{_NAMESPACE}::learn", lambda grad, layer, p, q: grad.new_empty(p, q), lib=_library)
learn = torch.ops.edgeops_offload.learn.default
