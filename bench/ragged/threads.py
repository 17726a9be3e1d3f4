# SPDX-License-Identifier: Apache-2.0
"""Ragged attention with one and with two threads, forward: does the work partition balance?

The eight lists, one batch with a single long sequence among short ones, and causal masks. Elapsed time: run it on a
machine that does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.ragged.attention import HEAD_DIM, HEADS, list_cases, packed_input
from bench.registry import Built, Candidate, Case, Unavailable, Workload
from edgeops.ragged import ragged_attention
from edgeops.ragged._reference import ragged_attention_fwd_reference

ONE, TWO = "1 thread", "2 threads"


def _cases(suite: str) -> list[Case]:
    lists = list_cases(suite)
    made = [*lists]
    for case in lists:
        if case.name.split("/")[0] in ("MNLI", "MRPC", "RACE"):
            made.append(Case(f"{case.name} causal", case.source, case.lengths, {"causal": True}, case.synthetic))
    if suite == "full":
        lengths = (512, *[16] * 31)
        made.append(Case("one long", "one sequence of 512 and 31 of 16, made up", lengths))
        made.append(Case("one long causal", "one sequence of 512 and 31 of 16, made up", lengths, {"causal": True}))
    return made


def _build(case: Case, device: torch.device) -> Built:
    if device.type != "cpu":
        raise Unavailable("thread counts are a matter of the CPU")
    data = packed_input(case.lengths, device)
    causal = bool(case.params.get("causal"))
    layout, (q, k, v) = data.layout, (data.q, data.k, data.v)
    cu, longest = layout.cu_seqlens, layout.max_len

    def with_threads(count: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            if torch.get_num_threads() != count:
                torch.set_num_threads(count)
            return ragged_attention(q, k, v, cu, cu, longest, longest, causal=causal)

        return run

    def expected() -> Tensor:
        out, _ = ragged_attention_fwd_reference(
            q.double(), k.double(), v.double(), cu, cu, scale=HEAD_DIM**-0.5, causal=causal
        )
        return out

    return Built(
        candidates={ONE: Candidate(with_threads(1)), TWO: Candidate(with_threads(2))},
        expected=expected,
        tolerance=5e-6,
        shapes={"B": len(case.lengths), "T": layout.total, "H": HEADS, "D": HEAD_DIM, "causal": causal},
    )


WORKLOADS = (
    Workload(
        name="ragged_attention_threads",
        ops=("ragged_attention",),
        summary="attention with one and with two threads, elapsed time",
        ours=TWO,
        baseline=ONE,
        cases=_cases,
        build=_build,
        threads=True,
    ),
)
