# SPDX-License-Identifier: Apache-2.0
"""The advisor: what it reads, what it predicts, what it recommends."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeops.ragged.explain import CostModel, explain
from edgeops.ragged.flops import EncoderShape, flop_ratios

LISTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "lengths"
MIXED = [12, 90, 35, 7, 61] * 60


@pytest.mark.parametrize("length", [1, 8, 64, 512])
def test_equal_lengths_are_left_alone(length: int) -> None:
    told = explain([length] * 100)
    assert told.choice == "leave it"
    assert told.padding_share == 0.0
    assert told.flop_ratios["padded"] == told.flop_ratios["packed linears"] == 1.0
    assert "below 1.10x" in told.reason


def test_mixed_lengths_are_packed() -> None:
    told = explain(MIXED)
    assert told.choice == "pack"
    assert told.flop_ratios["padded"] == pytest.approx(flop_ratios(MIXED, 32, drop_last=False).padded)
    assert told.flop_ratios["padded"] > told.flop_ratios["sorted micro-batches"] > 1.0
    assert told.flop_ratios["packed linears"] > told.flop_ratios["packed"] == 1.0
    assert told.seconds["pack"] < told.seconds["sort"] < told.seconds["leave it"]
    assert told.speedup["leave it"] == 1.0
    # packed rows cannot win more than the waste they remove plus what the fused kernels save
    assert told.speedup["pack"] < 1.25 * told.flop_ratios["padded"]


def test_sorting_wins_where_packing_costs_more() -> None:
    slow = CostModel(ragged_gflops=2.0, fused_element_ns=5.0)
    told = explain(MIXED, costs=slow)
    assert told.choice == "sort"
    assert "packing" in told.reason
    both = CostModel(ragged_gflops=0.01)
    assert explain([60, 64] * 64, costs=both).choice == "leave it"


def test_forms_of_lengths(tmp_path: Path) -> None:
    expected = explain(MIXED).to_dict()
    file = tmp_path / "lengths.txt"
    file.write_text("\n".join(str(n) for n in MIXED))
    mask = torch.arange(90)[None, :] < torch.tensor(MIXED)[:, None]
    forms: list[Any] = [
        tuple(MIXED),
        np.array(MIXED, dtype=np.int32),
        torch.tensor(MIXED),
        file,
        str(file),
        mask,
        mask.long().flip(1),
        [mask[:100].numpy(), mask[100:]],
    ]
    for form in forms:
        assert explain(form).to_dict() == expected


def test_sizes_of_models() -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    told = explain(MIXED, nn.Sequential(nn.Linear(2, 2), encoder))
    assert (told.shape, told.num_layers) == (EncoderShape(64, 4, 96), 3)
    assert explain(MIXED, layer).num_layers == 1
    config = SimpleNamespace(hidden_size=32, num_attention_heads=2, intermediate_size=48, num_hidden_layers=5)
    assert explain(MIXED, config).num_layers == 5
    wrapped = nn.Linear(2, 2)
    wrapped.config = config
    assert explain(MIXED, wrapped).shape == EncoderShape(32, 2, 48)
    assert explain(MIXED, (EncoderShape(128, 4, 256), 2)).num_layers == 2


def test_sizes_of_transformers_models() -> None:
    transformers = pytest.importorskip("transformers", reason="needs edgeops[hf]")
    config = transformers.DistilBertConfig(vocab_size=20, dim=32, n_layers=3, n_heads=4, hidden_dim=40)
    told = explain(MIXED, transformers.DistilBertModel(config))
    assert (told.shape, told.num_layers) == (EncoderShape(32, 4, 40), 3)


def test_report_and_facts() -> None:
    told = explain(MIXED)
    text = str(told)
    for part in ("300 sequences, 12,300 tokens", "7 to 90 long, 41.0 on average", "6 layers, 512 wide", "=> pack:"):
        assert part in text
    facts = json.loads(json.dumps(told.to_dict()))
    assert facts["choice"] == "pack"
    assert facts["speedup"]["pack"] == pytest.approx(told.speedup["pack"])
    assert facts["shape"]["hidden_size"] == 512
    assert facts["measured"] is False
    with pytest.raises(AttributeError):
        told.choice = "sort"  # type: ignore[misc]


def test_measured_rates_are_usable() -> None:
    costs = CostModel.measured(rounds=1)
    for name, value in vars(costs).items():
        assert np.isfinite(value), name
        assert value >= 0, name
    assert explain(MIXED, costs=costs).choice in ("pack", "sort")


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=80).filter(any), st.integers(1, 40))
def test_facts_hold_for_any_lengths(lengths: list[int], batch_size: int) -> None:
    told = explain(lengths, batch_size=batch_size)
    assert told.num_tokens == sum(lengths)
    assert 0.0 <= told.padding_share < 1.0
    assert all(ratio >= 1.0 for ratio in told.flop_ratios.values())
    assert all(value > 0.0 for value in told.seconds.values())
    best = min(told.seconds.values())
    if told.choice == "leave it":
        assert told.seconds["leave it"] / best < 1.1
    else:
        assert told.seconds["leave it"] / best >= 1.1


@pytest.mark.parametrize("name", ["RACE", "SQuAD", "MNLI", "XNLI", "CoLA"])
def test_real_lists_are_worth_packing(name: str) -> None:
    path = LISTS / f"{name}.txt"
    if not path.exists():
        pytest.skip(f"length lists are not at ../shared/data/lengths ({path.name})")
    told = explain(path)
    assert told.choice in ("pack", "sort")
    assert told.speedup["pack"] == pytest.approx(told.flop_ratios["padded"], rel=0.15)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_text("1\ntwo\n")
    with pytest.raises(ValueError, match=r"bad\.txt must hold integers only"):
        explain(bad)
    for lengths in ([], [0, 0], [3, -1]):
        with pytest.raises(ValueError, match="at least one sequence with a token and no negative length"):
            explain(lengths)
    for lengths in ([1.5], torch.ones(2, 2, 2), "absent.txt"):
        with pytest.raises((TypeError, FileNotFoundError)):
            explain(lengths)
    with pytest.raises(TypeError, match=r"must be an nn\.TransformerEncoder"):
        explain(MIXED, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        explain(MIXED, batch_size=0)
    with pytest.raises(ValueError, match="costs must be a CostModel, None or 'measure'"):
        explain(MIXED, costs="guess")
