# SPDX-License-Identifier: Apache-2.0
"""Convolution of packed sequences on a GPU, through the public function."""

import pytest
import torch
import torch.nn.functional as F

from edgeops.ragged import ragged_conv1d
from tests.budget import assert_within_budget
from tests.peers import offsets_of

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
# channels in and out, taps, padding on the left and the right, dilation, groups
KINDS = [(3, 5, 3, 1, 1, 1, 1), (8, 12, 2, 3, 3, 2, 4), (40, 70, 1, 0, 0, 1, 1), (128, 256, 3, 1, 1, 1, 1)]
LISTS = pytest.mark.parametrize(
    "lengths", [[3, 0, 500, 1], [2, 2] * 40, [0, 0], []], ids=["mixed", "short", "0", "none"]
)


def by_sequence(x, lengths, weight, bias, left, right, dilation, groups):
    parts = []
    for part in x.split(lengths):
        if len(part) + left + right > dilation * (weight.shape[2] - 1):
            rows = F.pad(part.T[None], (left, right))
            parts.append(F.conv1d(rows, weight, bias, dilation=dilation, groups=groups)[0].T)
    nothing = x[:0, :1] * weight[:, 0, 0] + bias  # no rows, but a gradient
    return torch.cat([nothing, *parts])


def tensors(lengths, kind, dtype):
    width, out_width, taps, *_, groups = kind
    shapes = (sum(lengths), width), (out_width, width // groups, taps), (out_width,)
    return [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]


@LISTS
@FLOATS
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_values_and_gradients(kind, lengths, dtype):
    x, weight, bias = tensors(lengths, kind, dtype)
    *_, left, right, dilation, groups = kind
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    cu = offsets_of(lengths, torch.int32).cuda()
    out = ragged_conv1d(x, cu, weight, bias, padding=(left, right), dilation=dilation, groups=groups)
    peer = by_sequence(x, lengths, weight, bias, left, right, dilation, groups)
    exact = by_sequence(wide[0], lengths, *wide[1:], left, right, dilation, groups)
    terms = weight[0].numel() ** 0.5
    assert_within_budget("conv", *(y.detach().cpu() for y in (out, peer, exact)), noise=2e-6 * terms)
    grad = torch.randn(out.shape, device="cuda").to(dtype)
    rows = max(len(x), 1) ** 0.5
    got, theirs = (torch.autograd.grad(y, (x, weight, bias), grad) for y in (out, peer))
    for name, a, b, c in zip("xwb", got, theirs, torch.autograd.grad(exact, wide, grad.double()), strict=True):
        noise = 2e-6 * rows * terms + (torch.finfo(dtype).eps * rows if name == "b" else 0.0)
        assert_within_budget(name, a.cpu(), b.cpu(), c.cpu(), noise=noise)


def test_any_strides():
    x, weight = torch.randn(5, 9, device="cuda").T, torch.randn(3, 5, 4, device="cuda").transpose(0, 2)
    cu = offsets_of([4, 5]).cuda()
    assert torch.equal(ragged_conv1d(x, cu, weight), ragged_conv1d(x.contiguous(), cu, weight.contiguous()))


@FLOATS
def test_result_does_not_depend_on_the_batch(dtype):
    x, weight, bias = tensors([13, 300, 0, 70], (16, 24, 3, 1, 1, 1, 1), dtype)
    rows = slice(13, 313)
    whole = ragged_conv1d(x, offsets_of([13, 300, 0, 70]).cuda(), weight, bias)
    torch.testing.assert_close(whole[rows], ragged_conv1d(x[rows], offsets_of([300]).cuda(), weight, bias))


def test_nan_stays_in_its_sequence():
    x, weight, _ = (t.detach() for t in tensors([10, 30, 20], (16, 24, 3, 1, 1, 1, 1), torch.float32))
    x[10], x[39] = float("nan"), float("nan")
    out = ragged_conv1d(x, offsets_of([10, 30, 20]).cuda(), weight)
    assert out[:10].isfinite().all()
    assert out[40:].isfinite().all()


def test_wrong_offsets_never_reach_outside():
    x, weight, _ = tensors([6], (3, 4, 3, 1, 1, 1, 1), torch.float32)
    for wrong in ([0, 500, 900], [0, 7, 2], [-5, 3, 10], [0, 2**40, 2**41]):
        out = ragged_conv1d(x, torch.tensor(wrong, device="cuda"), weight)
        torch.autograd.grad(out.sum(), (x, weight))
    torch.cuda.synchronize()


def test_nothing_waits_for_the_gpu(no_sync):
    leaves = tensors([3, 0, 50], (16, 24, 3, 1, 1, 1, 1), torch.float32)
    cu = offsets_of([3, 0, 50]).cuda()

    def step():
        out = ragged_conv1d(leaves[0], cu, *leaves[1:])
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    step()  # compiles
    with no_sync:
        step()
