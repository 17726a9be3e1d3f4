# SPDX-License-Identifier: Apache-2.0
"""Memory of one training step of the layer, ragged over padded with stored scores (ragged spec, section 9.2).

Judged are the bytes of the tensors that autograd keeps for backward, each storage once, without parameters: the peak
that the activations of a layer add to those of the layers around it, which is what the section models. The peak of one
step in torch's allocator is printed beside it; it also holds the gradients in flight, those of the weights among them,
which weigh most where a batch is small (CoLA).

The padded side forms, masks and keeps its scores, as the column "no scores stored" compares against. As there, each
side takes the batch that costs it most, of the first 50 batches of 64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.inputs import LISTS, have_shared, length_list, skip_reason
from bench.ragged.encoder_layer import HEAD_DIM, HEADS, MODEL, Attend, make_layer, padded_input, run_rows
from bench.registry import Unavailable
from edgeops import perf
from edgeops.ragged.convert import convert
from edgeops.ragged.flops import activation_bytes, activation_ratio, batches
from edgeops.ragged.layout import RaggedLayout

BATCH, BATCHES = 64, 50
CPU = torch.device("cpu")
Forward = Callable[[Tensor], Tensor]


def attend_stored(batch: int, keep: Tensor) -> Attend:
    """Padded attention that forms its scores."""
    added = torch.zeros(keep.shape).masked_fill(~keep, -torch.inf)[:, None, None, :]

    def attend(qkv: Tensor) -> Tensor:
        q, k, v = qkv.view(batch, -1, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) * HEAD_DIM**-0.5 + added).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(-1, MODEL)

    return attend


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


def measure(layer: nn.TransformerEncoderLayer, lengths: Sequence[int], ragged: bool) -> tuple[int, int]:
    """(peak bytes, saved bytes) of one step on one batch."""
    layer = copy.deepcopy(layer).train()
    layout = RaggedLayout.from_lengths(list(lengths))
    padded, keep = padded_input(layout, CPU)
    if ragged:
        model, padding = convert(layer, inplace=True), ~keep
        x = padded.requires_grad_()

        def forward() -> Tensor:
            out: Tensor = model(x, src_key_padding_mask=padding)
            return out

    else:
        attend = attend_stored(len(lengths), keep)
        x = padded.requires_grad_()

        def forward() -> Tensor:
            return run_rows(layer, x.view(-1, MODEL), attend).view(x.shape)

    upstream = torch.ones(x.shape)
    leaves = [x, *layer.parameters()]
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)

    def step() -> None:
        forward().backward(upstream)

    kept = saved_bytes(forward, leaves)
    return perf.peak_memory(step).bytes, kept


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
        ours = measure(layer, costliest(name, True), ragged=True)
        theirs = measure(layer, costliest(name, False), ragged=False)
        kept[name] = ours[1] / theirs[1] / column
        print(
            f"  {name}: peak {ours[0] / 1e6:.0f} of {theirs[0] / 1e6:.0f} MB = {ours[0] / theirs[0]:.3f}, "
            f"kept {ours[1] / 1e6:.0f} of {theirs[1] / 1e6:.0f} MB = {ours[1] / theirs[1]:.3f}; column {column:.3f}",
            flush=True,
        )
    return {"tensors kept for backward over the column, worst list": max(kept.values())}
