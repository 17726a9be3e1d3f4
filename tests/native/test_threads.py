# SPDX-License-Identifier: Apache-2.0
"""Threads: the number that torch is told is obeyed, errors cross threads, calls from many Python threads do not mix."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeops.ragged import RaggedLayout, pack, ragged_attention, ragged_pool, unpack
from tests.peers import offsets_of

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [200, 1, 0, 150, 33, 100]


def work(seed: int = 0) -> list[Tensor]:
    """Something of every parallel op, long enough to be split."""
    generator = torch.Generator().manual_seed(seed)
    cu, layout = offsets_of(LENGTHS), RaggedLayout.from_lengths(LENGTHS)
    q, k, v = (torch.randn(layout.total, 4, 32, generator=generator) for _ in range(3))
    out, lse = ragged_attention(q, k, v, cu, cu, 200, 200, causal=True, return_lse=True)
    padded = unpack(out, layout)
    return [out, lse, padded, pack(padded, layout), ragged_pool(out.flatten(1), cu)]


def test_any_number_of_threads_gives_the_same_bits(threads: Callable[[int], None]) -> None:
    expected = work()
    for count in (2, 3, 8):
        threads(count)
        for got, want in zip(work(), expected):
            assert torch.equal(got, want)


CODE = """
import os, torch
torch.set_num_threads({count})
from tests.native.test_threads import work
before = len(os.listdir("/proc/self/task"))
work()
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads through /proc")
def test_one_thread_means_no_other() -> None:
    """A process told to use one thread starts none, in a fresh process where no pool exists yet."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(count=1)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 0


def test_calls_from_many_python_threads() -> None:
    """Scratch memory belongs to a thread: concurrent calls give what they give alone."""
    expected = [work(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for round_ in range(3):
            for got, want in zip(pool.map(work, range(4)), expected):
                assert all(torch.equal(a, b) for a, b in zip(got, want)), round_


def test_growing_and_shrinking_scratch(threads: Callable[[int], None]) -> None:
    """Small calls after large ones and the other way round, with other head sizes and dtypes."""
    threads(2)
    kinds = [(700, 64, torch.float32), (3, 1, torch.float64), (40, 256, torch.float16), (900, 8, torch.float64)]

    def call(length: int, dim: int, dtype: torch.dtype) -> Tensor:
        q = torch.randn(length, 2, dim, generator=torch.Generator().manual_seed(length)).to(dtype)
        cu = offsets_of([length])
        out: Tensor = ragged_attention(q, 0.1 * q, q, cu, cu, length, length)
        return out

    first = [call(*kind) for kind in kinds]
    for order in ((3, 2, 1, 0), (1, 3, 0, 2)):
        for i in order:
            assert torch.equal(call(*kinds[i]), first[i])


def test_errors_come_back_as_they_are(threads: Callable[[int], None]) -> None:
    threads(2)
    x = torch.zeros(484, 2, 8)
    for _ in range(3):
        with pytest.raises(ValueError, match="cu_q must end at the number of rows, 484"):
            ragged_attention(x, x, x, offsets_of([1]), offsets_of([484]), 484, 484)
    assert torch.equal(ragged_attention(x, x, x, offsets_of([484]), offsets_of([484]), 484, 484), x)
