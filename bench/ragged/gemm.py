# SPDX-License-Identifier: Apache-2.0
"""Products of many sizes: forward and backward on the four sets of the ragged specification, and grouped products.

The strongest peer is the vendor's own batch call, `cblas_sgemm_batch`, which the CPU build of torch exports; it gets
its pointers ready-made and writes into buffers that exist.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.inputs import SHARED
from bench.registry import Built, Candidate, Case, Unavailable, Workload
from edgeops.ragged import grouped_mm, vgemm, vgemm_packed
from edgeops.ragged._reference_gemm import grouped_mm_reference, vgemm_packed_reference

OURS, LISTS, MKL, LOOP, PADDED = "edgeops", "edgeops, lists", "mkl sgemm_batch", "mm loop", "padded bmm"
TORCH = "F.grouped_mm"
PAPER, MIDDLE, SMALL, TINY = "4 paper sizes", "64 of 64..384", "128 of 16..127", "256 of 4..31"
SETS = (PAPER, MIDDLE, SMALL, TINY)
Size = tuple[int, int, int]  # m, n, k


def _draw(count: int, low: int, high: int, step: int = 1) -> list[Size]:
    draws = np.random.default_rng(0).integers(low // step, high // step + 1, (count, 3)) * step
    return [(int(m), int(n), int(k)) for m, n, k in draws]


def sizes_of(case: Case) -> list[Size]:
    """(m, n, k) of each product of a set."""
    if case.name == PAPER:
        path = SHARED / "vgemm" / "sizes.txt"
        if not path.is_file():
            return _draw(4, 640, 1408, 128)
        lines = path.read_text(encoding="ascii").splitlines()[:4]
        return [(int(m), int(n), int(k)) for m, n, k in (line.split() for line in lines)]
    return _draw(case.params["count"], *case.params["range"])


def _cases(suite: str) -> list[Case]:
    drawn = "drawn with seed 0, ragged specification 11.4"
    if suite == "smoke":
        return [Case("3 of 1..40", drawn, params={"count": 3, "range": [1, 40]})]
    absent = not (SHARED / "vgemm" / "sizes.txt").is_file()
    source = "drawn like the paper's sizes" if absent else "first 4 lines of ../shared/data/vgemm/sizes.txt"
    return [
        Case(PAPER, source, synthetic=absent),
        Case(MIDDLE, drawn, params={"count": 64, "range": [64, 384, 64]}),
        Case(SMALL, drawn, params={"count": 128, "range": [16, 127]}),
        Case(TINY, drawn, params={"count": 256, "range": [4, 31]}),
    ]


@functools.cache
def _vendor() -> Callable[..., None] | None:
    """`cblas_sgemm_batch` of the libtorch that is loaded, or `None`."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(path)).cblas_sgemm_batch
    except (OSError, AttributeError):
        return None
    function.restype = None
    return function


def vendor_batch(
    a: Sequence[Tensor], b: Sequence[Tensor], out: Sequence[Tensor], trans_a: bool = False, trans_b: bool = False
) -> Callable[[], Sequence[Tensor]] | None:
    """A ready call of the vendor's batch product of dense float32 matrices into `out`, or `None` without it."""
    function = _vendor()
    if function is None:
        return None
    count = len(a)

    def numbers(kind: type, values: Sequence[float]) -> ctypes.Array:
        return (kind * count)(*values)

    def pointers(matrices: Sequence[Tensor]) -> ctypes.Array:
        return (ctypes.c_void_p * count)(*[x.data_ptr() for x in matrices])

    m, n = (numbers(ctypes.c_int, [c.shape[d] for c in out]) for d in (0, 1))
    k = numbers(ctypes.c_int, [x.shape[0 if trans_a else 1] for x in a])
    turn_a, turn_b = (numbers(ctypes.c_int, [112 if t else 111] * count) for t in (trans_a, trans_b))
    lda, ldb, ldc = (numbers(ctypes.c_int, [max(1, x.shape[1]) for x in side]) for side in (a, b, out))
    one, zero = numbers(ctypes.c_float, [1.0] * count), numbers(ctypes.c_float, [0.0] * count)
    each = numbers(ctypes.c_int, [1] * count)
    pa, pb, pc = pointers(a), pointers(b), pointers(out)
    keep = (a, b, out)

    def call() -> Sequence[Tensor]:
        function(101, turn_a, turn_b, m, n, k, one, pa, lda, pb, ldb, zero, pc, ldc, count, each)
        return keep[2]

    return call


def _flat(matrices: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in matrices])


def _matrices(sizes: Sequence[tuple[int, int]], device: torch.device, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, cols, generator=generator).to(device) for rows, cols in sizes]


def _shapes(sizes: Sequence[Size]) -> dict[str, object]:
    return {"G": len(sizes), "m, n, k": [list(size) for size in sizes[:8]]}


def _build(case: Case, device: torch.device) -> Built:
    sizes = sizes_of(case)
    table = torch.tensor(sizes)
    a = _matrices([(m, k) for m, n, k in sizes], device)
    b = _matrices([(k, n) for m, n, k in sizes], device, 1)
    flat_a, flat_b, total = _flat(a), _flat(b), sum(m * n for m, n, k in sizes)
    candidates = {
        OURS: Candidate(lambda: vgemm_packed(flat_a, flat_b, table, total), note="flat buffers"),
        LISTS: Candidate(lambda: vgemm(a, b), _flat),
        LOOP: Candidate(lambda: [torch.mm(x, y) for x, y in zip(a, b)], _flat),
        PADDED: Candidate(_padded(a, b, sizes), _flat, note="padded beforehand", default=False),
    }
    if device.type == "cpu":
        out = [torch.empty(m, n) for m, n, k in sizes]
        vendor = vendor_batch(a, b, out)
        if vendor is not None:
            candidates[MKL] = Candidate(vendor, _flat, note="pointers and buffers ready")
    return Built(
        candidates=candidates,
        expected=lambda: vgemm_packed_reference(flat_a.double(), flat_b.double(), table, False, False, total),
        tolerance=2e-4,
        shapes=_shapes(sizes),
        flops=float(sum(2 * m * n * k for m, n, k in sizes)),
    )


