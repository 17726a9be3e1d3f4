# SPDX-License-Identifier: Apache-2.0
"""What projectors keep of real gradients, measured: `python -m bench.offload.projectors [--quick] [--json]`.

Items 9 and 11 of the offload specification, section 14: learned, random and singular-vector pairs over (d, r) on
matrices of a 384- and a 576-wide model, on the gradient they were made of and on one of other text; and how many steps
a shrunken draw needs where the paper's takes 100.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from bench.offload.encoder import minilm_gradients, smollm_gradients
from edgeops.offload import Pair, SparseProjector, fit
from edgeops.offload.pair import svd_pair

MODELS: dict[str, Callable[[int], dict[str, Tensor]]] = {"MiniLM": minilm_gradients, "SmolLM2": smollm_gradients}
GRID = ((64, 4), (128, 2), (128, 4), (128, 8), (192, 4))


@dataclass(frozen=True)
class Row:
    """Relative biases of one way on one matrix: on its own gradient and on a held-out one."""

    model: str
    matrix: str
    shape: tuple[int, int]
    way: str
    d: int
    r: int
    calibration: float
    held_out: float
    numbers: int
    """Stored for the two projectors: values and indices, or dense elements."""


def drawn(shape: tuple[int, int], d: int, r: int, seed: int, shrink: bool = True) -> Pair:
    """A random sparse pair."""
    g = torch.Generator().manual_seed(seed)
    return Pair(*(SparseProjector.draw(n, d, r, shrink=shrink, generator=g) for n in shape))


def rows_of(model: str, name: str, own: Tensor, other: Tensor, d: int, r: int, steps: int) -> list[Row]:
    """Every way on one matrix at one (d, r): singular vectors at the same d (same bytes moved) and the same r."""
    shape = (own.shape[0], own.shape[1])
    ways: dict[str, tuple[Pair, int, int]] = {
        "random": (drawn(shape, d, r, 0), d, r),
        "random, paper's scale": (drawn(shape, d, r, 0, shrink=False), d, r),
        "learned": (fit(drawn(shape, d, r, 0), own, steps=steps).pair, d, r),
        "svd of width d": (svd_pair(own, (d, d)), d, d),
        "svd of width 2r": (svd_pair(own, (2 * r, 2 * r)), 2 * r, 2 * r),
    }
    return [
        Row(model, name, shape, way, width, entries, float(pair.bias(own)), float(pair.bias(other)), numbers(pair))
        for way, (pair, width, entries) in ways.items()
    ]


def numbers(pair: Pair) -> int:
    """How many numbers both projectors keep."""
    count = 0
    for side in (pair.left, pair.right):
        count += 2 * side.value.numel() if isinstance(side, SparseProjector) else side.rows * side.width
    return count


def curves(models: tuple[str, ...] = tuple(MODELS), grid: tuple[tuple[int, int], ...] = GRID) -> list[Row]:
    """Item 11."""
    rows = []
    for model in models:
        own, other = MODELS[model](1), MODELS[model](2)
        for name in own:
            for d, r in grid:
                if d < min(own[name].shape):
                    rows += rows_of(model, name, own[name], other[name], d, r, 100)
    return rows


def shrunken(models: tuple[str, ...] = tuple(MODELS), d: int = 128, r: int = 4, seeds: int = 2) -> dict[str, float]:
    """Item 9: held-out bias after 30 steps from a shrunken draw over that after 100 from the paper's, worst of all."""
    worst = {}
    for model in models:
        own, other = MODELS[model](1), MODELS[model](2)
        ratios = []
        for name, grad in own.items():
            shape = (grad.shape[0], grad.shape[1])
            for seed in range(seeds):
                ours = fit(drawn(shape, d, r, seed), grad, steps=30).pair.bias(other[name])
                paper = fit(drawn(shape, d, r, seed, shrink=False), grad, steps=100).pair.bias(other[name])
                ratios.append(float(ours) / float(paper))
        worst[f"{model}: 30 shrunken steps over 100 of the paper's, worst matrix"] = max(ratios)
    return worst


def main() -> None:
    """Print the curves as a table, or as JSON."""
    quick = "--quick" in sys.argv
    rows = curves(("MiniLM",), ((128, 4),)) if quick else curves()
    if "--json" in sys.argv:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{'model':8} {'matrix':24} {'shape':12} {'way':22} {'d':>4} {'r':>4} {'own':>6} {'other':>6} {'numbers':>8}")
    for row in rows:
        shape = "x".join(map(str, row.shape))
        print(
            f"{row.model:8} {row.matrix:24} {shape:12} {row.way:22} {row.d:4} {row.r:4} {row.calibration:6.3f} "
            f"{row.held_out:6.3f} {row.numbers:8}"
        )


if __name__ == "__main__":
    main()
