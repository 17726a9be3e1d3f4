# SPDX-License-Identifier: Apache-2.0
"""`edgeops ragged explain`: counts from a file, texts through a tokenizer, wrong use."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from edgeops.cli._app import build
from edgeops.ragged import explain


def run(*arguments: object):
    return CliRunner().invoke(build(), ["ragged", "explain", *map(str, arguments)])


def said(done) -> str:
    """Standard error without the box drawn around it."""
    return " ".join(done.stderr.replace("│", " ").split())


@pytest.fixture
def counts(tmp_path):
    path = tmp_path / "counts.txt"
    path.write_text("12\n90\n35\n7\n" * 16)
    return path


def test_json_is_what_explain_returns(counts):
    done = run(counts, "--batch-size", "8", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == explain([12, 90, 35, 7] * 16, batch_size=8).to_dict()


def test_text_ends_with_the_advice(counts):
    done = run(counts)
    assert done.exit_code == 0
    assert "64 sequences, 2,304 tokens" in done.stdout
    assert "=> pack: " in done.stdout


@pytest.mark.parametrize(
    ("content", "rule"),
    [("12\nmany\n", "must hold integers only"), ("", "at least one sequence"), ("3\n-1\n", "no negative")],
    ids=["words", "empty", "negative"],
)
def test_a_bad_file_makes_2(tmp_path, content, rule):
    path = tmp_path / "counts.txt"
    path.write_text(content)
    done = run(path)
    assert done.exit_code == 2
    assert rule in said(done)


@pytest.mark.parametrize("arguments", [[], ["nowhere.txt"]], ids=["no file", "absent"])
def test_no_file_makes_2(arguments):
    assert run(*arguments).exit_code == 2


def test_a_batch_size_of_zero_makes_2(counts):
    done = run(counts, "--batch-size", "0")
    assert done.exit_code == 2
    assert "batch" in said(done)


@pytest.fixture
def model_folder(tmp_path):
    """A word-level tokenizer and the config of a small BERT, as save_pretrained writes them."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "model"
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", model_max_length=5)
    fast.save_pretrained(folder)
    transformers.BertConfig(
        hidden_size=64, num_attention_heads=4, intermediate_size=96, num_hidden_layers=3
    ).save_pretrained(folder)
    return folder


def test_texts_are_counted_by_a_tokenizer_and_cut_where_the_model_cuts(tmp_path, model_folder):
    texts = tmp_path / "texts.txt"
    texts.write_text("a a a\n\n  \na\na a a a a a a a\n")
    done = run(texts, "--tokenizer", model_folder, "--model", model_folder, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["num_sequences"], found["num_tokens"], found["longest"]) == (3, 9, 5)
    assert found["num_layers"] == 3
    assert (found["shape"]["hidden_size"], found["shape"]["ff_size"]) == (64, 96)


def test_a_text_file_without_text_makes_2(tmp_path, model_folder):
    texts = tmp_path / "texts.txt"
    texts.write_text(" \n\n")
    done = run(texts, "--tokenizer", model_folder)
    assert done.exit_code == 2
    assert "needs a line of text" in said(done)


def test_bytes_that_are_no_text_make_2(tmp_path, model_folder):
    texts = tmp_path / "texts.bin"
    texts.write_bytes(b"\xff\xfe\x00")
    assert run(texts, "--tokenizer", model_folder).exit_code == 2


@pytest.mark.parametrize("option", ["--tokenizer", "--model"])
def test_a_folder_without_what_is_needed_makes_2(counts, tmp_path, option):
    pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(counts, option, empty)
    assert done.exit_code == 2
    assert "as save_pretrained writes it" in said(done)


def test_without_transformers_the_extra_is_named(counts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = run(counts, "--tokenizer", tmp_path)
    assert done.exit_code == 1
    assert "pip install 'edgeops[hf]'" in done.stderr
