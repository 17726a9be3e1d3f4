# SPDX-License-Identifier: Apache-2.0
"""How long an encoder takes on a batch of given lengths: a few rates and fixed costs, typical ones or measured now.

Time of one layer = position-wise matrix products + attention + element-wise passes + calls. Rates follow the form
`rate * n / (n + half)`: half speed at `half` rows, full speed far above. The defaults were fitted to MiniLM-L6 on 640
STS-B sentences (`bench` workload "minilm", one AVX2 core); `CostModel.measured()` tunes them to the machine at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgeops.ragged.flops import EncoderShape, Lengths


@dataclass(frozen=True)
class CostModel:
    """Speeds of one machine. The defaults are those of one AVX2 core of a cloud server in float32.

    Attributes:
        gemm_gflops: large matrix products, 1e9 FLOP/s (a multiply and an add count as two).
        gemm_half_rows: rows at which they reach half of that.
        padded_gflops, padded_half: padded attention, and the length at which it reaches half.
        ragged_gflops, ragged_half: the same for ragged attention.
        element_ns: one pass over one element of activations, GELU included, in separate operators.
        fused_element_ns: the same in the fused kernels, which make fewer passes.
        call_us: fixed cost of one operator call.
        batch_us: fixed cost of building the layout of a batch.
    """

    gemm_gflops: float = 72.0
    gemm_half_rows: float = 7.0
    padded_gflops: float = 66.0
    padded_half: float = 30.0
    ragged_gflops: float = 62.0
    ragged_half: float = 14.0
    element_ns: float = 1.2
    fused_element_ns: float = 1.0
    call_us: float = 6.0
    batch_us: float = 150.0

    def padded_seconds(self, lengths: Lengths, shape: EncoderShape, layers: int) -> float:
        """A batch padded to its longest sequence, through all layers."""
        if not len(lengths) or not lengths.max():
            return 0.0
        batch, longest = len(lengths), int(lengths.max())
        linear = self._linear(batch * longest, shape)
        pairs = 4.0 * shape.attention_width * batch * longest**2
        attention = pairs * (1.0 + self.padded_half / longest) / self.padded_gflops * 1e-9
        passes = self.element_ns * 1e-9 * (shape.ff_size + 8 * shape.hidden_size) * batch * longest
        return layers * (linear + attention + passes + _PADDED_CALLS * self.call_us * 1e-6)

    def packed_seconds(self, lengths: Lengths, shape: EncoderShape, layers: int) -> float:
        """A batch packed once, through all layers, and padded again."""
        tokens = int(lengths.sum())
        if not tokens:
            return 0.0
        pairs = 4.0 * shape.attention_width * float((lengths * (lengths + self.ragged_half)).sum())
        attention = pairs / self.ragged_gflops * 1e-9
        passes = self.fused_element_ns * 1e-9 * (shape.ff_size + 2 * shape.hidden_size) * tokens
        positions = len(lengths) * int(lengths.max())
        once = self.batch_us * 1e-6 + self.element_ns * 1e-9 * shape.hidden_size * positions
        calls = _PACKED_CALLS * self.call_us * 1e-6
        return layers * (self._linear(tokens, shape) + attention + passes + calls) + once

    def _linear(self, rows: int, shape: EncoderShape) -> float:
        width = 4 * shape.hidden_size * shape.attention_width + 2 * shape.hidden_size * shape.ff_size
        return 2.0 * width * (rows + self.gemm_half_rows) / self.gemm_gflops * 1e-9

    @classmethod
    def measured(cls, rounds: int = 5) -> CostModel:
        """Measure the rates on this machine, now, with the current number of threads (about a second)."""
        import torch
        from torch.nn import functional as F

        from edgeops.perf.clock import interleave
        from edgeops.ragged.attention import ragged_attention
        from edgeops.ragged.fused import add_layer_norm, bias_gelu

        heads, dim, width, ff = 8, 64, 512, 2048
        generator = torch.Generator().manual_seed(0)

        def random(*sizes: int) -> torch.Tensor:
            return torch.randn(*sizes, generator=generator)

        x, weight, hidden, gain = random(512, width), random(ff, width), random(512, ff), random(ff)
        few = x[:4].contiguous()
        work: dict[str, Callable[[], object]] = {
            "gemm": lambda: F.linear(x, weight),
            "gemm few": lambda: F.linear(few, weight),
            "call": lambda: torch.neg(gain[:1]),
            "passes": lambda: (F.gelu(hidden), F.layer_norm(x + x, (width,), gain[:width], gain[:width])),
            "fused": lambda: (bias_gelu(hidden, gain), add_layer_norm(x, x, gain[:width], gain[:width])),
        }
        for length in (16, 256):
            count = 4096 // length
            q = random(count, heads, length, dim)
            mask = torch.ones(count, 1, 1, length, dtype=torch.bool)
            rows = random(count * length, heads, dim)
            offsets = torch.arange(count + 1) * length
            work[f"padded {length}"] = partial(F.scaled_dot_product_attention, q, q, q, attn_mask=mask)
            work[f"ragged {length}"] = partial(ragged_attention, rows, rows, rows, offsets, offsets, length, length)
        with torch.inference_mode():
            timed = interleave(work, rounds=rounds, warmup=1, min_block_s=0.005)
        seconds = {name: samples.median for name, samples in timed.items()}
        flops = 2.0 * width * ff
        gemm, half_rows = _rate(512, seconds["gemm"] / flops, 4, seconds["gemm few"] / flops)
        attention = {}
        for kind in ("padded", "ragged"):
            per_row = [seconds[f"{kind} {length}"] / (4.0 * width * 4096) for length in (256, 16)]
            attention[kind] = _rate(256, per_row[0], 16, per_row[1])
        elements = 512 * (ff + 2 * width)
        return cls(
            gemm_gflops=gemm,
            gemm_half_rows=half_rows,
            padded_gflops=attention["padded"][0],
            padded_half=attention["padded"][1],
            ragged_gflops=attention["ragged"][0],
            ragged_half=attention["ragged"][1],
            element_ns=seconds["passes"] / elements * 1e9,
            fused_element_ns=seconds["fused"] / elements * 1e9,
            call_us=3.0 * seconds["call"] * 1e6,
        )


_PADDED_CALLS = 14
_PACKED_CALLS = 9


def _rate(many: int, seconds_many: float, few: int, seconds_few: float) -> tuple[float, float]:
    """Rate in 1e9/s and `half` from the seconds per unit of work at two sizes: seconds(n) = (n + half) / rate."""
    slope = max((seconds_many - seconds_few) / (many - few), 1e-15)
    return 1e-9 / slope, float(np.clip(seconds_few / slope - few, 0.0, 1024.0))
