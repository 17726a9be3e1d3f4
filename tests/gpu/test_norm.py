# SPDX-License-Identifier: Apache-2.0
"""Normalisation over the rows of sequences, and gradients of LayerNorm over packed rows, on a GPU."""

import pytest
import torch
import torch.nn.functional as F

from edgeops.ragged import add_layer_norm, ragged_instance_norm
from tests.budget import assert_within_budget
from tests.peers import offsets_of

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
LENGTHS = {
    "mixed": [3, 0, 500, 2, 0],
    "one long among empty": [0, 0, 4000, 0],
    "all empty": [0, 0],
    "none": [],
}
LISTS = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
EPS = 1e-3


def normal(*shape, dtype):
    return torch.randn(shape, device="cuda").to(dtype).requires_grad_()


def by_sequence(x, lengths, weight, bias):
    def one(part):
        centred = part - part.mean(0)
        return centred * torch.rsqrt(centred.square().mean(0) + EPS)

    rows = torch.cat([x[:0], *(one(part) for part in x.split(lengths))])
    rows = rows if weight is None else rows * weight
    return rows if bias is None else rows + bias


def assert_gradients_close(names, got, theirs, exact, noise):
    for name, a, b, c in zip(names, got, theirs, exact, strict=True):
        largest = float(c.abs().max()) if c.numel() else 0.0
        assert_within_budget(name, a.cpu(), b.cpu(), c.cpu(), noise=noise * (1.0 + largest))


@LISTS
@FLOATS
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("width", [1, 12, 300])
def test_instance_norm(lengths, dtype, affine, width):
    x, cu = normal(sum(lengths), width, dtype=dtype), offsets_of(lengths, torch.int32).cuda()
    vectors = [normal(width, dtype=dtype) for _ in range(2)] if affine else [None, None]
    leaves = [t for t in (x, *vectors) if t is not None]
    wide = [None if t is None else t.detach().double().requires_grad_() for t in (x, *vectors)]
    out, peer = ragged_instance_norm(x, cu, *vectors, EPS), by_sequence(x, lengths, *vectors)
    exact = by_sequence(wide[0], lengths, *wide[1:])
    assert_within_budget("norm", *(y.detach().cpu() for y in (out, peer, exact)), noise=1e-5)
    grad = torch.randn(x.shape, device="cuda").to(dtype)
    got, theirs = (torch.autograd.grad(y, leaves, grad) for y in (out, peer))
    true = torch.autograd.grad(exact, [t for t in wide if t is not None], grad.double())
    assert_gradients_close(("x", "weight", "bias")[: len(leaves)], got, theirs, true, 1e-5)


@FLOATS
@pytest.mark.parametrize("rows", [0, 1, 70])
@pytest.mark.parametrize("width", [384, 1000, 5000])
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "x_bias"])
def test_gradients_of_add_layer_norm(rows, width, dtype, with_bias):
    names = ("x", "residual", "weight", "bias", "x_bias") if with_bias else ("x", "residual", "weight", "bias")
    leaves = [normal(*((rows, width) if i < 2 else (width,)), dtype=dtype) for i in range(len(names))]
    wide = [t.detach().double().requires_grad_() for t in leaves]

    def plain(x, residual, weight, bias, x_bias=None):
        total = x + residual if x_bias is None else x + x_bias + residual
        return F.layer_norm(total, (width,), weight, bias, EPS)

    out = add_layer_norm(*leaves[:4], EPS, leaves[4] if with_bias else None)
    grad = torch.randn(out.shape, device="cuda").to(dtype)
    got, theirs = (torch.autograd.grad(y, leaves, grad) for y in (out, plain(*leaves)))
    assert_gradients_close(names, got, theirs, torch.autograd.grad(plain(*wide), wide, grad.double()), 1e-5)


@FLOATS
def test_result_does_not_depend_on_the_batch(dtype):
    x, rows = normal(383, 12, dtype=dtype), slice(13, 313)
    whole = ragged_instance_norm(x, offsets_of([13, 300, 0, 70]).cuda())
    assert torch.equal(whole[rows], ragged_instance_norm(x[rows], offsets_of([300]).cuda()))


def test_nan_stays_in_its_sequence():
    x = torch.randn(60, 5, device="cuda")
    x[20, 2] = float("nan")
    out = ragged_instance_norm(x, offsets_of([10, 30, 20]).cuda())
    bad = torch.zeros(60, 5, dtype=torch.bool)
    bad[10:40, 2] = True
    assert torch.equal(out.isnan().cpu(), bad)


def test_wrong_offsets_never_reach_outside():
    x = torch.randn(6, 3, device="cuda", requires_grad=True)
    for wrong in ([0, 500, 900], [0, 7, 2], [-5, 3, 10], [0, 2**40, 2**41]):
        torch.autograd.grad(ragged_instance_norm(x, torch.tensor(wrong, device="cuda")).sum(), x)
    torch.cuda.synchronize()


def test_nothing_waits_for_the_gpu(no_sync):
    x, cu = normal(53, 12, dtype=torch.float32), offsets_of([3, 0, 50]).cuda()
    weight, bias = normal(12, dtype=torch.float32), normal(12, dtype=torch.float32)

    def step():
        out = add_layer_norm(x, ragged_instance_norm(x, cu, weight, bias), weight, bias)
        return torch.autograd.grad(out, (x, weight, bias), torch.ones_like(out))

    step()  # compiles
    with no_sync:
        step()
