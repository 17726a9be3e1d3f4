# SPDX-License-Identifier: Apache-2.0
"""The paper's FLOP and memory ratios, recomputed from the length lists (C2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeops.ragged.flops import (
    EncoderShape,
    activation_bytes,
    activation_ratio,
    batches,
    cora_ops,
    dense_ops,
    flop_ratios,
    geometric_mean,
    ideal_ops,
    micro_batch_ops,
    packed_linear_ops,
    with_bulk_sequence,
)

LISTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "lengths"

# dense/ideal at batch 8, 32, 64, 128; then packed linears, CoRa, sorted micro-batches of 8, each at batch 32 and 128;
# then activation memory at batch 64, with and without stored scores
TABLE = {
    "RACE": ((1.385, 1.452, 1.465, 1.471), (1.096, 1.100), (1.016, 1.014), (1.108, 1.032), (0.676, 0.341)),
    "Wiki512": ((1.265, 1.352, 1.388, 1.416), (1.065, 1.076), (1.007, 1.005), (1.132, 1.037), (0.928, 0.425)),
    "SQuAD": ((1.639, 1.977, 2.059, 2.128), (1.148, 1.176), (1.021, 1.018), (1.199, 1.051), (0.474, 0.297)),
    "Wiki128": ((1.086, 1.080, 1.126, 1.144), (1.005, 1.009), (1.011, 1.006), (1.050, 1.024), (0.990, 0.759)),
    "MNLI": ((1.771, 2.257, 2.457, 2.729), (1.056, 1.086), (1.040, 1.025), (1.258, 1.079), (0.332, 0.293)),
    "XNLI": ((1.748, 1.854, 1.843, 1.853), (1.048, 1.048), (1.032, 1.018), (1.168, 1.045), (0.585, 0.478)),
    "MRPC": ((1.324, 1.497, 1.589, 1.640), (1.023, 1.031), (1.038, 1.025), (1.112, 1.034), (0.467, 0.403)),
    "CoLA": ((1.284, 1.648, 1.829, 2.102), (1.009, 1.016), (1.136, 1.081), (1.134, 1.052), (0.353, 0.335)),
}


def _load(name: str) -> np.ndarray:
    path = LISTS / f"{name}.txt"
    if not path.exists():
        pytest.skip(f"length lists are not at ../shared/data/lengths ({name}.txt)")
    return np.loadtxt(path, dtype=np.int64)


@pytest.mark.parametrize("name", TABLE)
def test_flop_ratios_of_real_lists(name: str) -> None:
    lengths = _load(name)
    padded, packed_linear, cora, micro, _ = TABLE[name]
    got = {size: flop_ratios(lengths, size, max_batches=50) for size in (8, 32, 64, 128)}
    assert [got[size].padded for size in (8, 32, 64, 128)] == pytest.approx(padded, abs=0.002)
    assert [got[size].packed_linear for size in (32, 128)] == pytest.approx(packed_linear, abs=0.002)
    assert [got[size].cora for size in (32, 128)] == pytest.approx(cora, abs=0.002)
    assert [got[size].sorted_micro_batches for size in (32, 128)] == pytest.approx(micro, abs=0.002)


@pytest.mark.parametrize("name", TABLE)
def test_activation_memory_of_real_lists(name: str) -> None:
    lengths = _load(name)
    with_scores, without = TABLE[name][4]
    assert activation_ratio(lengths, 64, max_batches=50) == pytest.approx(with_scores, abs=0.005)
    assert activation_ratio(lengths, 64, max_batches=50, store_scores=False) == pytest.approx(without, abs=0.005)


def test_geometric_means_over_the_lists() -> None:
    lists = [_load(name) for name in TABLE]
    for size, padded in ((32, 1.601), (64, 1.675), (128, 1.751)):
        rows = [flop_ratios(lengths, size, max_batches=50) for lengths in lists]
        assert geometric_mean([row.padded for row in rows]) == pytest.approx(padded, abs=0.002)
    memory = [activation_ratio(lengths, 64, max_batches=50) for lengths in lists]
    flash = [activation_ratio(lengths, 64, max_batches=50, store_scores=False) for lengths in lists]
    assert 1 / geometric_mean(memory) == pytest.approx(1.79, abs=0.005)
    assert 1 / geometric_mean(flash) == pytest.approx(2.52, abs=0.005)


def test_hand_counted_layer() -> None:
    shape = EncoderShape(hidden_size=2, num_heads=1, ff_size=3)
    assert shape.linear_ops == (12 + 6) + (4 + 2) + 8 + (6 + 6) + (6 + 2) + 8
    assert shape.pair_ops == 2 * 2 + 5
    assert ideal_ops([1, 2], shape) == 3 * shape.linear_ops + 5 * shape.pair_ops
    assert dense_ops([1, 2], shape) == 4 * shape.linear_ops + 8 * shape.pair_ops
    assert packed_linear_ops([1, 2], shape) == 3 * shape.linear_ops + 8 * shape.pair_ops
    assert EncoderShape(8, 2, 8, head_dim=3).attention_width == 6


def test_equal_lengths_waste_nothing() -> None:
    ratios = flop_ratios([17] * 64, 32)
    assert ratios.padded == ratios.packed_linear == ratios.sorted_micro_batches == 1.0
    assert ratios.cora > 1.0


def test_bulk_sequence_adds_a_full_tile_when_aligned() -> None:
    assert with_bulk_sequence([32, 32]).tolist() == [32, 32, 64]
    assert with_bulk_sequence([32, 31]).tolist() == [32, 31, 1]
    assert cora_ops([64]) == 2 * cora_ops([]) > 0


def test_empty_batches_cost_nothing() -> None:
    assert dense_ops([]) == ideal_ops([]) == packed_linear_ops([]) == micro_batch_ops([]) == 0
    assert activation_bytes([], ragged=False) == 0
    assert list(batches([], 4)) == []


def test_last_batch() -> None:
    assert [len(b) for b in batches(range(10), 4)] == [4, 4]
    assert [len(b) for b in batches(range(10), 4, drop_last=False)] == [4, 4, 2]
    assert [len(b) for b in batches(range(10), 4, max_batches=1)] == [4]


def test_bad_input_is_refused() -> None:
    with pytest.raises(TypeError, match="flat list of integers"):
        dense_ops([1.5, 2.0])
    with pytest.raises(TypeError, match="flat list of integers"):
        dense_ops([[1, 2]])
    with pytest.raises(ValueError, match="must not be negative"):
        ideal_ops([3, -1])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        next(batches([1], 0))
    with pytest.raises(ValueError, match="at least one batch with a token"):
        flop_ratios([1, 2, 3], 32)
    with pytest.raises(ValueError, match="at least one batch with a token"):
        flop_ratios([0] * 32, 32)
    with pytest.raises(ValueError, match="at least one full batch"):
        activation_ratio([1], 64)
    with pytest.raises(ValueError, match="at least one value"):
        geometric_mean([])
    with pytest.raises(ValueError, match="num_heads must be at least 1"):
        EncoderShape(num_heads=0)
    with pytest.raises(ValueError, match="multiple of num_heads"):
        EncoderShape(10, 3)
    with pytest.raises(ValueError, match="head_dim must be at least 1"):
        EncoderShape(head_dim=0)
