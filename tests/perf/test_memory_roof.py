# SPDX-License-Identifier: Apache-2.0
import os
import sys

import pytest
import torch

from edgeops.perf import copy_work, default_clock, measure_roof, peak_memory, sgemm_work

MEGA = 1 << 20


def test_peak_counts_what_lives_at_once():
    def run():
        first = torch.empty(MEGA, dtype=torch.uint8)
        del first
        return torch.empty(2 * MEGA, dtype=torch.uint8), torch.empty(MEGA, dtype=torch.uint8)

    assert peak_memory(run).bytes == 3 * MEGA


def test_peak_sees_temporaries_inside_an_operator():
    x = torch.randn(256, 256)
    assert peak_memory(lambda: (x @ x + x).sum()).bytes >= 2 * x.numel() * 4


def test_peak_of_nothing_is_nothing():
    assert peak_memory(lambda: None).bytes == 0


def test_the_profiler_leaves_the_environment_alone():
    before = dict(os.environ)
    peak_memory(lambda: torch.ones(3))
    assert dict(os.environ) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process reset its high-water mark")
def test_resident_peak_sees_memory_that_torch_did_not_allocate():
    try:
        seen = peak_memory(lambda: bytearray(b"x") * (64 * MEGA), method="resident")
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    assert seen.bytes > 48 * MEGA


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method must be one of allocator, resident, cuda; got 'guess'"):
        peak_memory(lambda: None, method="guess")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_method_needs_a_gpu():
    with pytest.raises(NotImplementedError, match="needs a CUDA device; got none"):
        peak_memory(lambda: None, method="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_peak():
    assert peak_memory(lambda: torch.empty(MEGA, device="cuda"), method="cuda").bytes >= 4 * MEGA


def test_sgemm_work_is_a_product_with_its_flops():
    run, flops = sgemm_work(16)
    first = run().clone()
    assert flops == 2 * 16**3
    assert torch.equal(run(), first)


def test_copy_work_moves_the_bytes_it_says():
    run, moved = copy_work(1000)
    assert moved == 2 * run().numel() * 4 == 1000


@pytest.mark.parametrize(("make", "bad"), [(sgemm_work, 0), (copy_work, 7)])
def test_bad_sizes_are_refused(make, bad):
    with pytest.raises(ValueError, match=rf"or more.*; got {bad}"):
        make(bad)


def test_roofs_are_positive_and_the_clock_follows_the_threads():
    roof = measure_roof(1, rounds=1)
    assert roof.sgemm_gflops > 0
    assert roof.copy_gbps > 0
    assert (default_clock(1), default_clock(4)) == ("process", "wall")
