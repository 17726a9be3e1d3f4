# SPDX-License-Identifier: Apache-2.0
"""Memory of one training step of the layer, over padded activations with stored scores (ragged spec, section 9.2).

Judged are the bytes of the tensors that autograd keeps for backward, each storage once, without parameters: what a
layer adds to the peak of the layers around it, which is what the section models. They are measured; the padded side is
the section's own model, in which scores and probabilities are both stored, since its column is a ratio to that. (A
padded layer in PyTorch keeps the probabilities alone.) The peak of one step in torch's allocator is printed beside it,
padded to padded and for a layer in the middle of a packed stack, rows to rows. It also holds gradients in flight: two
rows of the model's width a token, and about 19 MB that no batch size changes: the gradients of the feed-forward weights
(8.4 MB) and pieces of its inner width. These weigh most where a batch is small (CoLA).

As in the section, the batch that costs most of the first 50 batches of 64 stands for its list.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.inputs import LISTS, have_shared, length_list, skip_reason
from bench.ragged.encoder_layer import make_layer, padded_input
from bench.registry import Unavailable
from edgeops import perf
from edgeops.ragged.convert import convert
from edgeops.ragged.flops import activation_bytes, activation_ratio, batches
from edgeops.ragged.layout import RaggedLayout

BATCH, BATCHES = 64, 50
CPU = torch.device("cpu")


def saved_bytes(forward: Callable[[], Tensor], known: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps for backward, each storage once, without those of `known`."""
    skip = {x.untyped_storage().data_ptr() for x in known}
    seen: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in skip:
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        out = forward()
    del out
    return sum(seen.values())


def measure(layer: nn.TransformerEncoderLayer, lengths: Sequence[int]) -> tuple[int, int]:
    """(peak bytes, kept bytes) of one step of the converted layer on one padded batch."""
    model = convert(copy.deepcopy(layer).train(), inplace=True)
    padded, keep = padded_input(RaggedLayout.from_lengths(list(lengths)), CPU)
    x, padding = padded.requires_grad_(), ~keep

    def forward() -> Tensor:
        out: Tensor = model(x, src_key_padding_mask=padding)
        return out

    leaves = [x, *model.parameters()]
    return peak_bytes(forward, leaves), saved_bytes(forward, leaves)


def peak_bytes(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> int:
    """Largest growth of the allocator during forward and backward, with the gradients of leaves there beforehand."""
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)
    upstream = torch.ones(leaves[0].shape)
    return perf.peak_memory(lambda: forward().backward(upstream)).bytes


def packed_peak(layer: nn.TransformerEncoderLayer, lengths: Sequence[int]) -> int:
    """The peak of a layer that gets packed rows and gives packed rows."""
    model = convert(copy.deepcopy(layer).train(), inplace=True)
    layout = RaggedLayout.from_lengths(list(lengths))
    x = torch.randn(layout.total, layer.linear1.in_features).requires_grad_()

    def forward() -> Tensor:
        out: Tensor = model.encode_packed(x, layout=layout)[0]
        return out

    return peak_bytes(forward, [x, *model.parameters()])


def costliest(name: str, ragged: bool) -> tuple[int, ...]:
    """The batch of a list whose activations are largest by the model of section 6."""
    groups = list(batches(length_list(name).values, BATCH, max_batches=BATCHES))
    best = max(groups, key=lambda group: activation_bytes(group, ragged=ragged, store_scores=not ragged))
    return tuple(int(n) for n in best)


def training(lists: Sequence[str] = LISTS) -> dict[str, float]:
    """C13.

    Raises:
        Unavailable: the real lists are absent; synthetic ones have other ratios.
    """
    if not have_shared():
        raise Unavailable(skip_reason())
    layer = make_layer(CPU)
    kept = {}
    for name in lists:
        column = activation_ratio(length_list(name).values, BATCH, store_scores=False, max_batches=BATCHES)
        padded = activation_bytes(costliest(name, False), ragged=False)
        peak, held = measure(layer, costliest(name, True))
        rows = packed_peak(layer, costliest(name, True))
        kept[name] = held / padded / column
        print(
            f"  {name}: kept {held / 1e6:.0f} MB of {padded / 1e6:.0f} padded = {held / padded:.3f}, "
            f"column {column:.3f}; peak {peak / 1e6:.0f} MB = {peak / padded:.3f}, packed {rows / padded:.3f}",
            flush=True,
        )
    return {"tensors kept for backward over the column, worst list": max(kept.values())}
