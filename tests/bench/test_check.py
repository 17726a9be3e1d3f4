# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from bench import check, exact, inputs, overhead, registry, run, speed, speed_gpu, targets
from bench.inputs import LISTS, SHORT_LISTS
from bench.ragged import (
    attention,
    attention_train,
    encoder_layer,
    encoder_layer_train,
    gemm,
    layout,
    minilm,
    threads,
    triangular,
)
from bench.registry import GateFailed, Unavailable
from edgeops import perf
from edgeops.perf import Record, Samples

ENVIRONMENT = perf.capture()


def _case(workload, case, times, share=0.5, **notes):
    """Records of one made-up run: candidate -> seconds."""
    return [
        Record(
            workload=workload,
            case=case,
            candidate=name,
            shapes={},
            source="made up",
            dtype="float32",
            environment=ENVIRONMENT,
            samples=Samples((seconds, seconds)),
            paired_roof_share=share,
            notes={"run": f"{workload} {case}", **notes},
        )
        for name, seconds in times.items()
    ]


def _lists(workload, times, names=LISTS, **more):
    return [r for name in names for r in _case(workload, f"{name}/32", times, **more)]


RECORDS = {
    "C5": _lists("ragged_attention", {attention.OURS: 1.0, attention.LOOP: 3.0, attention.PADDED: 4.0}),
    "C6": _lists("ragged_attention_train", {attention.OURS: 1.0, attention.LOOP: 2.0, attention.PADDED: 3.0}),
    "C7": _lists("encoder_layer", {encoder_layer.OURS: 1.0, encoder_layer.LOOP: 1.1, encoder_layer.PADDED: 2.0}),
    "C8": _lists(
        "encoder_layer_train",
        {encoder_layer.OURS: 1.0, encoder_layer.LOOP: 1.1, encoder_layer_train.STOCK: 2.0},
        names=SHORT_LISTS,
    ),
    "C9": _case("minilm", "STS-B/640", {minilm.OURS: 1.0, minilm.PADDED: 2.0, minilm.SORTED: 1.2}, max_abs_error=1e-7)
    + _case("minilm", "verses/320", {minilm.OURS: 1.0, minilm.PADDED: 2.0, minilm.SORTED: 1.2}, max_abs_error=3e-7),
    "C10": _lists("vgemm", {gemm.OURS: 1.0, gemm.MKL: 1.1, gemm.LOOP: 2.5}, gemm.SETS),
    "C11": [
        record
        for case in registry.workload("triangular").cases("full")
        for record in _case("triangular", case.name, {triangular.OURS: 1.0, triangular.DENSE: 1.9})
    ],
    "C12": _lists(
        "ragged_attention_causal",
        {attention_train.CAUSAL: 1.0, attention_train.UNMASKED: 1.6},
        names=("MNLI", "RACE"),
    ),
    "C14": _lists("ragged_layout", {layout.OURS: 0.002, layout.LAYER: 1.0}),
    "C15": [
        record
        for case in registry.workload("ragged_attention_threads").cases("full")
        for record in _case(
            "ragged_attention_threads", case.name, {threads.ONE: 1.5 if "long" in case.name else 1.9, threads.TWO: 1.0}
        )
    ],
}


def _figures(item, records=None):
    return check.figures(item, run.Settings(), RECORDS[item] if records is None else records, None)


@pytest.mark.parametrize("item", RECORDS)
def test_every_target_has_its_figure(item, capsys):
    assert set(_figures(item)) == {target.figure for target in targets.of(item)}


def test_attention_figures(capsys):
    seen = _figures("C5")
    assert seen["geomean over the sdpa loop"] == pytest.approx(3.0)
    assert seen["geomean over padded sdpa"] == pytest.approx(4.0)
    assert seen["worst list over the better peer"] == pytest.approx(3.0)
    assert seen["RACE share of the sgemm roof"] == 0.5


def test_training_figures(capsys):
    seen = _figures("C8")
    assert seen["MNLI over nn.TransformerEncoderLayer"] == pytest.approx(2.0)
    assert seen["worst short list over packed + sdpa loop"] == pytest.approx(1.1)
    assert _figures("C8", RECORDS["C8"][3:]) == {}


def test_one_slow_list_shows_in_the_worst(capsys):
    slow = _case("ragged_attention", "MRPC/32", {attention.OURS: 5.0, attention.LOOP: 3.0, attention.PADDED: 4.0})
    seen = _figures("C5", [r for r in RECORDS["C5"] if r.case != "MRPC/32"] + slow)
    assert seen["worst list over the better peer"] == pytest.approx(0.6)


