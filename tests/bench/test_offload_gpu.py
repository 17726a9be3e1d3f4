# SPDX-License-Identifier: Apache-2.0
"""The items of offload that need a GPU: figures from made-up records and traces, and their code on a CPU."""

import pytest
import torch

from bench import check, run, speed_gpu, targets
from bench.offload import gpu, gpu_steps, gpu_tasks
from edgeops import perf
from edgeops.perf import Record, Samples

ENVIRONMENT = perf.capture()
CPU = torch.device("cpu")


def records(workload, cases, times):
    return [
        Record(
            workload=workload, case=case, candidate=name, shapes={}, source="made up", dtype="bfloat16",
            environment=ENVIRONMENT, samples=Samples((seconds, seconds), clock="cuda"), notes={"run": case},
        )
        for case in cases
        for name, seconds in times.items()
    ]  # fmt: skip


RECORDS = {
    "OG20": records(
        "offload_layer_gpu", [x[0] for x in gpu.LAYERS], {gpu.HALF: 1.0, gpu.QUARTER: 0.9, gpu.NATIVE: 1.0}
    ),
    "OG21": records("offload_apply_gpu", [x[0] for x in gpu.APPLIES], {gpu.OURS: 1.25, gpu.COPY: 1.0}),
}


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("item", RECORDS)
def test_figures_of_records(item):
    seen = check.figures(item, run.Settings(), RECORDS[item], None)
    assert set(seen) == {target.figure for target in targets.of(item)}
    assert all(target.met(seen[target.figure]) for target in targets.of(item))
    cut = check.figures(item, run.Settings(), RECORDS[item][4:], None)
    assert not check.verdict(item, cut)[0]


@pytest.mark.usefixtures("no_gpu")
def test_a_share_of_a_copy():
    seen = check.figures("OG21", run.Settings(), RECORDS["OG21"], None)
    assert seen == {"worst weight, share of a copy's bandwidth": pytest.approx(0.8)}


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("item", [name for name in speed_gpu.ITEMS if name.startswith("OG")])
def test_without_a_gpu_it_says_so(item, capsys):
    assert check.main([item]) == 1
    assert f"{item} FAIL  needs a GPU that torch can use" in capsys.readouterr().out


def test_steps_of_a_tiny_decoder():
    torch.manual_seed(0)
    assert gpu_steps.steps_of("tiny", 2, 16, CPU, True) == 2
    assert gpu_steps.steps_of("tiny", 2, 16, CPU, False) == 2


def test_running_out_of_memory_ends_the_steps(monkeypatch):
    def none_left(*_):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(gpu_steps, "decoder", none_left)
    assert gpu_steps.steps_of("tiny", 2, 16, CPU, True) == 0


def test_memory_names_its_targets(monkeypatch):
    monkeypatch.setattr(gpu_steps, "memory_cap", lambda *_: pytest.MonkeyPatch().context())
    monkeypatch.setattr(gpu_steps, "steps_of", lambda name, batch, length, device, subspace: 2 * subspace)
    seen = gpu_steps.memory(CPU)
    assert all(target.met(seen[target.figure]) for target in targets.of("OG18"))


def span(name, cat, ts, dur, stream=7):
    return {"ph": "X", "name": name, "cat": cat, "ts": ts, "dur": dur, "args": {"stream": stream}}


def test_gaps_of_a_trace():
    compute = [span("gemm", "kernel", ts, 10) for ts in (0, 10, 25, 40)]
    others = [
        span("spin_kernel(long)", "kernel", 0, 900, 9),
        span("_subspace_apply_kernel", "kernel", 100, 2, 8),
        span("update", "user_annotation", 12, 10),
        span("Memcpy DtoH (Device -> Pinned)", "gpu_memcpy", 5, 3, 9),
        span("Memcpy HtoD (Pinned -> Device)", "gpu_memcpy", 70, 3, 10),
        {"ph": "M", "name": "process_name"},
    ]
    seen = gpu_steps.gaps_of(compute + others)
    assert set(seen) == {target.figure for target in targets.of("OG23")}
    assert seen["longest gap of compute over the longest update of a layer"] == pytest.approx(0.5)
    assert seen["stages that never run beside compute"] == 1
    assert gpu_steps.gaps_of(compute) == {}


def test_a_copy_of_another_shape():
    to = torch.zeros(6)
    gpu_tasks.Throttle(12e9, CPU).copy(to, torch.arange(6.0).view(2, 3).T)
    assert to.tolist() == [0, 3, 1, 4, 2, 5]


def test_steps_through_the_pipeline():
    torch.manual_seed(0)
    seen = gpu_steps.step_times(CPU, "tiny", 2, 16)
    assert set(seen) == {target.figure for target in targets.of("OG22")}
    assert gpu_steps.timeline(CPU, "tiny", 2, 16) == {}
