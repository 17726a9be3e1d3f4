# SPDX-License-Identifier: Apache-2.0
"""What the programs about moments and projectors make of their runs."""

import pytest
import torch

from bench import check, targets
from bench.offload import moments, projectors
from edgeops.offload import LSPAdamW
from edgeops.offload.moments import CHANGES


def made_up():
    lost = {"project_normalised": 0.1, "reset": 0.3, "reset_with_t": 0.2}
    for seed in range(2):
        plain = [1.0 + seed, 0.5]
        yield moments.Run(seed, "", "keep", plain)
        for start in moments.STARTS:
            for how, more in lost.items():
                yield moments.Run(seed, start, how, [x + more for x in plain])


def test_loss_above_that_of_unchanged_pairs(monkeypatch):
    done = list(made_up())
    seen = moments.excess(done)
    assert seen["a new draw", "reset"] == pytest.approx([0.3, 0.3])
    assert len(moments.table(done)) == 6
    monkeypatch.setattr(moments, "runs", lambda seed, **_: (run for run in done if run.seed == seed))
    monkeypatch.setattr(moments, "SEEDS", 2)
    figures = check.EXACT["O10"]()
    assert set(figures) == {target.figure for target in targets.of("O10")}
    assert all(target.met(figures[target.figure]) for target in targets.of("O10"))


def test_a_change_of_all_pairs():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 10), torch.nn.Tanh(), torch.nn.Linear(10, 8))
    optimizer = LSPAdamW(model, lr=1e-2, d=4, r=2, check_every=100)
    for _ in range(2):
        model(torch.randn(6, 12)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    pairs = [projectors.drawn(t.weight.shape, 4, 2, 9) for t in optimizer.targets]
    for how in CHANGES:
        moments.change(optimizer, pairs, how)
    assert [t.pair for t in optimizer.targets] == pairs
    assert all(float(optimizer.state[t.leaf]["exp_avg"].norm()) == 0 for t in optimizer.targets)


def test_a_page_of_projectors():
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.randn(24, 3, generator=generator) @ torch.randn(3, 20, generator=generator) for _ in range(2))
    rows = projectors.rows_of("made up", "matrix", own, other, 8, 2)
    assert {row.way for row in rows} >= {projectors.OURS, projectors.PAPER, projectors.WIDE, projectors.THIN}
    assert all(row.seconds >= 0 for row in rows)
    assert rows[-1].calibration < 1e-3
    page = projectors.markdown(rows)
    assert page.count("| made up |") == len(rows)
    assert "in 0 of 1" in page or "in 1 of 1" in page
