# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

from bench import registry
from bench.registry import Built, Candidate, GateFailed, check_gate

RAGGED = ("ragged_attention", "ragged_pack", "ragged_unpack", "ragged_pool", "bias_gelu", "add_layer_norm")
# the order of issue runs in the interpreter: tests/triton/interpreted/test_bench.py
QUICK = [name for name in registry.workloads() if name not in ("minilm", "attention_gpu_order")]


def _gate(toy, **candidates):
    case = toy.cases("full")[0]
    built = toy.build(case, torch.device("cpu"))
    built = dataclasses.replace(built, candidates={**built.candidates, **candidates})
    return check_gate(toy, case, built)


def test_every_ragged_op_has_a_workload():
    assert set(RAGGED) <= registry.ops_covered()


@pytest.mark.parametrize("name", list(registry.workloads()))
def test_workloads_are_complete(name):
    entry = registry.workloads()[name]
    assert entry.summary
    for suite in registry.SUITES:
        cases = entry.cases(suite)
        assert len({case.name for case in cases}) == len(cases)
        assert all(case.source for case in cases)


@pytest.mark.parametrize("name", QUICK)
def test_every_candidate_passes_its_gate(name):
    entry = registry.workloads()[name]
    case = entry.cases("smoke")[0]
    with torch.inference_mode():
        built = entry.build(case, torch.device("cpu"))
        assert {entry.ours, entry.baseline} <= set(built.candidates)
        everything = list(built.candidates)
        worst = check_gate(entry, case, built, everything)
    assert set(worst) == {n for n in everything if built.candidates[n].gate}


def test_gate_reports_the_difference(toy):
    built = dataclasses.replace(toy.build(toy.cases("full")[0], torch.device("cpu")), tolerance=0.5)
    off = Candidate(lambda: 2 * torch.arange(8.0) + 0.25)
    built = dataclasses.replace(built, candidates={**built.candidates, "off": off})
    assert check_gate(toy, toy.cases("full")[0], built)["off"] == 0.25


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: 2 * torch.arange(8.0) + 1e-3, "be within 0 of the reference; got a difference of 0.001"),
        (lambda: torch.full((8,), torch.nan), "got a difference of nan"),
        (lambda: torch.zeros(7), r"have shape \(8,\); got \(7,\)"),
    ],
)
def test_gate_stops_a_wrong_candidate(toy, wrong, message):
    with pytest.raises(GateFailed, match=r"toy, a/1, candidate 'wrong': the result must .*" + message):
        _gate(toy, wrong=Candidate(wrong))


def test_gate_leaves_yardsticks_alone(toy):
    assert "yardstick" not in _gate(toy, yardstick=Candidate(lambda: torch.zeros(3), gate=False))


def test_chosen_candidates(toy):
    built: Built = toy.build(toy.cases("full")[0], torch.device("cpu"))
    assert list(built.chosen()) == ["ours", "peer"]
    assert list(built.chosen(["slow", "ours"])) == ["ours", "slow"]
    with pytest.raises(ValueError, match=r"candidates must be among ours, peer, slow; got \['nobody'\]"):
        built.chosen(["nobody"])


def test_workloads_are_found_by_name_and_by_op():
    assert registry.workload("ragged_attention").name == "ragged_attention"
    assert registry.workload("ragged_pack").name in ("pack", "encoder_layer", "minilm")
    with pytest.raises(ValueError, match=r"workload: must be one of .*; got 'tea'"):
        registry.workload("tea")
