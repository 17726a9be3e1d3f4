# SPDX-License-Identifier: Apache-2.0
"""Figures of the items that need a GPU: G1 to G4 and G6 of the ragged specification (section 14, "On one GPU"), OG18
to OG24 of the offload specification, BG1 to BG5 of the batching specification (section 13), DG1 to DG3 of the drift
specification (section 14)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bench import registry
from bench.batching import gpu as batching_gpu
from bench.drift import gpu as drift_gpu
from bench.inputs import LISTS, batch
from bench.offload import gpu as offload_gpu
from bench.offload import gpu_steps, gsm8k
from bench.ragged import attention, attention_gpu, encoder_layer_gpu
from bench.registry import Case, Unavailable
from bench.table import Group
from edgeops.perf import geomean
from edgeops.ragged import ragged_attention
from edgeops.ragged._reference import ragged_attention_bwd_reference, ragged_attention_fwd_reference

Figures = dict[str, float]
NO_GPU = "needs a GPU that torch can use"


def _by_name(groups: Sequence[Group], workload: str, needed: Sequence[str], candidates: Sequence[str]) -> list[Group]:
    """The newest run of each needed case, by what stands before the slash; empty where one is missing."""
    found = {g.case.partition("/")[0]: g for g in groups if g.workload == workload}
    if not all(name in found and set(candidates) <= set(found[name].records) for name in needed):
        return []
    return [found[name] for name in needed]


def float32(groups: Sequence[Group]) -> Figures:
    """G1: how much of the ratio of padded to useful pairs the speed-up over padded attention reaches."""
    figures: Figures = {}
    for workload, what in (("attention_gpu_fp32", "forward"), ("attention_gpu_fp32_train", "forward and backward")):
        found = _by_name(groups, workload, LISTS, (attention.OURS, attention.PADDED))
        if not found:
            continue
        shares = []
        for group in found:
            shapes = group.any.shapes
            pairs = shapes["B"] * shapes["L"] ** 2 / shapes["pairs"]
            shares.append(group.ratio(attention.PADDED, attention.OURS).median / pairs)
        figures[f"{what}: worst list, speed-up over padded sdpa per pair ratio"] = min(shares)
    return figures


def accuracy(device: torch.device, lists: Sequence[str] = LISTS, size: int = 32) -> Figures:
    """G1: float32 against float64, forward and backward, relative to the largest value."""
    out_error, grad_error = 0.0, 0.0
    for name in lists:
        data = attention.packed_input(batch(name, size).values, device)
        leaves = [x.requires_grad_() for x in (data.q, data.k, data.v)]
        cu, longest, offsets = data.layout.cu_seqlens, data.layout.max_len, data.layout.offsets
        out = ragged_attention(*leaves, cu, cu, longest, longest)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device)
        got = torch.autograd.grad(out, leaves, upstream)
        wide = [x.detach().double() for x in leaves]
        scale = attention_gpu.SCALE
        exact, lse = ragged_attention_fwd_reference(*wide, offsets, offsets, scale=scale)
        want = ragged_attention_bwd_reference(upstream.double(), None, *wide, exact, lse, offsets, offsets, scale=scale)
        out_error = max(out_error, float((out.detach() - exact).abs().max() / exact.abs().max()))
        grad_error = max(grad_error, *(float((g - w).abs().max() / w.abs().max()) for g, w in zip(got, want)))
    return {"largest relative error of the output": out_error, "largest relative error of a gradient": grad_error}


def dispatch(groups: Sequence[Group]) -> Figures:
    """G2."""
    found = _by_name(groups, "ragged_attention_bf16", LISTS, (attention.OURS, attention.FLASH))
    if not found:
        return {}
    return {"worst list, time over varlen_attn": max(g.ratio(attention.OURS, attention.FLASH).median for g in found)}


def layer(groups: Sequence[Group]) -> Figures:
    """G3, the timed part."""
    ours, padded, hybrid = attention.OURS, attention.PADDED, encoder_layer_gpu.HYBRID
    figures: Figures = {}
    over_hybrid: list[float] = []
    for size in encoder_layer_gpu.BATCHES:
        mine = [g for g in groups if g.case.endswith(f"/{size}")]
        found = _by_name(mine, "encoder_layer_gpu", LISTS, (ours, padded, hybrid))
        if not found:
            return {}
        figures[f"batch {size}: geomean over padded sdpa"] = geomean(g.ratio(padded, ours).median for g in found)
        over_hybrid += [g.ratio(hybrid, ours).median for g in found]
    return figures | {"geomean over packed linear + padded attention": geomean(over_hybrid)}


def waits(device: torch.device) -> Figures:
    """G3, the waits of the host for the GPU inside a layer whose layout is there."""
    lengths = batch("MNLI", 32)
    with torch.inference_mode():
        _, converted, layout, x, _ = encoder_layer_gpu.parts(Case("MNLI/32", lengths.source, lengths.values), device)
        run = encoder_layer_gpu.packed_layer(converted, x, layout)
        return {"waits for the GPU in three layers": float(encoder_layer_gpu.waits_in_a_call(run))}


def against_flash(groups: Sequence[Group]) -> Figures:
    """G4."""
    figures: Figures = {}
    for workload, what in (("attention_gpu_bias", "bias"), ("attention_gpu_causal", "causal")):
        found = _by_name(groups, workload, LISTS, (attention.OURS, attention_gpu.FLASH))
        if found:
            slowest = max(g.ratio(attention.OURS, attention_gpu.FLASH).median for g in found)
            figures[f"{what}: worst list, time over flash without bias"] = slowest
    return figures


def order(groups: Sequence[Group]) -> Figures:
    """G6; the ratios of all cases and of the opposite order are in the table that is printed."""
    first, plain = attention_gpu.LONGEST, attention_gpu.IN_ORDER
    needed = ("SQuAD", "one long causal")
    found = _by_name(groups, "attention_gpu_order", needed, (first, plain))
    return {f"{name}: longest first over in order": g.ratio(plain, first).median for name, g in zip(needed, found)}


def _nothing(groups: Sequence[Group]) -> Figures:
    """Of an item without workloads."""
    return {}


@dataclass(frozen=True)
class GpuItem:
    """How an item is measured on a GPU: workloads of the suite "gpu", rounds, figures, and what is not timed."""

    workloads: tuple[str, ...]
    rounds: int
    figures: Callable[[Sequence[Group]], Figures]
    besides: Callable[[torch.device], Figures] | None = None


ITEMS = {
    "G1": GpuItem(("attention_gpu_fp32", "attention_gpu_fp32_train"), 9, float32, accuracy),
    "G2": GpuItem(("ragged_attention_bf16",), 15, dispatch),
    "G3": GpuItem(("encoder_layer_gpu",), 7, layer, waits),
    "G4": GpuItem(("attention_gpu_bias", "attention_gpu_causal"), 9, against_flash),
    "G6": GpuItem(("attention_gpu_order",), 15, order),
    "OG18": GpuItem((), 1, _nothing, gpu_steps.memory),
    "OG19": GpuItem((), 1, _nothing, gpu_steps.link),
    "OG20": GpuItem(("offload_layer_gpu",), 15, offload_gpu.layer_figures),
    "OG21": GpuItem(("offload_apply_gpu",), 15, offload_gpu.apply_figures),
    "OG22": GpuItem((), 1, _nothing, gpu_steps.step_times),
    "OG23": GpuItem((), 1, _nothing, gpu_steps.timeline),
    "OG24": GpuItem((), 1, _nothing, gsm8k.quality),
    "BG1": GpuItem((), 1, _nothing, batching_gpu.correctness),
    "BG2": GpuItem((), 1, _nothing, batching_gpu.overhead),
    "BG3": GpuItem((), 1, _nothing, batching_gpu.ratios),
    "BG4": GpuItem((), 1, _nothing, batching_gpu.captures),
    "BG5": GpuItem((), 1, _nothing, batching_gpu.training),
    "DG1": GpuItem((), 1, _nothing, drift_gpu.learners),
    "DG2": GpuItem((), 1, _nothing, drift_gpu.corrupted),
    "DG3": GpuItem((), 1, _nothing, drift_gpu.trial),
}


def workloads(item: str) -> list[registry.Workload]:
    """The workloads of an item.

    Raises:
        Unavailable: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise Unavailable(NO_GPU)
    return [registry.workload(name) for name in ITEMS[item].workloads]
