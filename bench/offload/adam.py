# SPDX-License-Identifier: Apache-2.0
"""Adam's direction in place on the CPU beside PyTorch's own AdamW. Offload spec, section 14, item 3."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.registry import Built, Candidate, Case, Workload
from edgeops.offload._reference import subspace_adam_reference

OURS = "edgeops"
FUSED = "torch fused AdamW"
FOREACH = "torch foreach AdamW"
BYTES = {OURS: 24, FUSED: 28, FOREACH: 28}
"""Bytes an element that must move: gradient, direction and moments; PyTorch's also read and write parameters."""


def _cases(suite: str) -> Sequence[Case]:
    if suite == "smoke":
        return [Case("small", "made up", params={"n": 1000})]
    return [
        Case("d=256", "one subspace of width 256, in cache", params={"n": 256 * 256}),
        Case("d=2048", "one subspace of width 2048", params={"n": 2048 * 2048}),
        Case("16.8M", "16.8 million elements, as in the specification's figures", params={"n": 1 << 24}),
    ]


def _build(case: Case, device: torch.device) -> Built:
    n = case.params["n"]
    grad = torch.randn(n, generator=torch.Generator().manual_seed(0))
    ours = [grad.clone(), torch.zeros(n), torch.zeros(n)]
    steps = {}
    for name, kind in ((FUSED, {"fused": True}), (FOREACH, {"foreach": True})):
        p = torch.zeros(n, requires_grad=True)
        p.grad = grad.clone()
        steps[name] = torch.optim.AdamW([p], **kind)

    def run() -> Tensor:
        torch.ops.edgeops._subspace_adam(*ours, 3, 0.9, 0.999, 1e-8)
        return ours[0]

    def once(_: Tensor) -> Tensor:
        fresh = [grad.clone(), torch.zeros(n), torch.zeros(n)]
        torch.ops.edgeops._subspace_adam(*fresh, 3, 0.9, 0.999, 1e-8)
        return fresh[0]

    def expected() -> Tensor:
        exact = [grad.double(), torch.zeros(n).double(), torch.zeros(n).double()]
        subspace_adam_reference(*exact, 3, 0.9, 0.999, 1e-8)
        return exact[0]

    return Built(
        candidates={
            OURS: Candidate(run, view=once, note="the direction is written over the gradient"),
            **{name: Candidate(step.step, gate=False, note="with parameters") for name, step in steps.items()},
        },
        expected=expected,
        tolerance=1e-4,
        shapes=dict(case.params),
        bytes=float(BYTES[OURS] * n),
    )


WORKLOADS = (
    Workload(
        "subspace_adam", ("_subspace_adam",), "Adam's moments and direction in place", OURS, FUSED, _cases, _build
    ),
)
