# SPDX-License-Identifier: Apache-2.0
"""The ragged chapter on a tiny random BERT, and on the real model where its packages are installed."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from edgeops.perf import thread_count
from edgeops.perf.report import Report
from edgeops.tour import ChapterResult, Context, TourConfig
from edgeops.tour import sentences as peers
from edgeops.tour.chapters import _ragged_measure as measure
from edgeops.tour.chapters.ragged import CHAPTER, Inputs, Plan, RaggedChapter, load_verses

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")

PLAN = Plan(sentences=10, batch=4, rounds=2, points=2)


def tiny_bert(plan: Plan, seed: int) -> Inputs:
    """Two layers, 32 wide; sentences of 1 to 12 tokens."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        attn_implementation="sdpa",
    )
    draw = random.Random(seed)
    lengths = [1, 12, *(draw.randint(1, 12) for _ in range(plan.sentences - 2))]
    tokens = [[draw.randint(1, 49) for _ in range(n)] for n in lengths]
    return Inputs(transformers.BertModel(config).eval(), tokens, 0, "random tokens")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with thread_count(1):
        yield


@pytest.fixture(scope="module")
def result() -> ChapterResult:
    return RaggedChapter(tiny_bert, quick=PLAN).run(Context(TourConfig(quick=True, clock="wall")))


def test_every_candidate_is_measured_on_all_sentences(result):
    main = [r for r in result.records if r.case == "all sentences"]
    assert [r.candidate for r in main] == ["padded", "sorted by length", "packed, SDPA loop", "edgeops convert"]
    assert [row[0] for row in result.rows] == [r.candidate for r in main]
    for record in main:
        assert len(record.samples.seconds) == PLAN.rounds
        assert record.shapes["sentences"] == PLAN.sentences
        assert record.shapes["batch"] == PLAN.batch
        assert record.flops == main[0].flops
        assert record.roof_share > 0
        assert record.peak_memory > 0
    assert [r.baseline for r in main] == [None, "padded", "padded", "padded"]


def test_the_cases_with_nothing_to_save_are_shown(result):
    limits = {r.case: r for r in result.records if r.candidate == "edgeops convert"}
    assert limits["equal lengths"].shapes["tokens"] == (
        limits["equal lengths"].shapes["longest"] * limits["equal lengths"].shapes["sentences"]
    )
    assert limits["one sentence"].shapes["sentences"] == 1


def test_embeddings_were_checked_before_timing(result):
    assert len(result.checks) == 3
    assert all(float(check.value) <= measure.TOLERANCE for check in result.checks)


def test_padding_is_counted(result):
    lengths = result.facts["lengths"]
    padded = {name: sum(computed) for name, computed in result.facts["computed"].items()}
    assert padded["padded"] == sum(max(lengths[i : i + 4]) * len(lengths[i : i + 4]) for i in range(0, len(lengths), 4))
    assert sum(lengths) <= padded["sorted by length"] <= padded["padded"]


def test_the_report_is_drawn_from_stored_data_alone(result):
    kept = ChapterResult.from_dict(json.loads(json.dumps(result.to_dict())))
    report = Report("test")
    CHAPTER.present(kept, report.section("ragged"))
    page = report.html()
    assert page.count("<svg") == 3
    assert "equal lengths, batch of 4" in page


def test_a_wrong_candidate_stops_the_chapter_before_timing(monkeypatch):
    def wrong(model):
        embed = peers.padded_embed(model)
        return lambda batch: embed(batch) + 1e-3

    stopped = pytest.raises(RuntimeError, match="embeddings must equal the stock ones to 1e-05")
    monkeypatch.setattr(measure, "PackedLoop", wrong)
    monkeypatch.setattr(measure, "interleave", lambda *a, **k: pytest.fail("timed an unequal candidate"))
    with stopped:
        RaggedChapter(tiny_bert, quick=PLAN).run(Context(TourConfig(quick=True)))


def test_nan_counts_as_unequal(monkeypatch):
    monkeypatch.setattr(
        measure, "PackedLoop", lambda model: lambda batch: torch.full((len(batch.lengths), 32), math.nan)
    )
    with pytest.raises(RuntimeError, match="a difference of nan"):
        RaggedChapter(tiny_bert, quick=PLAN).run(Context(TourConfig(quick=True)))


def test_batches_pad_on_the_right_and_keep_everything():
    tokens = [[1, 2, 3], [4], [5, 6]]
    first, second = peers.make_batches(tokens, 2, pad_id=9)
    assert first.input_ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert first.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (second.input_ids.tolist(), second.lengths) == ([[5, 6]], (2,))


def test_sorted_rows_come_back_in_the_callers_order():
    order = [2, 0, 1]
    batches = peers.make_batches([[7], [8, 8], [9, 9, 9]], 2, pad_id=0)
    rows = peers.restored(lambda batch: batch.input_ids[:, :1].float(), batches, order)()
    assert rows.flatten().tolist() == [8.0, 9.0, 7.0]


def test_useful_flops_of_one_layer_by_hand():
    config = transformers.BertConfig(hidden_size=2, intermediate_size=3, num_hidden_layers=1, num_attention_heads=1)
    # 4 projections of 2x2, two of 2x3, per token; scores and values over 3x3 pairs
    assert peers.useful_flops([3], config) == 2 * 3 * (4 * 4 + 2 * 6) + 2 * 2 * 2 * 9


def test_what_is_missing_is_asked_for_the_real_input_only():
    assert RaggedChapter(tiny_bert).requires() == ()


@pytest.mark.skipif(bool(CHAPTER.requires()), reason="the model or the verses are not installed (extra: tour)")
def test_real_model_on_real_verses():
    chapter = RaggedChapter(load_verses, quick=Plan(sentences=16, batch=8, rounds=1, points=1))
    result = chapter.run(Context(TourConfig(quick=True)))
    assert result.records[0].shapes == {
        "sentences": 16,
        "batch": 8,
        "tokens": sum(result.facts["lengths"]),
        "longest": max(result.facts["lengths"]),
        "hidden": 384,
        "layers": 6,
        "heads": 12,
        "ff": 1536,
    }
    assert "World English Bible" in result.records[0].source
