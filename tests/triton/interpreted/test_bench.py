# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the order of issue, which calls the launcher itself."""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[3]


def test_orders_of_issue_agree(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import registry
    from bench.ragged import attention_gpu

    assert sys.modules["bench.registry"] is registry
    entry = registry.workload("attention_gpu_order")
    case = registry.Case("made up causal/3", "made up", (5, 65, 1), {"causal": True})
    built = entry.build(case, torch.device("cpu"))
    assert set(built.candidates) == {attention_gpu.LONGEST, attention_gpu.IN_ORDER, attention_gpu.SHORTEST}
    assert max(registry.check_gate(entry, case, built).values()) < built.tolerance
