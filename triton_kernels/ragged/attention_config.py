# SPDX-License-Identifier: Apache-2.0
"""Tile sizes of the attention kernel, fixed or timed.

The fixed tables were chosen by what the compilers report for sm_80, sm_90 and gfx942 (no spilled register, shared
memory that fits), not by time; `tests/triton/test_aot.py` holds them to that. To re-tune, run on the card in question
with `EDGEOPS_TRITON_AUTOTUNE=1` and read `chosen`. `block_m` is never tuned, so that a tile map stays valid.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton

MAX_HEAD_SIZE = 512
ARCHITECTURES = ("sm80", "sm90", "gfx942")


@dataclass(frozen=True)
class TileConfig:
    """One way to run the kernel: rows and keys per tile, padded head sizes, warps, pipeline depth."""

    block_m: int
    block_n: int
    block_d: int
    block_dv: int
    num_warps: int
    num_stages: int

    def launch(self) -> dict[str, int]:
        """The part that the tuner may replace, as launch keywords."""
        return {"BLOCK_N": self.block_n, "num_warps": self.num_warps, "num_stages": self.num_stages}

    def launch_bwd(self) -> dict[str, int]:
        """All of it, as launch keywords of a backward kernel."""
        blocks = {"BLOCK_M": self.block_m, "BLOCK_D": self.block_d, "BLOCK_DV": self.block_dv}
        return {**blocks, **self.launch()}


# (architecture, bytes per element) -> head size up to -> (block_m, block_n, num_warps, num_stages)
_TABLES = {
    ("sm80", 2): {64: (128, 64, 8, 3), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2), 512: (32, 32, 8, 1)},
    ("sm90", 2): {64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2), 512: (32, 32, 8, 1)},
    ("gfx942", 2): {64: (128, 64, 4, 1), 128: (64, 64, 4, 1), 256: (64, 32, 4, 1), 512: (32, 32, 4, 1)},
    ("sm80", 4): {64: (64, 32, 8, 2), 128: (32, 32, 4, 2), 256: (16, 16, 8, 1), 512: (16, 16, 16, 1)},
    ("sm90", 4): {64: (64, 32, 8, 2), 128: (32, 16, 8, 2), 256: (16, 16, 8, 1), 512: (16, 16, 16, 1)},
    ("gfx942", 4): {64: (64, 32, 4, 1), 128: (32, 32, 4, 1), 256: (32, 16, 8, 1), 512: (16, 16, 8, 1)},
}
# the same for backward, by keys (dk and dv) and by rows (dq and dbias): three and two products share a tile
_BY_KEY = {
    ("sm80", 2): {64: (32, 128, 8, 2), 128: (32, 64, 8, 1), 256: (16, 32, 8, 1), 512: (16, 16, 8, 1)},
    ("sm90", 2): {64: (32, 128, 8, 2), 128: (32, 64, 8, 1), 256: (16, 32, 8, 1), 512: (16, 16, 8, 1)},
    ("gfx942", 2): {64: (32, 64, 4, 1), 128: (32, 64, 4, 1), 256: (16, 32, 4, 1), 512: (16, 16, 4, 1)},
    ("sm80", 4): {64: (32, 32, 8, 1), 128: (16, 32, 8, 1), 256: (16, 16, 8, 1), 512: (16, 16, 16, 1)},
    ("sm90", 4): {64: (32, 32, 8, 1), 128: (16, 32, 8, 1), 256: (16, 16, 8, 1), 512: (16, 16, 16, 1)},
    ("gfx942", 4): {64: (32, 32, 4, 1), 128: (16, 32, 4, 1), 256: (16, 16, 4, 1), 512: (16, 16, 4, 1)},
}
_BY_ROW = {
    ("sm80", 2): {64: (64, 64, 8, 2), 128: (64, 32, 8, 1), 256: (32, 16, 8, 1), 512: (16, 16, 8, 1)},
    ("sm90", 2): {64: (64, 64, 8, 2), 128: (64, 32, 8, 1), 256: (32, 16, 8, 1), 512: (16, 16, 8, 1)},
    ("gfx942", 2): {64: (64, 32, 4, 1), 128: (64, 32, 4, 1), 256: (32, 16, 4, 1), 512: (16, 16, 4, 1)},
    ("sm80", 4): {64: (32, 32, 8, 1), 128: (32, 16, 8, 1), 256: (16, 16, 8, 1), 512: (16, 16, 16, 1)},
    ("sm90", 4): {64: (32, 32, 8, 1), 128: (32, 16, 8, 1), 256: (16, 16, 8, 1), 512: (16, 16, 16, 1)},
    ("gfx942", 4): {64: (32, 32, 4, 1), 128: (32, 16, 4, 1), 256: (16, 16, 4, 1), 512: (16, 16, 4, 1)},
}
# a bias tile takes registers and pipeline slots of its own
_BY_KEY_WITH_BIAS = {
    ("sm80", 2): {64: (32, 64, 8, 1)},
    ("sm90", 2): {64: (32, 64, 8, 1), 128: (32, 32, 4, 1)},
}
_WITH_BIAS = {
    ("sm80", 2): {64: (128, 32, 8, 3)},
    ("sm90", 2): {64: (128, 32, 8, 3), 128: (128, 32, 8, 2)},
}


def architecture(device: torch.device) -> str:
    """Which table serves `device`: one of `ARCHITECTURES`. CPU tensors (the interpreter) take the sm_80 one."""
    if torch.version.hip:
        return "gfx942"
    if device.type != "cuda":
        return "sm80"
    return "sm90" if torch.cuda.get_device_capability(device)[0] in (9, 10) else "sm80"


def attention_config(
    dtype: torch.dtype, head_size: int, head_size_v: int, *, has_bias: bool = False, arch: str = "sm80"
) -> TileConfig:
    """The fixed configuration of one call.

    Args:
        dtype: float32, float16 or bfloat16.
        head_size, head_size_v: 1 to 512.
        has_bias: whether a bias is added.
        arch: see `architecture`.
    """
    # tl.dot takes no side below 16
    block_d = max(triton.next_power_of_2(head_size), 16)
    block_dv = max(triton.next_power_of_2(head_size_v), 16)
    table, widest = (arch, dtype.itemsize), max(block_d, block_dv, 64)
    choice = _WITH_BIAS.get(table, {}).get(widest) if has_bias else None
    block_m, block_n, num_warps, num_stages = choice or _TABLES[table][widest]
    return TileConfig(block_m, block_n, block_d, block_dv, num_warps, num_stages)


def attention_bwd_config(
    dtype: torch.dtype, head_size: int, head_size_v: int, *, has_bias: bool = False, arch: str = "sm80"
) -> tuple[TileConfig, TileConfig]:
    """The fixed configurations of a backward call: of the kernel by keys, and of those by rows.

    Args:
        dtype, head_size, head_size_v, has_bias, arch: as for `attention_config`.
    """
    block_d = max(triton.next_power_of_2(head_size), 16)
    block_dv = max(triton.next_power_of_2(head_size_v), 16)
    table, widest = (arch, dtype.itemsize), max(block_d, block_dv, 64)
    by_key = _BY_KEY_WITH_BIAS.get(table, {}).get(widest) if has_bias else None
    by_key, by_row = by_key or _BY_KEY[table][widest], _BY_ROW[table][widest]
    return (
        TileConfig(*by_key[:2], block_d, block_dv, *by_key[2:]),
        TileConfig(*by_row[:2], block_d, block_dv, *by_row[2:]),
    )


def bwd_shared_memory(dtype: torch.dtype, head_size: int, head_size_v: int) -> int:
    """About how many bytes of shared memory the largest backward kernel takes on an NVIDIA GPU."""
    configs = attention_bwd_config(dtype, head_size, head_size_v)
    rows = max(c.block_m + c.block_n for c in configs)
    # two tiles of rows, two of keys, and room for a tile of scores
    return dtype.itemsize * rows * (configs[0].block_d + configs[0].block_dv) + 1024


def _candidates() -> list[Any]:
    return [
        triton.Config({"BLOCK_N": block_n}, num_warps=num_warps, num_stages=num_stages)
        for block_n in (16, 32, 64, 128)
        for num_warps in (4, 8)
        for num_stages in (1, 2, 3)
    ]


def _prune(configs: list[Any], named_args: dict[str, Any], **constants: Any) -> list[Any]:
    """Keep what is near the fixed choice and fits in shared memory; at most eight are compiled and timed."""
    q = named_args["q"]
    arch = architecture(q.device)
    fixed = attention_config(q.dtype, constants["D"], constants["DV"], has_bias=constants["HAS_BIAS"], arch=arch)
    limit = 64 * 1024 if arch == "gfx942" else 96 * 1024

    def shared(c: Any) -> int:
        keys = c.num_stages * c.kwargs["BLOCK_N"]
        bias = 4 * keys * fixed.block_m if constants["HAS_BIAS"] else 0
        return q.dtype.itemsize * (fixed.block_m * fixed.block_d + keys * (fixed.block_d + fixed.block_dv)) + bias

    def distance(c: Any) -> int:
        scale = max(c.kwargs["BLOCK_N"], fixed.block_n) // min(c.kwargs["BLOCK_N"], fixed.block_n)
        return scale.bit_length() - 1 + (c.num_warps != fixed.num_warps) + abs(c.num_stages - fixed.num_stages)

    fitting = [c for c in configs if shared(c) <= limit]
    return sorted(fitting or configs[:1], key=distance)[:8]


# what was timed in this process: kind of call -> launch keywords
chosen: dict[tuple[Any, ...], dict[str, int]] = {}


@functools.cache
def _tuner(kernel: Any) -> Any:
    key = ["D", "DV", "HAS_BIAS", "HAS_LEFT", "HAS_RIGHT", "DROPOUT", "PRECISION", "length_bucket"]
    return triton.autotune(_candidates(), key=key, prune_configs_by={"early_config_prune": _prune})(kernel)


def tune(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> dict[str, int]:
    """Time the candidates on these arguments, run the best one, and return its launch keywords."""
    tuner = _tuner(kernel)
    tuner[grid](*arguments, **constants)
    best = tuner.best_config
    return {**best.kwargs, "num_warps": best.num_warps, "num_stages": best.num_stages}
