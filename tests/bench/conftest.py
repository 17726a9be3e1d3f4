# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import pytest
import torch

# bench/ is part of the checkout and not of the installed package.
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def one_thread():
    """Spinning workers of a busy machine make these small tests slow, and none of them is about threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def toy():
    """A workload of plain torch, quick and always right, whose parts a test can replace."""
    from bench.registry import Built, Candidate, Case, Workload

    def build(case, device):
        x = torch.arange(8.0, device=device)
        return Built(
            candidates={
                "ours": Candidate(lambda: x + x, note="tuned so"),
                "peer": Candidate(lambda: 2 * x),
                "slow": Candidate(lambda: x * 2, default=False),
            },
            expected=lambda: 2 * x,
            tolerance=0.0,
            shapes={"n": 8},
            flops=8.0,
        )

    cases = [Case("a/1", "made up", (1, 2)), Case("b/1", "made up", (3,))]
    return Workload("toy", ("toy_op",), "a toy", "ours", "peer", lambda suite: cases, build)
