# SPDX-License-Identifier: Apache-2.0
"""Specialisations of the batching executor's kernels that are compiled ahead of time, as it launches them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from edgeops.batching._gpu_plan import tile
from edgeops.triton_kernels.batching import cells, linear, loss, rows_linear, segments

Entry = tuple[str, Any, dict[str, str], dict[str, object], str, dict[str, int], int, tuple[str, ...]]
CELL = {"cell": "i64"}
SPLIT = ("leaf_bwd", "gru_fwd", "treegru_fwd")  # the compiler for gfx942 splits their loads
FOUR = {"num_warps": 4}
PRODUCT = {"fp32": "fp32", "fp16": "half", "bf16": "any"}
DEPTHS = ("n", "k1", "k2")


def _rows_linear() -> Iterator[Entry]:
    """Products of rows of tables: two tables with row lists, large and small batches."""
    for name, dtype, m in (("fp32", torch.float32, 512), ("fp16", torch.float16, 512), ("fp16-few", torch.float16, 8)):
        config = rows_linear.rows_linear_config(dtype, m)
        kind = "fp32" if dtype == torch.float32 else "fp16"
        types = dict.fromkeys(("table1", "table2", "weight", "bias", "out"), kind) | {"ids1": "i32", "ids2": "i32"}
        constants: dict[str, object] = dict.fromkeys(("HAS_IDS1", "HAS_SECOND", "HAS_IDS2", "HAS_BIAS"), True)
        constants |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
        constants |= {"WEIGHT_MAJOR": 1, "PRECISION": "ieee"}
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        stack = 64 if m < 16 else 0
        yield (
            f"rows-linear-{name}",
            rows_linear._rows_linear_kernel,
            types,
            constants,
            PRODUCT[kind],
            options,
            stack,
            (),
        )


def batching_cases() -> Iterator[Entry]:
    """Name, kernel, pointers, constants, what is in the code, options, most bytes of stack, arguments of 16."""
    yield from _rows_linear()
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    rows, columns = tile(256)
    for name, dtype in kinds.items():
        constants = {"KIND": cells.KINDS[dtype], "ALIGN": 16, "BLOCK_R": rows, "BLOCK_C": columns}
        for cell, kernel in cells.KERNELS.items():
            if dtype is torch.float32 or cell == "lstm_bwd":
                wide = "wide on nvidia" if cell in SPLIT else "wide"
                wanted = wide if dtype is torch.float32 else "any"
                yield f"batch-{cell}-{name}", kernel, CELL, constants, wanted, FOUR, 0, ("h",)
    plain = {"KIND": cells.KINDS[torch.float32], "ALIGN": 1, "BLOCK_R": 32, "BLOCK_C": 16}
    yield "batch-lstm_bwd-unaligned", cells.KERNELS["lstm_bwd"], CELL, plain, "any", FOUR, 0, ()
    for name, add, to in (("fp32", True, "fp32"), ("bf16", True, "fp32"), ("fp16", False, "fp16")):
        flags = {"KIND": cells.KINDS[kinds[name]], "ALIGN": 16, "BLOCK_R": rows, "BLOCK_C": columns}
        flags |= {"ADD": add, "TO": cells.KINDS[kinds[to]]}
        wanted = "wide on nvidia" if name == "fp32" else "any"
        label = f"batch-segments-{name}-{'add' if add else 'copy'}-{to}"
        yield label, segments._segments_kernel, CELL, flags, wanted, FOUR, 0, ("width",)
    for name, m in (("fp32", 8), ("fp32", 512), ("bf16", 512), ("fp16", 8)):
        dtype = kinds[name]
        config = rows_linear.rows_linear_config(dtype, m)
        product = {"HAS_SECOND": True, "HAS_BIAS": True, "ON": False, "HAS_GUARD": True, "PRECISION": "ieee"}
        product |= {"KIND": cells.KINDS[dtype], "ALIGN": 16}
        product |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        stack = 64 if m < 16 else 0
        yield f"batch-linear-{name}-{m}", linear._linear_kernel, CELL, product, PRODUCT[name], options, stack, DEPTHS
    for name in ("fp32", "fp16"):
        wide = {"BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_M": 32 if name == "fp32" else 64, "PRECISION": "ieee"}
        flags = wide | {"KIND": cells.KINDS[kinds[name]], "ALIGN": 16, "HAS_BIAS": True, "ADD": False, "ADD_BIAS": True}
        options = {"num_warps": 4, "num_stages": 2}
        sizes = ("n", "k", "column")
        yield f"batch-wgrad-{name}", linear._wgrad_kernel, CELL, flags, PRODUCT[name], options, 64, sizes
    for name in ("fp32", "bf16"):
        scores = {"KIND": cells.KINDS[kinds[name]], "ALIGN": 1, "BLOCK_R": 64, "BLOCK_C": 16}
        for way, kernel in (("fwd", loss._cross_entropy_fwd_kernel), ("bwd", loss._cross_entropy_bwd_kernel)):
            yield f"batch-cross-entropy-{way}-{name}", kernel, CELL, scores, "any", FOUR, 0, ()
    clear = {"KIND": cells.KINDS[torch.float32], "COUNT": 2, "BLOCK_R": 4, "BLOCK_C": 256}
    yield "batch-clear", segments._clear_kernel, CELL, clear, "any", FOUR, 0, ()
    yield "batch-advance", segments._advance_kernel, CELL, {}, "any", FOUR, 0, ()
