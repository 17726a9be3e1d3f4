# SPDX-License-Identifier: Apache-2.0
"""What projectors keep of real gradients, measured: `python -m bench.offload.projectors`.

Items 9 and 11 of the offload specification, section 14: learned, random and singular-vector pairs over (d, r) on
matrices of a 384- and a 576-wide model, on the gradient they were made of and on one of other text; and how many steps
a shrunken draw needs where the paper's takes 100.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.offload.encoder import minilm_gradients, smollm_gradients
from edgeops.offload import Pair, SparseProjector, fit
from edgeops.offload.pair import svd_pair

MODELS: dict[str, Callable[[int], dict[str, Tensor]]] = {"MiniLM": minilm_gradients, "SmolLM2": smollm_gradients}
STEPS, PAPER_STEPS = 30, 100
GRID = ((64, 4), (128, 2), (128, 4), (128, 8), (192, 4), (256, 4))
OURS, PAPER = "learned", "learned, paper's way"
WIDE, THIN = "svd of width d", "svd of width 2r"


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
    seconds: float
    """Of the process, to make the pair."""


def drawn(shape: tuple[int, int], d: int, r: int, seed: int, shrink: bool = True) -> Pair:
    """A random sparse pair."""
    g = torch.Generator().manual_seed(seed)
    return Pair(*(SparseProjector.draw(n, d, r, shrink=shrink, generator=g) for n in shape))


def rows_of(model: str, name: str, own: Tensor, other: Tensor, d: int, r: int) -> list[Row]:
    """Every way on one matrix at one (d, r): singular vectors at the same d (same bytes moved) and the same r."""
    shape = (own.shape[0], own.shape[1])
    ways: dict[str, tuple[Callable[[], Pair], int, int]] = {
        "random": (lambda: drawn(shape, d, r, 0), d, r),
        "random, paper's scale": (lambda: drawn(shape, d, r, 0, shrink=False), d, r),
        OURS: (lambda: fit(drawn(shape, d, r, 0), own, steps=STEPS).pair, d, r),
        PAPER: (lambda: paper_fit(own, d, r, 0), d, r),
        WIDE: (lambda: svd_pair(own, (d, d)), d, d),
        THIN: (lambda: svd_pair(own, (2 * r, 2 * r)), 2 * r, 2 * r),
    }
    rows = []
    for way, (make, width, entries) in ways.items():
        begun = time.process_time()
        pair = make()
        seconds = time.process_time() - begun
        biases = float(pair.bias(own)), float(pair.bias(other))
        rows.append(Row(model, name, shape, way, width, entries, *biases, numbers(pair), seconds))
    return rows


def paper_fit(grad: Tensor, d: int, r: int, seed: int) -> Pair:
    """The paper's draw, learned with its Adam."""
    return fit(drawn((grad.shape[0], grad.shape[1]), d, r, seed, shrink=False), grad, steps=PAPER_STEPS, lr=0.1).pair


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
                    rows += rows_of(model, name, own[name], other[name], d, r)
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
                ours = fit(drawn(shape, d, r, seed), grad, steps=STEPS).pair.bias(other[name])
                paper = paper_fit(grad, d, r, seed).bias(other[name])
                ratios.append(float(ours) / float(paper))
        worst[f"{model}: 30 shrunken steps over 100 of the paper's, worst matrix"] = max(ratios)
    return worst


def summary(rows: list[Row]) -> list[str]:
    """Where our pair keeps more of a held-out gradient than the others, and what learning took, as lines of text."""
    places: dict[tuple[str, str, int, int], dict[str, Row]] = {}
    d = r = 0
    for row in rows:
        if row.way in (OURS, PAPER):
            d, r = row.d, row.r
        if row.way in (OURS, PAPER, WIDE, THIN):
            places.setdefault((row.model, row.matrix, d, r), {})[row.way] = row
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        mine = [ways for (name, *_), ways in places.items() if name == model]
        for other in (PAPER, WIDE, THIN):
            wins = sum(ways[OURS].held_out < ways[other].held_out for ways in mine)
            own = statistics.median(ways[OURS].calibration / ways[other].calibration for ways in mine)
            held = statistics.median(ways[OURS].held_out / ways[other].held_out for ways in mine)
            time_ = statistics.median(ways[OURS].seconds / ways[other].seconds for ways in mine)
            lines.append(
                f"{model}: held out, learned keeps more than {other} in {wins} of {len(mine)}; median ratio of biases "
                f"{own:.2f} own, {held:.2f} held out; of process times {time_:.2f}"
            )
    return lines


def markdown(rows: list[Row]) -> str:
    """All of it as a page."""
    head = "| model | matrix | shape | way | d | r | own | held out | numbers kept | process s |"
    lines = [
        "# What projectors keep of real gradients",
        "",
        "Rendered by `python -m bench.offload.projectors --markdown FILE` (measured on a loaded machine, one thread: "
        "biases are exact, times indicative). Relative bias `||P P^T G Q Q^T - G|| / ||G||` on the gradient that a "
        "pair was made of and on a gradient of other text; 1 is what sending nothing would give. A singular-vector "
        "pair of width d moves as many bytes a step as the sparse one of that d and keeps d numbers a row; one of "
        "width 2r keeps as many numbers a row as the sparse pair's values and indices.",
        "",
        *(f"- {line}" for line in summary(rows)),
        "",
        head,
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        lines.append(
            f"| {row.model} | {row.matrix} | {shape} | {row.way} | {row.d} | {row.r} | {row.calibration:.3f} | "
            f"{row.held_out:.3f} | {row.numbers} | {row.seconds:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the curves as a table, or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one model, one (d, r)")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--markdown", type=Path, help="write a page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = curves(("MiniLM",), ((128, 4),)) if given.quick else curves()
    if given.markdown:
        given.markdown.write_text(markdown(rows))
    if given.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{'model':8} {'matrix':24} {'shape':12} {'way':22} {'d':>4} {'r':>4} {'own':>6} {'other':>6} {'numbers':>8}")
    for row in rows:
        shape = "x".join(map(str, row.shape))
        print(
            f"{row.model:8} {row.matrix:24} {shape:12} {row.way:22} {row.d:4} {row.r:4} {row.calibration:6.3f} "
            f"{row.held_out:6.3f} {row.numbers:8}"
        )
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
