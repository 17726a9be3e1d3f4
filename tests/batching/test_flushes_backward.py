# SPDX-License-Identifier: Apache-2.0
"""Several flushes of one session share packed weights, and give the gradients of parameters once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeops import batching
from edgeops.batching.cells import GRU, Dense, Embedding


class Chain(nn.Module):
    """Steps of three cells, and a flush after every one."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.step, self.mix = Embedding(5, 4), GRU(4, 4), Dense(8, 4, "tanh")

    def states(self, session: Any, h: Any, rounds: int = 3) -> list[Any]:
        found = []
        for k in range(rounds):
            x = self.words.look_up(k)
            h = self.mix.mix(self.step.step(x, h), x) if k else self.step.step(x, h)
            session.flush()
            found.append(h)
        return found

    def eagerly(self, h: Tensor, rounds: int = 3) -> list[Tensor]:
        found = []
        for k in range(rounds):
            x = self.words.weight[k]
            y = self.step(x[None], h[None])[0]
            h = self.mix(torch.cat([y, x])) if k else y
            found.append(h)
        return found


@pytest.fixture
def chain() -> Chain:
    torch.manual_seed(0)
    return Chain().double()


def start() -> Tensor:
    return torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)


def same(ours: Any, theirs: Any) -> None:
    for a, b in zip(ours, theirs, strict=True):
        if b is None:
            assert a is None
        else:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("read", [(2,), (0,), (0, 2), (1,)])
def test_gradients_of_any_flush(chain: Chain, read: tuple[int, ...]) -> None:
    h = start()
    leaves = [h, *chain.parameters()]
    with batching.session() as s:
        ours = chain.states(s, h)
        total = s.sum([ours[k] for k in read]).square().sum()
    theirs = chain.eagerly(h)
    wanted = sum((theirs[k] for k in read), torch.zeros(4)).square().sum()
    torch.testing.assert_close(total, wanted)
    want = torch.autograd.grad(wanted, leaves, allow_unused=True)
    for _ in range(2):
        same(torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True), want)
    for k, leaf in enumerate(leaves):  # one at a time: sums of one backward must not get into another
        same(torch.autograd.grad(total, [leaf], retain_graph=True, allow_unused=True), [want[k]])
    same(torch.autograd.grad(total, leaves, allow_unused=True), want)


def test_backward_adds_to_what_is_there(chain: Chain) -> None:
    with batching.session() as s:
        values = chain.states(s, start())
        total = s.sum(values).sum()
    total.backward(retain_graph=True)
    once = [p.grad.clone() for p in chain.parameters() if p.grad is not None]
    total.backward()
    same([p.grad for p in chain.parameters()], [2 * x for x in once])


def test_parameters_that_are_frozen_for_a_while(chain: Chain) -> None:
    h = start()
    with batching.session() as s:
        chain.step.weight_hh.requires_grad_(False)
        (first,) = chain.states(s, h, 1)
        chain.step.weight_hh.requires_grad_()
        last = chain.step.step(chain.words.look_up(4), first)
        total = s.tensor(last).sum()
    (ours,) = torch.autograd.grad(total, [chain.step.weight_hh])
    before = chain.eagerly(h, 1)[0].detach()
    theirs = chain.step(chain.words.weight[4][None], before[None]).sum()
    same([ours], torch.autograd.grad(theirs, [chain.step.weight_hh]))


def test_parameters_that_are_replaced(chain: Chain) -> None:
    h, old = start(), chain.step.weight_hh
    with batching.session() as s:
        (first,) = chain.states(s, h, 1)
        s.flush()
        chain.step.weight_hh = nn.Parameter(2 * old.detach())
        total = s.tensor(chain.step.step(chain.words.look_up(4), first)).sum()
    leaves = [old, chain.step.weight_hh, chain.words.weight]
    ours = torch.autograd.grad(total, leaves)
    new, chain.step.weight_hh = chain.step.weight_hh, old
    before = chain.eagerly(h, 1)[0]
    chain.step.weight_hh = new
    theirs = chain.step(chain.words.weight[4][None], before[None]).sum()
    torch.testing.assert_close(total, theirs)
    same(ours, torch.autograd.grad(theirs, leaves))


@pytest.mark.parametrize("train", [False, True])
def test_weights_that_change_between_flushes(chain: Chain, train: bool) -> None:
    with torch.set_grad_enabled(train), batching.session() as s:
        x = chain.words.look_up(1)
        before = chain.mix.mix(x, x)
        s.flush()
        with torch.no_grad():
            chain.mix.weight.mul_(2)
        after = chain.mix.mix(x, x)
        rows = chain.words.weight[1].repeat(2)
        torch.testing.assert_close(s.tensor(after), chain.mix(rows))
        if train:
            with pytest.raises(RuntimeError, match="parameters must not change between forward and backward"):
                s.sum([before, after]).sum().backward()


def test_writes_that_are_not_counted_without_training(chain: Chain) -> None:
    with torch.no_grad(), batching.session() as s:
        x = chain.words.look_up(1)
        s.tensor(chain.mix.mix(x, x))
        chain.mix.weight.data.mul_(2)
        torch.testing.assert_close(s.tensor(chain.mix.mix(x, x)), chain.mix(chain.words.weight[1].repeat(2)))


def test_weights_are_packed_once_a_session(chain: Chain) -> None:
    bytes_of = []
    for rounds in (2, 6):
        with batching.session() as s:
            h: Any = chain.step.step(chain.words.look_up(0), torch.zeros(4, dtype=torch.float64))
            for _ in range(rounds):
                h = chain.step.step(chain.words.look_up(0), h)
                s.flush()
        bytes_of.append(s.report.copied_bytes["weights"])
    assert bytes_of[0] == bytes_of[1] > 0
