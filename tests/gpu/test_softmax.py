# SPDX-License-Identifier: Apache-2.0
"""Softmax over the rows of sequences on a GPU, through the public function."""

import pytest
import torch

from edgeops.ragged import ragged_softmax
from tests.budget import assert_within_budget
from tests.peers import offsets_of

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
LOG = pytest.mark.parametrize("log", [False, True], ids=["softmax", "log"])
LENGTHS = {
    "mixed": [3, 0, 500, 1, 0],
    "one long among empty": [0, 0, 4000, 0],
    "short": [3, 1, 4, 1, 5, 9, 2, 6] * 40,
    "all empty": [0, 0],
    "none": [],
}
LISTS = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())


def by_sequence(x, lengths, log):
    parts = [torch.log_softmax(part, 0) if log else torch.softmax(part, 0) for part in x.split(lengths)]
    return torch.cat([x[:0], *parts])


@LISTS
@FLOATS
@LOG
@pytest.mark.parametrize("width", [1, 12, 300])
def test_values_and_gradients(lengths, dtype, log, width):
    x = (3 * torch.randn(sum(lengths), width, device="cuda")).to(dtype).requires_grad_()
    grad = torch.randn(x.shape, device="cuda").to(dtype)
    wide = x.detach().double().requires_grad_()
    cu = offsets_of(lengths, torch.int32).cuda()
    out, peer, exact = ragged_softmax(x, cu, log=log), by_sequence(x, lengths, log), by_sequence(wide, lengths, log)
    assert_within_budget("softmax", *(y.detach().cpu() for y in (out, peer, exact)), noise=1e-6)
    got, theirs = (torch.autograd.grad(y, x, grad)[0].cpu() for y in (out, peer))
    # a gradient is a difference of sums over the sequence, whose terms are of the size of 1
    room = 1e-6 * max(lengths, default=1) + (4 * torch.finfo(dtype).eps if log else 0.0)
    assert_within_budget("gradient", got, theirs, torch.autograd.grad(exact, wide, grad.double())[0].cpu(), noise=room)


@LOG
def test_bad_values_stay_in_their_sequence_and_column(log):
    x = torch.randn(50, 5, device="cuda")
    x[40, 3], x[12, 1], x[10:45, 4], x[3, 0] = float("nan"), float("inf"), float("-inf"), float("-inf")
    out = ragged_softmax(x, offsets_of([10, 35, 5]).cuda(), log=log)
    torch.testing.assert_close(out, by_sequence(x, [10, 35, 5], log), equal_nan=True)


def test_any_strides_and_shapes():
    cu = offsets_of([7, 0, 2]).cuda()
    x = torch.randn(4, 9, device="cuda").T
    assert torch.equal(ragged_softmax(x, cu), ragged_softmax(x.contiguous(), cu))
    assert torch.equal(ragged_softmax(x[:, 1], cu), ragged_softmax(x, cu)[:, 1])
    assert torch.equal(ragged_softmax(x.unflatten(1, (2, 2)), cu).flatten(1), ragged_softmax(x, cu))


@FLOATS
def test_result_does_not_depend_on_the_batch(dtype):
    x = torch.randn(383, 12, device="cuda").to(dtype)
    rows = slice(13, 313)
    whole = ragged_softmax(x, offsets_of([13, 300, 0, 70]).cuda())
    assert torch.equal(whole[rows], ragged_softmax(x[rows], offsets_of([300]).cuda()))


def test_wrong_offsets_never_reach_outside():
    x = torch.randn(6, 3, device="cuda", requires_grad=True)
    for wrong in ([0, 500, 900], [0, 7, 2], [-5, 3, 10], [0, 2**40, 2**41]):
        torch.autograd.grad(ragged_softmax(x, torch.tensor(wrong, device="cuda")).sum(), x)
    torch.cuda.synchronize()


def test_nothing_waits_for_the_gpu(no_sync):
    x, cu = torch.randn(53, 12, device="cuda", requires_grad=True), offsets_of([3, 0, 50]).cuda()

    def step():
        out = ragged_softmax(x, cu)
        return torch.autograd.grad(out, x, torch.ones_like(out))

    step()  # compiles
    with no_sync:
        step()
