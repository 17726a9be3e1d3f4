# SPDX-License-Identifier: Apache-2.0
"""Forward and backward of one linear layer: trained through its subspace, beside `nn.Linear`. Offload spec, section 4.

The whole weight gradient is a third of a dense layer's arithmetic; the subspace's is `2 T r (m + n) + 2 T d^2`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.offload.products import cases, normal
from bench.registry import Built, Candidate, Case, Workload
from edgeops.offload import LSPAdamW

OURS = "edgeops"
DENSE = "nn.Linear"


def _build(case: Case, device: torch.device) -> Built:
    with torch.inference_mode(False), torch.enable_grad():
        return _made(case)


def _made(case: Case) -> Built:
    m, n, tokens = case.params["m"], case.params["n"], case.params["T"]
    torch.manual_seed(0)
    plain, ours = nn.Linear(n, m), nn.Linear(n, m)
    ours.load_state_dict(plain.state_dict())
    LSPAdamW(nn.Sequential(ours), d=case.params["d"], r=case.params["r"], projector="random", targets=["0"])
    x, dy = normal(tokens, n).requires_grad_(), normal(tokens, m, seed=1)

    def step(layer: nn.Linear) -> Tensor:
        with torch.enable_grad(), torch.inference_mode(False):
            for p in (x, *layer.parameters()):
                p.grad = None
            layer(x).backward(dy)
        assert x.grad is not None
        return x.grad

    d, r = case.params["d"], case.params["r"]
    return Built(
        candidates={OURS: Candidate(lambda: step(ours)), DENSE: Candidate(lambda: step(plain))},
        expected=lambda: dy.double() @ plain.weight.detach().double(),
        tolerance=1e-3,
        shapes=dict(case.params),
        flops=2.0 * tokens * (2 * m * n + r * (m + n) + d * d),
    )


WORKLOADS = (
    Workload("subspace_linear", ("subspace_project",), "forward and backward of a layer", OURS, DENSE, cases, _build),
)