def _padded(a: Sequence[Tensor], b: Sequence[Tensor], sizes: Sequence[Size]) -> Callable[[], list[Tensor]]:
    top_m, top_n, top_k = (max(size[i] for size in sizes) for i in range(3))
    wide_a = torch.stack([F.pad(x, (0, top_k - x.shape[1], 0, top_m - x.shape[0])) for x in a])
    wide_b = torch.stack([F.pad(x, (0, top_n - x.shape[1], 0, top_k - x.shape[0])) for x in b])

    def call() -> list[Tensor]:
        return [c[:m, :n] for c, (m, n, k) in zip(torch.bmm(wide_a, wide_b), sizes)]

    return call


def _build_backward(case: Case, device: torch.device) -> Built:
    """Both gradients of the same products: grad b^T and a^T grad."""
    sizes = sizes_of(case)
    a = _matrices([(m, k) for m, n, k in sizes], device)
    b = _matrices([(k, n) for m, n, k in sizes], device, 1)
    grad = _matrices([(m, n) for m, n, k in sizes], device, 2)
    flat_a, flat_b, flat_grad = _flat(a), _flat(b), _flat(grad)
    for_a, for_b = torch.tensor([(m, k, n) for m, n, k in sizes]), torch.tensor([(k, n, m) for m, n, k in sizes])
    kernel = torch.ops.edgeops._vgemm_packed.default

    def ours() -> Tensor:
        da = kernel(flat_grad, flat_b, for_a, False, True, flat_a.shape[0])
        return da, kernel(flat_a, flat_grad, for_b, True, False, flat_b.shape[0])

    def loop() -> list[Tensor]:
        return [torch.mm(g, y.t()) for g, y in zip(grad, b)] + [torch.mm(x.t(), g) for g, x in zip(grad, a)]

    candidates = {OURS: Candidate(ours, torch.cat, note="flat buffers"), LOOP: Candidate(loop, _flat)}
    if device.type == "cpu":
        da, db = [torch.empty_like(x) for x in a], [torch.empty_like(x) for x in b]
        first, second = vendor_batch(grad, b, da, False, True), vendor_batch(a, grad, db, True, False)
        if first is not None and second is not None:
            candidates[MKL] = Candidate(lambda: [*first(), *second()], _flat, note="pointers and buffers ready")

    def expected() -> Tensor:
        wide = [flat.double() for flat in (flat_grad, flat_b, flat_a)]
        da = vgemm_packed_reference(wide[0], wide[1], for_a, False, True, flat_a.shape[0])
        return torch.cat([da, vgemm_packed_reference(wide[2], wide[0], for_b, True, False, flat_b.shape[0])])

    return Built(
        candidates=candidates,
        expected=expected,
        tolerance=2e-4,
        shapes=_shapes(sizes),
        flops=float(sum(4 * m * n * k for m, n, k in sizes)),
    )


def _grouped_cases(suite: str) -> list[Case]:
    if suite == "smoke":
        return [Case("3 experts", "fixed", (5, 0, 11), {"width": 16, "dtype": "float32"})]
    even, skewed = (1341,) * 8, (5000, 2500, 1500, 900, 500, 228, 100, 0)
    wide = {"width": 512, "dtype": "float32"}
    return [
        Case("8 experts, even", "ragged specification 11.4", even, wide),
        Case("8 experts, skewed", "fixed, same rows in all", skewed, wide),
        Case("8 experts, skewed, bfloat16", "fixed", skewed, {"width": 1024, "dtype": "bfloat16"}),
    ]


def _build_grouped(case: Case, device: torch.device) -> Built:
    dtype, width, count = getattr(torch, case.params["dtype"]), case.params["width"], len(case.lengths)
    if dtype != torch.float32 and device.type == "cpu":
        raise Unavailable("half precision products are a figure of GPUs")
    generator, total = torch.Generator().manual_seed(0), sum(case.lengths)
    x = torch.randn(total, width, generator=generator).to(device, dtype)
    w = (torch.randn(count, width, width, generator=generator) * width**-0.5).to(device, dtype)
    offs = torch.tensor(case.lengths).cumsum(0).to(device, torch.int32)
    parts = x.split(case.lengths)

    def loop() -> Tensor:
        return torch.cat([torch.mm(part, matrix) for part, matrix in zip(parts, w)])

    return Built(
        candidates={
            OURS: Candidate(lambda: grouped_mm(x, w, offs=offs)),
            TORCH: Candidate(lambda: F.grouped_mm(x, w, offs=offs)),
            LOOP: Candidate(loop, note="results concatenated"),
        },
        expected=lambda: grouped_mm_reference(x.double(), w.double(), offs),
        tolerance=2e-4 if dtype == torch.float32 else 0.05,
        shapes={"G": count, "T": total, "K": width, "N": width},
        dtype=case.params["dtype"],
        flops=2.0 * total * width * width,
    )


WORKLOADS = (
    Workload("vgemm", ("vgemm", "vgemm_packed"), "products of many sizes", OURS, LOOP, _cases, _build),
    Workload("vgemm_backward", (), "both gradients of products of many sizes", OURS, LOOP, _cases, _build_backward),
    Workload(
        "grouped_mm", ("grouped_mm",), "a mixture of experts' products", OURS, TORCH, _grouped_cases, _build_grouped
    ),
)
