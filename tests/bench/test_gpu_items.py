# SPDX-License-Identifier: Apache-2.0
"""The items that need a GPU: their figures from made-up records, their verdict without one, their code on a CPU."""

import dataclasses

import pytest
import torch

from bench import check, registry, run, speed_gpu, targets
from bench.inputs import LISTS
from bench.ragged import attention, attention_gpu, encoder_layer_gpu
from edgeops import perf
from edgeops.perf import Record, Samples

ENVIRONMENT = perf.capture()
OURS, PADDED, FLASH = attention.OURS, attention.PADDED, attention.FLASH


def _case(workload, case, times, clock="cuda", **shapes):
    """Records of one made-up run: candidate -> seconds."""
    return [
        Record(
            workload=workload,
            case=case,
            candidate=name,
            shapes=shapes,
            source="made up",
            dtype="float32",
            environment=ENVIRONMENT,
            samples=Samples((seconds, seconds), clock=clock),
            notes={"run": f"{workload} {case}"},
        )
        for name, seconds in times.items()
    ]


def _lists(workload, times, size=32, **more):
    return [r for name in LISTS for r in _case(workload, f"{name}/{size}", times, **more)]


# two sequences padded to 4 with 8 useful pairs: padded attention does four times the work
WORK = {"B": 2, "L": 4, "pairs": 8}
LAYER = {OURS: 1.0, PADDED: 1.8, encoder_layer_gpu.HYBRID: 1.1}
ORDERS = {attention_gpu.LONGEST: 1.0, attention_gpu.IN_ORDER: 1.1}
RECORDS = {
    "G1": _lists("attention_gpu_fp32", {OURS: 1.0, PADDED: 4.0}, **WORK)
    + _lists("attention_gpu_fp32_train", {OURS: 2.0, PADDED: 6.0}, **WORK),
    "G2": _lists("ragged_attention_bf16", {OURS: 1.02, FLASH: 1.0}),
    "G3": [r for size in encoder_layer_gpu.BATCHES for r in _lists("encoder_layer_gpu", LAYER, size)],
    "G4": _lists("attention_gpu_bias", {OURS: 1.4, attention_gpu.FLASH: 1.0})
    + _lists("attention_gpu_causal", {OURS: 1.3, attention_gpu.FLASH: 1.0}),
    "G6": _case("attention_gpu_order", "SQuAD/32", ORDERS) + _case("attention_gpu_order", "one long causal/32", ORDERS),
}
BESIDES = {
    "G1": {"largest relative error of the output", "largest relative error of a gradient"},
    "G3": {"waits for the GPU in three layers"},
}


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("item", RECORDS)
def test_every_target_has_its_figure(item):
    seen = check.figures(item, run.Settings(), RECORDS[item], None)
    assert set(seen) | BESIDES.get(item, set()) == {target.figure for target in targets.of(item)}
    assert all(target.met(seen[target.figure]) for target in targets.of(item) if target.figure in seen) == (
        item != "G1"
    )


@pytest.mark.usefixtures("no_gpu")
def test_figures():
    seen = {item: check.figures(item, run.Settings(), records, None) for item, records in RECORDS.items()}
    assert seen["G1"]["forward: worst list, speed-up over padded sdpa per pair ratio"] == pytest.approx(1.0)
    assert seen["G1"]["forward and backward: worst list, speed-up over padded sdpa per pair ratio"] == pytest.approx(
        0.75
    )
    assert seen["G2"]["worst list, time over varlen_attn"] == pytest.approx(1.02)
    assert seen["G3"]["batch 64: geomean over padded sdpa"] == pytest.approx(1.8)
    assert seen["G4"]["bias: worst list, time over flash without bias"] == pytest.approx(1.4)
    assert seen["G6"]["SQuAD: longest first over in order"] == pytest.approx(1.1)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("item", RECORDS)
def test_cpu_records_and_missing_cases_give_no_figure(item):
    on_cpu = [dataclasses.replace(r, samples=dataclasses.replace(r.samples, clock="process")) for r in RECORDS[item]]
    assert check.figures(item, run.Settings(), on_cpu, None) == {}
    cut = [r for r in RECORDS[item] if not r.case.startswith("SQuAD")]
    seen = check.figures(item, run.Settings(), cut, None)
    assert not check.verdict(item, seen)[0]


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("item", RECORDS)
def test_without_a_gpu_it_says_so(item, capsys):
    assert check.main([item]) == 1
    assert f"{item} FAIL  needs a GPU that torch can use" in capsys.readouterr().out


@pytest.mark.usefixtures("no_gpu")
def test_all_leaves_them_out_without_a_gpu(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(check, "check", lambda item, *_: asked.append(item) or True)
    assert check.main(["all"]) == 0
    assert (
        "left out, needs a GPU that torch can use: G1, G2, G3, G4, G6, OG18, OG19, OG20, OG21, OG22, OG23, OG24, "
        "BG1, BG2, BG3, BG4, BG5, DG1, DG2, DG3" in capsys.readouterr().out
    )
    assert asked == [item for item in targets.items() if item not in speed_gpu.ITEMS]


@pytest.mark.usefixtures("no_gpu")
def test_the_suite_needs_a_gpu(capsys):
    assert run.main(["--suite", "gpu"]) == 2
    assert "--suite gpu needs a CUDA device; got none" in capsys.readouterr().err


WORKLOADS = [name for item in speed_gpu.ITEMS.values() for name in item.workloads]


@pytest.mark.parametrize("name", WORKLOADS)
def test_suites(name):
    entry = registry.workload(name)
    few = name == "attention_gpu_order" or name.startswith("offload_")
    assert len(entry.cases("gpu")) >= (3 if few else len(speed_gpu.LISTS))
    if name != "ragged_attention_bf16":
        assert not entry.cases("full"), "a suite for CPUs must not wait for it"


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "attention_gpu_order"])
def test_smoke_runs_on_a_cpu(name):
    entry = registry.workload(name)
    case = entry.cases("smoke")[0].name
    records = run.run([entry], dataclasses.replace(run.SMOKE, cases=(case,)))
    assert {entry.ours, entry.baseline} <= {r.candidate for r in records}
    assert all(r.notes["max_abs_error"] is None or r.notes["max_abs_error"] > 0 for r in records)


def test_the_order_is_left_out_on_a_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    told = []
    assert run.run([registry.workload("attention_gpu_order")], run.SMOKE, tell=told.append) == []
    assert all("skipped, needs a GPU" in line for line in told)
    assert told


def test_accuracy_on_a_cpu():
    seen = speed_gpu.accuracy(torch.device("cpu"), ("CoLA", "MNLI"), 4)
    assert set(seen) == BESIDES["G1"]
    assert all(0 < error < 1e-5 for error in seen.values())
