# SPDX-License-Identifier: Apache-2.0
"""What the quality program runs next and how it judges finished runs; nothing is trained."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bench import targets
from bench.offload import quality
from bench.offload.encoder import Task
from bench.offload.methods import METHODS
from bench.offload.quality import Run
from bench.registry import Unavailable


def made(method: str, lr: float, seed: int = 0, loss: float = 0.5, accuracy: float = 0.8, task: str = "SST-2") -> Run:
    return Run(task, method, lr, seed, 60, loss, accuracy, accuracy / 2, 1.0, 100 if method == "adamw" else 20)


def follow(method: str, best: float, seeds: int = 3) -> list[tuple[float, int]]:
    """What is run, in order, where the score is best at one rate."""
    done: list[Run] = []
    while todo := quality.next_run("SST-2", method, 60, seeds, done):
        done.append(made(method, *todo, accuracy=1 - abs(todo[0] - best)))
        assert len(done) < 30
    return [(r.lr, r.seed) for r in done]


def test_a_sweep_comes_before_the_seeds():
    rates = METHODS["lsp"].rates
    assert follow("lsp", rates[1]) == [*((lr, 0) for lr in rates), (rates[1], 1), (rates[1], 2)]


def test_a_sweep_goes_on_beyond_its_edges():
    rates = METHODS["lora"].rates
    assert follow("lora", 2 * rates[-1])[4:6] == [(2 * rates[-1], 0), (4 * rates[-1], 0)]
    assert follow("lora", rates[0] / 2)[4:6] == [(rates[0] / 2, 0), (rates[0] / 4, 0)]


def test_a_sweep_ends_somewhere():
    assert len({lr for lr, _ in follow("adamw", 1.0)}) == 6


def test_a_diverged_run_is_never_the_best():
    assert quality.best_rate([made("lsp", 1.0, loss=float("nan")), made("lsp", 2.0, loss=9.0)]) == 2.0


def test_cola_is_scored_by_correlation():
    assert made("lsp", 1.0, task="CoLA").score == pytest.approx(40)
    assert made("lsp", 1.0, task="MRPC").score == pytest.approx(80)


def test_figures_are_those_of_the_targets(tmp_path, monkeypatch, capsys):
    accuracy = {"adamw": 0.81, "lsp": 0.8, "lora": 0.79, "galore": 0.8, "lsp, bf16": 0.795}
    runs = [
        made(m, lr, seed, lr, a, task)
        for m, a in accuracy.items() for task in ("CoLA", "MRPC", "SST-2") for lr, seed in RATES
    ]  # fmt: skip
    file = tmp_path / "quality.jsonl"
    file.write_text("\n".join(json.dumps(asdict(r)) for r in runs))
    monkeypatch.setattr(quality, "read", lambda: _read(file))
    seen = quality.figures()
    assert set(seen) == {t.figure for t in targets.of("O12")}
    assert seen["SST-2: points of adamw above LSP"] == pytest.approx(1.0)
    assert seen["CoLA: points of lora above LSP"] == pytest.approx(-0.5)
    assert seen["MRPC: traffic of full AdamW over LSP's"] == 5
    assert "2 seeds" in capsys.readouterr().out
    half = quality.half_figures()
    assert half["points lost by bfloat16, rounded by chance"] == pytest.approx(0.5)
    assert half["points lost by bfloat16, to nearest"] != half["points lost by bfloat16, to nearest"]  # not run


_read = quality.read
RATES = ((1.0, 0), (2.0, 0), (1.0, 1))  # and seeds


def test_without_runs_it_says_how_to_make_them(tmp_path):
    with pytest.raises(Unavailable, match=r"python -m bench\.offload\.quality"):
        quality.read(tmp_path / "none.jsonl")


def test_batches_are_of_like_lengths_and_repeat():
    rows = [([1] * (1 + i % 50), i % 2) for i in range(200)]
    task = Task("made up", rows, rows, rows)
    batches = list(task.batches(4, 11, 3))
    assert len(batches) == 11
    assert all(ids.shape[0] == 4 and mask.sum(1).float().std() < 8 for ids, mask, _ in batches)
    assert all(a[0].equal(b[0]) for a, b in zip(batches, task.batches(4, 11, 3), strict=True))