def test_encoder_figures_look_at_the_short_lists(capsys):
    names = [name for name in LISTS if name not in SHORT_LISTS]
    times = {encoder_layer.OURS: 1.0, encoder_layer.LOOP: 0.5, encoder_layer.PADDED: 2.0}
    mixed = _lists("encoder_layer", times, names)
    seen = _figures("C7", [r for r in RECORDS["C7"] if r.case.partition("/")[0] in SHORT_LISTS] + mixed)
    assert seen["geomean over packed + sdpa loop, short lists"] == pytest.approx(1.1)
    assert seen["worst list over packed + sdpa loop"] == pytest.approx(0.5)


def test_other_figures(capsys):
    assert _figures("C9")["largest difference of an embedding"] == 3e-7
    assert _figures("C14")["layout share of a layer, CoLA"] == pytest.approx(0.002)
    assert _figures("C15")["worst speed-up of 2 threads over 1"] == pytest.approx(1.5)


@pytest.mark.parametrize("item", RECORDS)
def test_incomplete_records_do_not_pass(item, capsys):
    fine, lines = check.verdict(item, _figures(item, RECORDS[item][:1]))
    assert not fine
    assert all("MISS" in line and "nan" in line for line in lines)


def test_verdict_needs_every_figure():
    seen = {t.figure: t.bound for t in targets.of("C9")}
    assert check.verdict("C9", seen)[0]
    assert not check.verdict("C9", {**seen, "STS-B over padded, file order": 1.89})[0]
    assert not check.verdict("C9", {**seen, "STS-B over padded, file order": math.nan})[0]


@pytest.mark.parametrize("error", [Unavailable("no moon"), GateFailed("wrong result")])
def test_what_cannot_be_measured_fails(monkeypatch, capsys, error):
    def fail():
        raise error

    monkeypatch.setitem(check.EXACT, "C1", fail)
    assert check.main(["C1"]) == 1
    assert f"C1 FAIL  {error}" in capsys.readouterr().out


def test_command_line_judges_records(tmp_path, capsys):
    perf.write_jsonl(tmp_path / "r.jsonl", RECORDS["C15"])
    assert check.main(["C15", "--records", str(tmp_path / "r.jsonl")]) == 1
    assert "C15 MISS  worst speed-up of 2 threads over 1: 1.5 x (must be >= 1.8 x)" in capsys.readouterr().out
    assert check.main(["C99"]) == 2


def test_every_item_is_measured_by_something():
    assert set(check.EXACT) | set(speed.ITEMS) | set(speed_gpu.ITEMS) == set(targets.items())
    named = {entry.workload for entry in speed.ITEMS.values()}
    named |= {name for entry in speed_gpu.ITEMS.values() for name in entry.workloads}
    assert named <= set(registry.workloads())


def test_synthetic_records_are_called_a_rehearsal(capsys):
    _figures("C14", _lists("ragged_layout", {layout.OURS: 1.0, layout.LAYER: 1.0}, synthetic=True))
    assert "only a rehearsal" in capsys.readouterr().out


def test_a_roof_that_moves_is_pointed_out(capsys):
    _figures("C5")
    assert "quieter machine" not in capsys.readouterr().out
    _figures("C14", _lists("ragged_layout", {layout.OURS: 1.0, layout.LAYER: 1.0}, share=1.2, roof_spread=0.3))
    told = capsys.readouterr().out
    assert "the roof moved within a run (CoLA/32 30 %" in told
    assert "above 1 is noise" in told


def test_addressing_passes_and_can_fail(monkeypatch):
    assert check.verdict("C1", exact.addressing(20))[0]
    monkeypatch.setattr(exact.RaggedShape, "offsets", lambda self, indices: torch.arange(len(indices)).numpy() + 1)
    assert exact.addressing(20)["random dimension graphs that differ from enumeration"] > 10


@pytest.mark.skipif(not inputs.have_shared(), reason=inputs.skip_reason())
def test_models_pass():
    assert check.verdict("C2", exact.models())[0]


def test_models_need_the_real_lists(monkeypatch):
    monkeypatch.setattr(exact, "have_shared", lambda: False)
    with pytest.raises(Unavailable, match="not beside this checkout"):
        exact.models()


def test_varlen_passes_and_can_fail(monkeypatch):
    assert exact.varlen() == {"varlen_attn calls that fail or exceed the error budget": 0.0}
    real = exact.varlen_attn
    monkeypatch.setattr(exact, "varlen_attn", lambda *args, **kwargs: real(*args, **kwargs) * 1.05)
    assert exact.varlen()["varlen_attn calls that fail or exceed the error budget"] == 12


def test_overhead_covers_the_public_ops():
    seen = overhead.calls(grad=True)
    assert {"ragged_attention", "pack", "unpack", "ragged_pool", "bias_gelu", "add_layer_norm"} <= set(seen)
    assert all(call().requires_grad for call in seen.values())


def test_import_cost_names_what_is_pulled_in(monkeypatch):
    monkeypatch.setattr(overhead, "OPTIONAL", ("json", "edgeops_no_such_module"))
    seconds, pulled = overhead.import_cost(rounds=1)
    assert seconds >= 0
    assert pulled == ["json"]
