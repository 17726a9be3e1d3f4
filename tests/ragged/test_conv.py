# SPDX-License-Identifier: Apache-2.0
"""Ragged convolution: values within budget, gradients, padding, layouts, bad values, threads, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeops.ragged import ragged_conv1d
from tests.budget import assert_within_budget
from tests.messages import refused
from tests.peers import offsets_of

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [3, 1, 15, 16, 17, 200, 2]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def peer(x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
    return torch.cat([F.conv1d(part.T[None], weight, bias, **options)[0].T for part in x.split(LENGTHS)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("width", "out_width", "taps", "options"),
    [
        (5, 7, 3, {"padding": "same"}),
        (6, 18, 4, {"padding": "same", "dilation": 2, "groups": 3}),
        (300, 33, 3, {"padding": 1}),
        (24, 200, 1, {"padding": "valid"}),
        (4, 4, 5, {"padding": 6, "dilation": 3, "groups": 4}),
    ],
    ids=str,
)
def test_forward_and_backward(
    width: int, out_width: int, taps: int, options: dict[str, Any], dtype: torch.dtype
) -> None:
    x, cu = normal(sum(LENGTHS), width, dtype=dtype), offsets_of(LENGTHS, torch.int32)
    weight = normal(out_width, width // options.get("groups", 1), taps, dtype=dtype, seed=1)
    leaves = [t.requires_grad_() for t in (x, weight, normal(out_width, dtype=dtype, seed=2))]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    out, exact = ragged_conv1d(leaves[0], cu, *leaves[1:], **options), peer(*wide, **options)
    same = peer(*leaves, **options)
    grad = normal(*out.shape, dtype=dtype, seed=3)
    # as many float32 roundings as terms, at most
    noise = 2e-7 * weight[0].numel() if dtype != torch.float64 else 1e-14 * weight[0].numel()
    assert_within_budget("forward", out.detach(), same.detach(), exact.detach(), 2.0, noise)
    got, theirs = torch.autograd.grad(out, leaves, grad), torch.autograd.grad(same, leaves, grad)
    want = torch.autograd.grad(exact, wide, grad.double())
    for name, a, b, c in zip(("x", "weight", "bias"), got, theirs, want):
        noise = (2e-7 if dtype != torch.float64 else 1e-15) * max(out_width * taps, sum(LENGTHS))
        assert_within_budget(name, a, b, c, 2.0, noise)


def test_causal_and_other_paddings() -> None:
    x, weight, cu = normal(9, 4), normal(6, 4, 3, seed=1), offsets_of([4, 0, 5])
    causal = ragged_conv1d(x, cu, weight, padding=(2, 0))
    assert torch.equal(ragged_conv1d(x[:3], offsets_of([3]), weight, padding=(2, 0)), causal[:3])
    assert ragged_conv1d(x, cu, weight, padding=(1, 2)).shape == (9 + 3 * 1, 6)
    bias = normal(6, seed=2)
    # an empty sequence between zeros gives rows of the bias, as torch would
    out = ragged_conv1d(x, cu, weight, bias, padding=2)
    assert torch.equal(out[6:8], bias.expand(2, 6))


def test_gradcheck() -> None:
    cu = offsets_of([2, 0, 3])
    x, weight, bias = (normal(*s, dtype=torch.float64).requires_grad_() for s in ((5, 4), (2, 2, 3), (2,)))

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ragged_conv1d(x, cu, weight, bias, padding=(1, 2), groups=2)

    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias))


def test_layouts_of_input() -> None:
    x, weight, cu = normal(24, 6), normal(8, 6, 3, seed=1), offsets_of([7, 0, 17])
    want = ragged_conv1d(x, cu, weight)
    buffer = torch.full((30, 11), torch.nan)
    buffer[3:27, 2:8] = x
    assert torch.equal(ragged_conv1d(buffer[3:27, 2:8], cu, weight), want)
    assert torch.equal(ragged_conv1d(x.T.contiguous().T, cu, weight.transpose(0, 2).contiguous().transpose(0, 2)), want)
    for y in (x[:1].expand(24, 6), x[:, :1].expand(24, 6)):
        assert torch.equal(ragged_conv1d(y, cu, weight), ragged_conv1d(y.contiguous(), cu, weight))
    leaf = weight.clone().requires_grad_()
    got = torch.autograd.grad(ragged_conv1d(x, cu, leaf).sum(), leaf)
    want = torch.autograd.grad((ragged_conv1d(x, cu, leaf) * torch.ones(24, 8)).sum(), leaf)
    assert torch.equal(got[0], want[0])


def test_nan_stays_in_its_sequence() -> None:
    x, weight = normal(30, 5), normal(7, 5, 3, seed=1)
    lengths = [10, 4, 16]
    clean = ragged_conv1d(x, offsets_of(lengths), weight)
    x[12] = torch.nan
    out = ragged_conv1d(x, offsets_of(lengths), weight)
    assert torch.equal(out[:10], clean[:10])
    assert torch.equal(out[14:], clean[14:])
    assert out[11:14].isnan().all()


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_nothing(lengths: list[int]) -> None:
    x, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(3, 4, 3, requires_grad=True)
    out = ragged_conv1d(x, offsets_of(lengths), weight)
    assert out.shape == (0, 3)
    dx, dw = torch.autograd.grad(out.sum(), (x, weight))
    assert dx.shape == (0, 4)
    assert not dw.any()


def test_any_number_of_threads_gives_the_same_bits(threads: Callable[[int], None]) -> None:
    x, weight = normal(sum(LENGTHS), 40), normal(300, 40, 3, seed=1).requires_grad_()

    def work() -> tuple[Tensor, Tensor]:
        out = ragged_conv1d(x, offsets_of(LENGTHS), weight)
        return out.detach(), torch.autograd.grad(out.square().sum(), weight)[0]

    want = work()
    for count in (2, 3):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(work(), want))


def test_refuses() -> None:
    x, cu, weight = torch.zeros(5, 4), torch.tensor([0, 2, 5]), torch.zeros(6, 4, 3)
    with refused(NotImplementedError, "ragged_conv1d", "takes stride 1 only", "stride 2"):
        ragged_conv1d(x, cu, weight, stride=2)
    with refused(ValueError, "ragged_conv1d", "every sequence must have at least 4 rows", "2 rows in sequence 0"):
        ragged_conv1d(x, cu, weight, padding=0, dilation=2)
    with refused(ValueError, "ragged_conv1d", r"weight must have shape \[C_out, C_in per group, K\]"):
        ragged_conv1d(x, cu, weight[0])
    with refused(ValueError, "ragged_conv1d", "with C_in = 4", r"shape \(6, 4, 3\)"):
        ragged_conv1d(x, cu, weight, groups=2)
    with refused(ValueError, "ragged_conv1d", r"weight must have shape .* and the dtype and device of x", "Double"):
        ragged_conv1d(x, cu, weight.double())
    with refused(ValueError, "ragged_conv1d", "bias must have shape", r"shape \(5,\)"):
        ragged_conv1d(x, cu, weight, torch.zeros(5))
    with refused(ValueError, "ragged_conv1d", "dilation must be at least 1", "0"):
        ragged_conv1d(x, cu, weight, dilation=0)
    for padding in ("full", -1, (1,), (1, -2), 1.5):
        with refused(ValueError, "ragged_conv1d", "padding must be 'same', 'valid'"):
            ragged_conv1d(x, cu, weight, padding=padding)  # type: ignore[arg-type]
