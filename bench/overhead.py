# SPDX-License-Identifier: Apache-2.0
"""What a call and an import cost: public ops on 64 elements (smallest CPU time per call), and `import edgeops`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from edgeops import perf
from edgeops.ragged import (
    RaggedLayout,
    add_layer_norm,
    bias_gelu,
    grouped_mm,
    pack,
    ragged_attention,
    ragged_pool,
    unpack,
    vgemm,
    vgemm_packed,
)

OPTIONAL = ("triton", "transformers", "matplotlib", "rich", "typer", "jinja2", "edgeops.triton_kernels")


def calls(grad: bool) -> dict[str, Callable[[], Tensor]]:
    """Every public op on 64 elements, ready to call."""
    layout = RaggedLayout.from_lengths([4, 4])
    cu, offsets = layout.cu_seqlens, layout.offsets
    rows = torch.randn(8, 8, requires_grad=grad)
    heads = torch.randn(8, 1, 8, requires_grad=grad)
    padded = torch.randn(2, 4, 8, requires_grad=grad)
    weight, bias = torch.ones(8, requires_grad=grad), torch.zeros(8, requires_grad=grad)
    experts, sizes = torch.randn(2, 8, 8, requires_grad=grad), torch.tensor([[8, 8, 8]])
    flat, ends = torch.randn(64, requires_grad=grad), offsets[1:]
    return {
        "ragged_attention": lambda: ragged_attention(heads, heads, heads, cu, cu, 4, 4),
        "pack": lambda: pack(padded, layout),
        "unpack": lambda: unpack(rows, layout),
        "ragged_pool": lambda: ragged_pool(rows, offsets),
        "bias_gelu": lambda: bias_gelu(rows, bias),
        "add_layer_norm": lambda: add_layer_norm(rows, rows, weight, bias),
        "vgemm": lambda: vgemm([rows], [rows])[0],
        "vgemm_packed": lambda: vgemm_packed(flat, flat, sizes, 64),
        "grouped_mm": lambda: grouped_mm(rows, experts, offs=ends),
        "torch.mul, for scale": lambda: torch.mul(rows, rows),
    }


def measure(rounds: int = 15) -> dict[str, tuple[float, float]]:
    """Op -> smallest microseconds per call without and with grad, one thread."""
    best = []
    with perf.thread_count(1):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                seen = perf.interleave(calls(grad), rounds=rounds, min_block_s=0.005)
            best.append({name: samples.best * 1e6 for name, samples in seen.items()})
    return {name: (best[0][name], best[1][name]) for name in best[0]}


_IMPORT = """
import sys, time
import torch
start = time.process_time()
import edgeops, edgeops.ragged
spent = time.process_time() - start
print(spent, *[name for name in {optional!r} if name in sys.modules])
"""


def import_cost(rounds: int = 3) -> tuple[float, list[str]]:
    """Smallest CPU seconds of `import edgeops` after torch in a fresh process, and the optional packages it pulled in.

    Raises:
        RuntimeError: the import fails.
    """
    spent, pulled = [], []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT.format(optional=OPTIONAL)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"import_cost: edgeops must import; got {done.stderr.strip()[-400:]}. Fix the import.")
        seconds, *names = done.stdout.split()
        spent.append(float(seconds))
        pulled = names
    return min(spent), pulled


def main() -> int:
    """Print both tables."""
    print(f"{'call on 64 elements':24s} {'no grad':>10s} {'grad':>10s}   smallest CPU time, one thread")
    for name, (plain, grad) in measure().items():
        print(f"{name:24s} {plain:7.1f} µs {grad:7.1f} µs")
    seconds, pulled = import_cost()
    print(f"import edgeops on top of torch: {seconds:.3f} s; optional packages imported: {', '.join(pulled) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
