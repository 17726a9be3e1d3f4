# SPDX-License-Identifier: Apache-2.0
"""What must be shown, as data: item, figure, bound. `bench.check` measures the figures and compares.

The items C and G are those of the ragged specification, section 14; C5, C6 and C9 stand at raised bounds. Those called
B belong to the batching specification, section 13: B1 to B4 and B6 to B9 are its items of these numbers (B2, B7 and B8
at raised bounds), B10 the gradients of item 8, B11 and B12 the lattices and the grid of item 7, B13 its item 10, BG its
items on one GPU. Those called O are the items of the offload specification, section 14; OL is what a layer may cost.
Those called D are the items of the drift specification, section 14.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One bound: `figure` must be at least (`">="`) or at most (`"<="`) `bound`, in `unit`."""

    item: str
    figure: str
    rule: str
    bound: float
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether a value meets the bound; NaN never does.

        >>> Target("C5", "x", ">=", 2.0).met(2.5), Target("C5", "x", "<=", 2.0).met(float("nan"))
        (True, False)
        """
        return value >= self.bound if self.rule == ">=" else value <= self.bound


VGEMM_SETS = ("4 paper sizes", "64 of 64..384", "128 of 16..127", "256 of 4..31")

TARGETS = (
    Target("C1", "random dimension graphs that differ from enumeration", "<=", 0),
    Target("C1", "worked example offsets that are not 0..9", "<=", 0),
    Target("C1", "index integers beyond B + 1 for (B, l, H, l)", "<=", 0),
    Target("C2", "largest deviation from the FLOP ratios", "<=", 0.002),
    Target("C2", "largest deviation from the memory ratios", "<=", 0.005),
    Target("C3", "largest absolute error of the output", "<=", 2e-6),
    Target("C3", "largest relative error of a gradient", "<=", 1e-5),
    Target("C3", "gradcheck and opcheck failures", "<=", 0),
    Target("C3", "graphs compiled for four batches", "<=", 2),
    Target("C4", "outputs that change bitwise: alone, reordered, 2 threads", "<=", 0),
    Target("C5", "geomean over the sdpa loop", ">=", 2.0, "x"),
    Target("C5", "geomean over padded sdpa", ">=", 2.5, "x"),
    Target("C5", "worst list over the better peer", ">=", 1.0, "x"),
    Target("C5", "CoLA over the sdpa loop", ">=", 2.0, "x"),
    Target("C5", "MNLI over the sdpa loop", ">=", 2.0, "x"),
    Target("C5", "SQuAD share of the sgemm roof", ">=", 0.75),
    Target("C5", "RACE share of the sgemm roof", ">=", 0.75),
    Target("C5", "Wiki512 share of the sgemm roof", ">=", 0.75),
    Target("C5", "CoLA share of the sgemm roof", ">=", 0.30),
    Target("C6", "geomean over the sdpa loop", ">=", 1.8, "x"),
    Target("C6", "geomean over padded sdpa", ">=", 2.5, "x"),
    Target("C6", "worst list over the better peer", ">=", 1.0, "x"),
    Target("C7", "geomean over packed + sdpa loop, short lists", ">=", 1.08, "x"),
    Target("C7", "worst list over packed + sdpa loop", ">=", 1.0, "x"),
    Target("C7", "geomean over padded sdpa", ">=", 1.6, "x"),
    Target("C7", "RACE share of the sgemm roof", ">=", 0.80),
    Target("C8", "MNLI over nn.TransformerEncoderLayer", ">=", 1.9, "x"),
    Target("C8", "worst short list over packed + sdpa loop", ">=", 1.05, "x"),
    Target("C9", "STS-B over padded, file order", ">=", 1.9, "x"),
    Target("C9", "STS-B over padded, sorted", ">=", 1.12, "x"),
    Target("C9", "largest difference of an embedding", "<=", 1e-5),
    *(Target("C10", f"{name} over mkl sgemm_batch", ">=", 0.95, "x") for name in VGEMM_SETS),
    Target("C10", "256 of 4..31 over the mm loop", ">=", 2.0, "x"),
    Target("C11", "trmm over dense mm, 2048", ">=", 1.6, "x"),
    Target("C11", "trmm over dense mm, 512", ">=", 1.3, "x"),
    Target("C11", "tradd over half the dense time, 2048", "<=", 1.2, "x"),
    Target("C11", "trmul over half the dense time, 2048", "<=", 1.2, "x"),
    Target("C12", "causal over unmasked, RACE", ">=", 1.5, "x"),
    Target("C12", "causal over unmasked, MNLI", ">=", 1.25, "x"),
    Target("C13", "tensors kept for backward over the column, worst list", "<=", 1.05, "x"),
    Target("C14", "layout share of a layer, worst list but CoLA", "<=", 0.005),
    Target("C14", "layout share of a layer, CoLA", "<=", 0.02),
    Target("C15", "worst speed-up of 2 threads over 1", ">=", 1.8, "x"),
    Target("C16", "varlen_attn calls that fail or exceed the error budget", "<=", 0),
    Target("G1", "forward: worst list, speed-up over padded sdpa per pair ratio", ">=", 0.85, "x"),
    Target("G1", "forward and backward: worst list, speed-up over padded sdpa per pair ratio", ">=", 0.85, "x"),
    Target("G1", "largest relative error of the output", "<=", 1e-5),
    Target("G1", "largest relative error of a gradient", "<=", 1e-5),
    Target("G2", "worst list, time over varlen_attn", "<=", 1.05, "x"),
    Target("G3", "batch 32: geomean over padded sdpa", ">=", 1.5, "x"),
    Target("G3", "batch 64: geomean over padded sdpa", ">=", 1.6, "x"),
    Target("G3", "batch 128: geomean over padded sdpa", ">=", 1.7, "x"),
    Target("G3", "geomean over packed linear + padded attention", ">=", 1.05, "x"),
    Target("G3", "waits for the GPU in three layers", "<=", 0),
    Target("G4", "bias: worst list, time over flash without bias", "<=", 1.5, "x"),
    Target("G4", "causal: worst list, time over flash without bias", "<=", 1.5, "x"),
    Target("G6", "SQuAD: longest first over in order", ">=", 1.01, "x"),
    Target("G6", "one long causal: longest first over in order", ">=", 1.01, "x"),
    # the items of the offload specification, section 14, that need a GPU
    Target("OG18", "1.3B in 4 GiB: steps of LSPAdamW", ">=", 2),
    Target("OG18", "1.3B in 4 GiB: steps of full AdamW", "<=", 0),
    Target("OG18", "7B in 24 GiB: steps of LSPAdamW", ">=", 2),
    Target("OG18", "7B in 24 GiB: steps of full AdamW", "<=", 0),
    Target("OG19", "pinned copies down", ">=", 15.0, "GB/s"),
    Target("OG19", "pinned copies up", ">=", 15.0, "GB/s"),
    Target("OG19", "throttled copies, deviation from 12 GB/s", "<=", 0.05),
    Target("OG20", "d = n/2: worst layer, time over the whole gradient's", "<=", 1.02, "x"),
    Target("OG20", "d = n/4: worst layer, time over the whole gradient's", "<=", 0.95, "x"),
    Target("OG21", "worst weight, share of a copy's bandwidth", ">=", 0.7),
    Target("OG22", "step over native, d = 512", "<=", 1.1, "x"),
    Target("OG22", "over ZeRO-Offload", ">=", 2.0, "x"),
    Target("OG23", "longest gap of compute over the longest update of a layer", "<=", 1, "x"),
    Target("OG23", "stages that never run beside compute", "<=", 0),
    Target("OG24", "held-out loss over full AdamW's", "<=", 1.01, "x"),
    Target("OG24", "full AdamW: held-out loss over that before training", "<=", 0.95, "x"),
    Target("OG24", "bytes moved a step over whole gradients'", "<=", 0.25, "x"),
    Target("BG1", "largest deviation from the CPU, float32", "<=", 1e-4),
    Target("BG1", "largest deviation from the CPU, bfloat16", "<=", 0.1),
    Target("BG2", "largest share without a kernel", "<=", 0.2),
    Target("BG2", "uploads of a flush", "<=", 1),
    Target("BG2", "waits of the host", "<=", 0),
    Target("BG3", "lattices, least over copies", ">=", 2, "x"),
    Target("BG3", "least over eager", ">=", 5, "x"),
    Target("BG4", "captures after warm-up", "<=", 0),
    Target("BG5", "LatticeLSTM, training over by hand", ">=", 3, "x"),
    Target("DG1", "stable step, over a loop over modules", ">=", 50, "x"),
    Target("DG1", "step with trials, over a loop over modules", ">=", 50, "x"),
    Target("DG1", "decisions that differ from the CPU's", "<=", 0),
    Target("DG2", "entropy: error at the end above the source's", ">=", 0.1),
    Target("DG2", "guarded, no labels: error at the end above the source's", "<=", 0.1),
    Target("DG2", "guarded, labels: error at the end above the source's", "<=", 0.1),
    Target("DG3", "a trial's step over a stable one", "<=", 1.6, "x"),
    Target("B1", "published figures that differ", "<=", 0),
    Target("B1", "graphs where sufficient needs more than published", "<=", 0),
    Target("B1", "graphs where lookahead needs more than sufficient", "<=", 0),
    Target("B1", "graphs where auto is not the least", "<=", 0),
    Target("B1", "random graphs with fewer batches than the bound", "<=", 0),
    Target("B2", "sufficient, slowest graph of 2,000 to 50,000 nodes", "<=", 0.12, "µs"),
    Target("B2", "lookahead, slowest graph of 2,000 to 50,000 nodes", "<=", 0.15, "µs"),
    Target("B3", "sufficient, dev32", "<=", 384),
    Target("B3", "sufficient, dev128", "<=", 445),
    Target("B3", "auto, ragged sums, dev32", "<=", 346),
    Target("B3", "auto, ragged sums, dev128", "<=", 360),
    Target("B3", "beam over the bound, ragged sums, dev32", "<=", 1, "x"),
    Target("B4", "iterations on trees", "<=", 100),
    Target("B4", "iterations on taggers", "<=", 100),
    Target("B4", "trees over the bound", "<=", 1, "x"),
    Target("B4", "taggers over the bound", "<=", 1, "x"),
    Target("B4", "batches on trees of two kinds", "<=", 29),
    Target("B6", "one operand, one result", "<=", 0.15, "µs"),
    Target("B6", "four operands, two results", "<=", 0.5, "µs"),
    Target("B7", "over DyNet, H 64", ">=", 4, "x"),
    Target("B7", "over DyNet, H 256", ">=", 2, "x"),
    Target("B7", "over by hand, H 64", ">=", 1, "x"),
    Target("B7", "over by hand, H 256", ">=", 1, "x"),
    Target("B7", "over eager, H 64", ">=", 10, "x"),
    Target("B7", "over eager, H 256", ">=", 10, "x"),
    Target("B8", "over DyNet, H 64", ">=", 3, "x"),
    Target("B8", "over DyNet, H 256", ">=", 1.8, "x"),
    Target("B8", "over by hand, H 64", ">=", 1, "x"),
    Target("B8", "over by hand, H 256", ">=", 1, "x"),
    Target("B8", "over eager, H 64", ">=", 10, "x"),
    Target("B8", "over eager, H 256", ">=", 10, "x"),
    Target("B9", "DRNN, over one by one", ">=", 3, "x"),
    Target("B9", "StackRNN, over one by one", ">=", 3, "x"),
    Target("B9", "early exit, over one by one", ">=", 3, "x"),
    Target("B9", "DRNN, flushes over the longest's decisions", "<=", 1, "x"),
    Target("B9", "StackRNN, flushes over the longest's decisions", "<=", 1, "x"),
    Target("B9", "early exit, flushes over the longest's decisions", "<=", 1, "x"),
    Target("B10", "largest deviation from eager, float32", "<=", 1e-4),
    Target("B10", "largest deviation from eager, float64", "<=", 1e-9),
    Target("B11", "over DyNet, H 64", ">=", 2.5, "x"),
    Target("B11", "over DyNet, H 256", ">=", 2.5, "x"),
    Target("B12", "least over by hand, inference", ">=", 1, "x"),
    Target("B12", "least over by hand, training", ">=", 1, "x"),
    Target("B13", "inline depth: batches over the rung before, TreeLSTM", "<=", 0.25, "x"),
    Target("B13", "hoisting: batches over the rung before, BiLSTM", "<=", 0.85, "x"),
    Target("B13", "phases: batches over the rung before, BiLSTM", "<=", 0.2, "x"),
    Target("B13", "phases: batches over the rung before, early exit", "<=", 0.65, "x"),
    Target("B13", "ghost steps: batches over the rung before, random trees", "<=", 0.6, "x"),
    Target("B13", "coarsening: batches over the rung before, random trees", "<=", 1, "x"),
    Target("B13", "coarsening: scheduled nodes over the rung before, random trees", "<=", 0.6, "x"),
    Target("B13", "coarsening: cost of scheduling over that without, random trees", "<=", 1, "x"),
    Target("B13", "fused cells: batches over the rung before, TreeLSTM", "<=", 1, "x"),
    Target("B13", "fused cells: copied bytes over the rung before, TreeLSTM", "<=", 1, "x"),
    Target("B13", "fused gather: batches over the rung before, TreeLSTM", "<=", 1, "x"),
    Target("B13", "fused gather: copied bytes over the rung before, TreeLSTM", "<=", 0.6, "x"),
    Target("B13", "sufficient: batches over the best rung, worst program", "<=", 1, "x"),
    Target("O3", "Adam's direction over torch fused AdamW, 16.8M", ">=", 0.9, "x"),
    Target("O3", "Adam's direction over torch foreach AdamW, 16.8M", ">=", 5.0, "x"),
    Target("OL", "forward and backward over nn.Linear, 1024", "<=", 0.85, "x"),
    *(
        Target("O9", f"{name}: 30 shrunken steps over 100 of the paper's, worst matrix", "<=", 1.0)
        for name in ("MiniLM", "SmolLM2")
    ),
    *(
        Target("O10", f"{start}: projected moments, loss above that of {other}", "<=", 0.0)
        for start in ("a new draw", "the old pair")
        for other in ("reset", "reset_with_t")
    ),
    *(
        target
        for task in ("CoLA", "MRPC", "SST-2")
        for target in (
            Target("O12", f"{task}: points of adamw above LSP", "<=", 1.0),
            Target("O12", f"{task}: points of lora above LSP", "<=", 0.0),
            Target("O12", f"{task}: points of galore above LSP", "<=", 0.0),
            Target("O12", f"{task}: traffic of full AdamW over LSP's", ">=", 4.0, "x"),
        )
    ),
    Target("O13", "points lost by bfloat16, rounded by chance", "<=", 1.0),
    Target("O14", "largest difference, simulated to emulated", "<=", 0.05),
    Target("O15", "d=512 over fair ZeRO, least where that is 1.9x slower", ">=", 2.0, "x"),
    Target("O15", "share of native where all hides, least", ">=", 0.95),
    Target("O15", "d=512 over fair ZeRO, emulated over simulated, off by", "<=", 0.05),
    Target("O15", "7B, authors' conventions, d <= 1024 and native, off by", "<=", 0.1),
    Target("O16", "choice over the best fixed policy, worst of 50", "<=", 1.02, "x"),
    Target("O16", "the same, chosen by durations 5 % off", "<=", 1.02, "x"),
    Target("D1", "listed figures further off than the bound", "<=", 0),
    Target("D4", "mean error of form D over nine sets", "<=", 0.2165),
    Target("D4", "most points behind the best other, run here", "<=", 0.5),
    Target("D4", "most points behind the best other, listed", "<=", 0.5),
    Target("D4", "SINE1", "<=", 0.18),
    Target("D5", "Hyper-fast", "<=", 0.165),
    Target("D5", "Circles", "<=", 0.365),
    Target("D6", "mean error over nine sets, shared steps", "<=", 0.229),
    Target("D6", "SEA20", "<=", 0.245),
    Target("D6", "PowerSupply", "<=", 0.306),
    *(Target("D10", f"{name}, 100,000 rows of SEA", "<=", 0.1, "s") for name in ("DS-A", "DS-B", "DS-D")),
    Target("D10", "outside a trial: over the plain loop", "<=", 1.05, "x"),
    Target("D10", "in a trial: over the plain loop", "<=", 2.2, "x"),
    Target("overhead", "slowest public op without grad", "<=", 6.0, "µs"),
    Target("overhead", "slowest public op with grad", "<=", 20.0, "µs"),
    Target("import", "import edgeops on top of torch", "<=", 0.3, "s"),
    Target("import", "optional packages that it imports", "<=", 0),
)


def items() -> tuple[str, ...]:
    """Names of the items, in order."""
    return tuple(dict.fromkeys(target.item for target in TARGETS))


def of(item: str) -> tuple[Target, ...]:
    """The targets of one item.

    Raises:
        ValueError: no such item.
    """
    found = tuple(target for target in TARGETS if target.item == item)
    if not found:
        raise ValueError(f"targets: item must be one of {', '.join(items())}; got {item!r}. Pick one of them.")
    return found
