# SPDX-License-Identifier: Apache-2.0
"""The program of OG24 on a tiny decoder and on counted tokens: two steps of each method, and its figures."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench import check, speed_gpu, targets
from bench.offload import gsm8k
from bench.offload.decoder import decoder
from bench.registry import Unavailable

CPU = torch.device("cpu")


class Causal(nn.Module):
    """A decoder that is called as those of transformers are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = decoder("tiny", CPU, torch.float32)

    def forward(self, input_ids, labels):
        assert input_ids is labels or torch.equal(input_ids, labels)
        return SimpleNamespace(loss=self.model(input_ids))


def counted(sequences):
    return torch.arange(12).repeat(sequences, 1) + torch.arange(sequences)[:, None] % 40


def test_a_few_steps_of_both():
    text = gsm8k.Text(counted(20), counted(5))
    rates = {gsm8k.ADAMW: (3e-3,), gsm8k.OURS: (1e-4, 3e-3)}
    done = gsm8k.sweep(Causal(), text, CPU, steps=3, batch=4, rates=rates, targets=["model.blocks.*"])
    assert [(r.method, r.lr) for r in done] == [(m, lr) for m in rates for lr in rates[m]]
    assert len({r.before for r in done}) == 1
    assert all(r.loss < r.before for r in done)
    figures = gsm8k.figures_of(done)
    assert set(figures) == {target.figure for target in targets.of("OG24")}
    assert figures["bytes moved a step over whole gradients'"] < 0.5
    assert figures["held-out loss over full AdamW's"] == min(done[1].loss, done[2].loss) / done[0].loss


def test_it_is_an_item_of_the_gpu(monkeypatch):
    assert speed_gpu.ITEMS["OG24"].besides is gsm8k.quality
    monkeypatch.setattr(gsm8k, "SHARED", gsm8k.Path("nowhere"))
    with pytest.raises(Unavailable, match="GSM8K"):
        gsm8k.load()
    assert not check.verdict("OG24", {})[0]
