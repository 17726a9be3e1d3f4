# SPDX-License-Identifier: Apache-2.0
"""Figures of the items that compare times, from the records of interleaved runs: C5 to C15."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import registry
from bench.inputs import LISTS, SHORT_LISTS
from bench.offload import adam, linear
from bench.ragged import (
    attention,
    attention_train,
    encoder_layer,
    encoder_layer_train,
    gemm,
    layout,
    minilm,
    threads,
    triangular,
)
from bench.table import Group
from edgeops.perf import geomean

Figures = dict[str, float]
Groups = dict[str, Group]
"""Case name without what follows the slash ("CoLA" of "CoLA/32") -> the records of its run."""


def by_case(groups: Sequence[Group], workload: str) -> Groups:
    """The newest run of each case of one workload."""
    return {group.case.partition("/")[0]: group for group in groups if group.workload == workload}


def _roof(group: Group, candidate: str) -> float:
    share = group.records[candidate].roof_share
    return float("nan") if share is None else share


def _complete(groups: Groups, needed: Sequence[str], candidates: Sequence[str]) -> bool:
    return all(name in groups and set(candidates) <= set(groups[name].records) for name in needed)


def attention_over_peers(groups: Groups) -> Figures:
    """C6, and the first figures of C5."""
    ours = attention.OURS
    if not _complete(groups, LISTS, (ours, attention.LOOP, attention.PADDED)):
        return {}
    loop = {name: groups[name].ratio(attention.LOOP, ours).median for name in LISTS}
    padded = {name: groups[name].ratio(attention.PADDED, ours).median for name in LISTS}
    return {
        "geomean over the sdpa loop": geomean(loop.values()),
        "geomean over padded sdpa": geomean(padded.values()),
        "worst list over the better peer": min(min(loop[name], padded[name]) for name in LISTS),
    }


def attention_core(groups: Groups) -> Figures:
    """C5."""
    figures = attention_over_peers(groups)
    if not figures:
        return {}
    ours = attention.OURS
    for name in ("CoLA", "MNLI"):
        figures[f"{name} over the sdpa loop"] = groups[name].ratio(attention.LOOP, ours).median
    for name in ("SQuAD", "RACE", "Wiki512", "CoLA"):
        figures[f"{name} share of the sgemm roof"] = _roof(groups[name], ours)
    return figures


def causal_attention(groups: Groups) -> Figures:
    """C12."""
    needed = (attention_train.CAUSAL, attention_train.UNMASKED)
    if not _complete(groups, ("MNLI", "RACE"), needed):
        return {}
    return {
        f"causal over unmasked, {name}": groups[name].ratio(needed[1], needed[0]).median for name in ("MNLI", "RACE")
    }


def encoder(groups: Groups) -> Figures:
    """C7."""
    ours = encoder_layer.OURS
    if not _complete(groups, LISTS, (ours, encoder_layer.LOOP, encoder_layer.PADDED)):
        return {}
    loop = {name: groups[name].ratio(encoder_layer.LOOP, ours).median for name in LISTS}
    padded = [groups[name].ratio(encoder_layer.PADDED, ours).median for name in LISTS]
    return {
        "geomean over packed + sdpa loop, short lists": geomean(loop[name] for name in SHORT_LISTS),
        "worst list over packed + sdpa loop": min(loop.values()),
        "geomean over padded sdpa": geomean(padded),
        "RACE share of the sgemm roof": _roof(groups["RACE"], ours),
    }


def training_step(groups: Groups) -> Figures:
    """C8."""
    ours, stock = encoder_layer.OURS, encoder_layer_train.STOCK
    if not _complete(groups, SHORT_LISTS, (ours, encoder_layer.LOOP, stock)):
        return {}
    loop = [groups[name].ratio(encoder_layer.LOOP, ours).median for name in SHORT_LISTS]
    return {
        "MNLI over nn.TransformerEncoderLayer": groups["MNLI"].ratio(stock, ours).median,
        "worst short list over packed + sdpa loop": min(loop),
    }


def sentence_encoder(groups: Groups) -> Figures:
    """C9."""
    ours = minilm.OURS
    if not _complete(groups, ("STS-B",), (ours, minilm.PADDED, minilm.SORTED)):
        return {}
    group = groups["STS-B"]
    worst = [one.records[ours].notes["max_abs_error"] for one in groups.values()]
    return {
        "STS-B over padded, file order": group.ratio(minilm.PADDED, ours).median,
        "STS-B over padded, sorted": group.ratio(minilm.SORTED, ours).median,
        "largest difference of an embedding": max(worst),
    }


def products(groups: Groups) -> Figures:
    """C10."""
    if not _complete(groups, gemm.SETS, (gemm.OURS, gemm.MKL, gemm.LOOP)):
        return {}
    figures = {f"{name} over {gemm.MKL}": groups[name].ratio(gemm.MKL, gemm.OURS).median for name in gemm.SETS}
    return figures | {f"{gemm.TINY} over the mm loop": groups[gemm.TINY].ratio(gemm.LOOP, gemm.OURS).median}


def layout_cost(groups: Groups) -> Figures:
    """C14."""
    if not _complete(groups, LISTS, (layout.OURS, layout.LAYER)):
        return {}
    share = {name: 1 / groups[name].ratio(layout.LAYER, layout.OURS).median for name in LISTS}
    return {
        "layout share of a layer, worst list but CoLA": max(share[name] for name in LISTS if name != "CoLA"),
        "layout share of a layer, CoLA": share["CoLA"],
    }


def triangles(groups: Groups) -> Figures:
    """C11."""
    ours, dense = triangular.OURS, triangular.DENSE
    if not _complete(groups, ("trmm 512", "trmm 2048", "tradd 2048", "trmul 2048"), (ours, dense)):
        return {}
    faster = {name: groups[name].ratio(dense, ours).median for name in groups}
    figures = {f"trmm over dense mm, {m}": faster[f"trmm {m}"] for m in (2048, 512)}
    return figures | {f"{op} over half the dense time, 2048": 2 / faster[f"{op} 2048"] for op in ("tradd", "trmul")}


def adam_beside_torch(groups: Groups) -> Figures:
    """O3."""
    large = "16.8M"
    if not _complete(groups, (large,), (adam.OURS, adam.FUSED, adam.FOREACH)):
        return {}
    return {
        "Adam's direction over torch fused AdamW, 16.8M": groups[large].ratio(adam.FUSED, adam.OURS).median,
        "Adam's direction over torch foreach AdamW, 16.8M": groups[large].ratio(adam.FOREACH, adam.OURS).median,
    }


def subspace_layer(groups: Groups) -> Figures:
    """OL."""
    if not _complete(groups, ("1024",), (linear.OURS, linear.DENSE)):
        return {}
    return {"forward and backward over nn.Linear, 1024": 1 / groups["1024"].ratio(linear.DENSE, linear.OURS).median}


def two_threads(groups: Sequence[Group]) -> Figures:
    """C15, over all cases of the workload."""
    needed = registry.workload("ragged_attention_threads").cases("full")
    if not _complete({g.case: g for g in groups}, [case.name for case in needed], (threads.ONE, threads.TWO)):
        return {}
    return {"worst speed-up of 2 threads over 1": min(g.ratio(threads.ONE, threads.TWO).median for g in groups)}


@dataclass(frozen=True)
class SpeedItem:
    """How an item is measured: its workload, the rounds it needs, its figures from records (none if incomplete)."""

    workload: str
    rounds: int
    figures: Callable[[Sequence[Group]], Figures]


def _per_case(workload: str, rounds: int, figures: Callable[[Groups], Figures]) -> SpeedItem:
    return SpeedItem(workload, rounds, lambda groups: figures(by_case(groups, workload)))


def _all_cases(workload: str, rounds: int, figures: Callable[[Sequence[Group]], Figures]) -> SpeedItem:
    def newest(groups: Sequence[Group]) -> Figures:
        return figures(list({group.case: group for group in groups if group.workload == workload}.values()))

    return SpeedItem(workload, rounds, newest)


ITEMS = {
    "C5": _per_case("ragged_attention", 9, attention_core),
    "C6": _per_case("ragged_attention_train", 7, attention_over_peers),
    "C7": _per_case("encoder_layer", 5, encoder),
    "C8": _per_case("encoder_layer_train", 5, training_step),
    "C9": _per_case("minilm", 5, sentence_encoder),
    "C10": _per_case("vgemm", 15, products),
    "C11": _per_case("triangular", 9, triangles),
    "C12": _per_case("ragged_attention_causal", 9, causal_attention),
    "C14": _per_case("ragged_layout", 5, layout_cost),
    "C15": _all_cases("ragged_attention_threads", 9, two_threads),
    "O3": _per_case("subspace_adam", 9, adam_beside_torch),
    "OL": _per_case("subspace_linear", 9, subspace_layer),
}
