# SPDX-License-Identifier: Apache-2.0
"""Triangular product, sum and element-wise product of square matrices, forward. CoRa (MLSys 2022), section 7.1."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged import tradd, trmm, trmul

OURS = "edgeops"
DENSE = "dense torch"
_SIZES = {"smoke": (96,), "full": (512, 1024, 2048)}
_ROWS = 128


def cases(suite: str) -> list[Case]:
    """Each op at each size."""
    sizes = _SIZES.get(suite, _SIZES["full"])
    source = "square matrices, sizes of the paper"
    return [Case(f"{op} {m}", source, params={"op": op, "M": m}) for op in ("trmm", "tradd", "trmul") for m in sizes]


def _strmm() -> Callable[[Tensor, Tensor], Tensor] | None:
    """`tri(l) @ b` through the BLAS inside torch, or `None` where it does not show one."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        call = ctypes.CDLL(str(path)).cblas_strmm
    except (OSError, AttributeError):
        return None
    call.restype = None

    def run(left: Tensor, b: Tensor) -> Tensor:
        out, (m, n) = b.clone(), b.shape
        pointers = (ctypes.c_void_p(x.data_ptr()) for x in (left, out))
        # row major, left, lower, not transposed, not unit
        a, c = pointers
        call(101, 141, 122, 111, 131, m, n, ctypes.c_float(1.0), a, m, c, n)
        return out

    return run


def _row_blocks(left: Tensor, b: Tensor) -> Tensor:
    out = torch.empty_like(b)
    for i in range(0, len(b), _ROWS):
        end = min(i + _ROWS, len(b))
        torch.mm(torch.tril(left[i:end, :end], i), b[:end], out=out[i:end])
    return out


def _build(case: Case, device: torch.device) -> Built:
    op, m = case.params["op"], case.params["M"]
    x, y = (torch.randn(m, m, generator=torch.Generator().manual_seed(seed)).to(device) for seed in (0, 1))
    triangle = torch.tril(x)
    if op == "trmm":
        candidates = {
            OURS: Candidate(lambda: trmm(x, y)),
            DENSE: Candidate(lambda: torch.mm(triangle, y), note="zeros written beforehand"),
            "tril, then mm": Candidate(lambda: torch.tril(x) @ y),
            "row blocks of 128": Candidate(lambda: _row_blocks(x, y)),
        }
        blas = _strmm() if device.type == "cpu" else None
        if blas is not None:
            candidates["cblas_strmm"] = Candidate(lambda: blas(x, y), note="b copied: it works in place")
        expected: Callable[[], Tensor] = lambda: triangle.double() @ y.double()  # noqa: E731
        flops, moved = float(m) * m * (m + 1), None
    else:
        ours, dense = (tradd, torch.add) if op == "tradd" else (trmul, torch.mul)
        other = torch.tril(y)
        candidates = {
            OURS: Candidate(lambda: ours(x, y)),
            DENSE: Candidate(lambda: dense(triangle, other), note="zeros written beforehand"),
            "dense, then tril": Candidate(lambda: torch.tril(dense(x, y))),
        }
        expected = lambda: dense(triangle.double(), other.double())  # noqa: E731
        flops, moved = None, 4.0 * (m * (m + 1) + m * m)
    return Built(
        candidates=candidates,
        expected=expected,
        tolerance=1e-6 * m if op == "trmm" else 1e-5,
        shapes={"M": m, "N": m},
        flops=flops,
        bytes=moved,
    )


WORKLOADS = (
    Workload(
        name="triangular",
        ops=("trmm", "tradd", "trmul"),
        summary="triangular product, sum and element-wise product, square float32",
        ours=OURS,
        baseline=DENSE,
        cases=cases,
        build=_build,
    ),
)
