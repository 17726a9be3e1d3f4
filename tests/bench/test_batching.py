# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of batched graphs: their models agree, and what DyNet answers is checked before it is timed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bench import inputs
from bench.batching import lattice_lstm, side_by_side, tree_lstm
from bench.batching.side_by_side import EAGER, OURS, DyNet
from bench.registry import Unavailable

# tag and arcs of every position: words from further back, two sums
LATTICES = [
    ((0, ()), (3, ((0, 5),)), (1, ((1, 7), (0, 9))), (2, ((2, 7), (1, 1), (0, 255)))),
    ((18, ()), (2, ((0, 5),))),
]
TREES = [(1, (2, 3), (0, (4, 1), (3, 9))), (2, 0)]

# a stand-in for DyNet: answers with the losses it is told
ANSWERS = """
import json, sys
job = json.loads(sys.stdin.readline())
print("some library speaks first")
print("ready", flush=True)
for loss, _ in zip(job["losses"], sys.stdin):
    print(0.5, loss, flush=True)
"""


@pytest.fixture
def peer(monkeypatch, tmp_path):
    folder = tmp_path / "bench" / "batching" / "peers"
    folder.mkdir(parents=True)
    (folder / "answers.py").write_text(ANSWERS)
    monkeypatch.setattr(inputs, "ROOT", tmp_path)
    monkeypatch.setenv("EDGEOPS_DYNET", sys.executable)
    started = []

    def start(losses):
        started.append(DyNet("answers.py", [], [torch.ones(2)], True, 1, losses=losses))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_lattice_ways_agree():
    torch.manual_seed(0)
    model = lattice_lstm.Model(8)
    ways = {OURS: lambda m: m.batched(LATTICES), EAGER: lambda m: m.eager(LATTICES)}
    side_by_side.check(model, ways)
    assert model.eager(LATTICES).item() > 0


def test_tree_ways_agree():
    torch.manual_seed(0)
    model = tree_lstm.Model(8)
    ways = {OURS: lambda m: m.batched(TREES), "by hand": lambda m: m.by_hand(TREES), EAGER: lambda m: m.eager(TREES)}
    side_by_side.check(model, ways)


def test_a_way_that_differs_is_not_timed():
    model = lattice_lstm.Model(4)
    ways = {OURS: lambda m: m.batched(LATTICES[:1]), EAGER: lambda m: m.eager(LATTICES)}
    with pytest.raises(AssertionError):
        side_by_side.measure(model, ways, False, 1, None)


def test_every_way_is_timed():
    model = lattice_lstm.Model(4)
    before = model.classes.bias.detach().clone()
    ways = {OURS: lambda m: m.batched(LATTICES), EAGER: lambda m: m.eager(LATTICES)}
    samples = side_by_side.measure(model, ways, True, 3, None)
    assert {name: len(one.seconds) for name, one in samples.items()} == {OURS: 3, EAGER: 3}
    assert not torch.equal(model.classes.bias, before)
    assert side_by_side.measure(model, ways, False, 1, None, eager=False).keys() == {OURS}


def test_parameters_for_dynet_are_the_models():
    model = lattice_lstm.Model(4)
    mine = model.for_dynet(own_nodes=True)
    i, f, o, g = mine[4].chunk(4)
    mi, mf, mg, mo = model.cells["char"].bias_ih.chunk(4)
    for a, b in ((i, mi), (f + 1, mf), (o, mo), (g, mg)):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(model.for_dynet(own_nodes=False)[4].chunk(4)[1], mf)


def test_dynet_that_computes_something_else_is_not_timed(peer):
    model = lattice_lstm.Model(4)
    with torch.no_grad():
        right = model.batched(LATTICES).item()
    with pytest.raises(RuntimeError, match=r"DyNet's loss must be .* after 0 steps; got .* Compare answers.py"):
        side_by_side.check_dynet(model, lambda m: m.batched(LATTICES), peer([right * 1.01]), False)
    # the loss after one step tells whether the gradients were the same
    with pytest.raises(RuntimeError, match="after 1 steps"):
        side_by_side.check_dynet(model, lambda m: m.batched(LATTICES), peer([right, right * 1.01]), True)
    side_by_side.check_dynet(model, lambda m: m.batched(LATTICES), peer([right]), False)


def test_a_dynet_that_ends_is_an_error(peer):
    one = peer([1.0])
    assert one.step() == (0.5, 1.0)
    with pytest.raises(RuntimeError, match=r"answers\.py must answer; got the end of its output"):
        one.step()


def test_no_dynet_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEOPS_DYNET", str(tmp_path / "python"))
    with pytest.raises(Unavailable, match="make dynet"):
        DyNet("dynet_tree.py", [], [], False, 1)


@pytest.mark.parametrize("module", [lattice_lstm, tree_lstm])
def test_no_data_is_told(module, monkeypatch, capsys):
    monkeypatch.setattr(inputs, "SHARED", Path("/nowhere"))
    assert module.main(["--no-dynet", "--rounds", "1"]) == 1
    assert "no real data beside this checkout" in capsys.readouterr().err
