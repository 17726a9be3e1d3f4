# SPDX-License-Identifier: Apache-2.0
"""The convolution kernels against the float64 twins, in the interpreter."""

import pytest
import torch

from edgeops.ragged import _reference_conv as twin
from edgeops.triton_kernels.ragged.conv import ragged_conv1d_bwd_weight, ragged_conv1d_fwd
from tests.peers import offsets_of

# channels in and out, taps, (left, right, dilation, groups)
KINDS = [(3, 5, 3, (1, 1, 1, 1)), (8, 12, 2, (3, 3, 2, 4)), (40, 70, 1, (0, 0, 1, 1)), (4, 4, 3, (-1, 5, 1, 2))]
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])


@FLOATS
@pytest.mark.parametrize("lengths", [[3, 0, 5, 1], [70], [2, 2], []], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_forward_and_weight_gradient(kind, lengths, dtype):
    width, out_width, taps, options = kind
    x, cu = torch.randn(sum(lengths), width).to(dtype), offsets_of(lengths, torch.int32)
    weight = torch.randn(out_width, width // options[3], taps).to(dtype)
    bias = torch.randn(out_width).to(dtype)
    eps = torch.finfo(dtype).eps
    exact = twin.ragged_conv1d_fwd_reference(x.double(), cu, weight.double(), bias.double(), *options)
    got = ragged_conv1d_fwd(x, cu, weight, bias, *options)
    torch.testing.assert_close(got.double(), exact, rtol=2 * eps, atol=eps + 1e-4)
    grad = torch.randn(exact.shape).to(dtype)
    exact = twin.ragged_conv1d_bwd_weight_reference(grad.double(), x.double(), cu, taps, *options)
    got = ragged_conv1d_bwd_weight(grad, x, cu, taps, *options)
    torch.testing.assert_close(got.double(), exact, rtol=2 * eps, atol=eps + 1e-4)


def test_any_strides():
    x, weight, cu = torch.randn(5, 9).T, torch.randn(3, 5, 4).transpose(0, 2), offsets_of([4, 5])
    got = ragged_conv1d_fwd(x, cu, weight, None, 1, 1, 1, 1)
    exact = twin.ragged_conv1d_fwd_reference(x.double(), cu, weight.double(), None, 1, 1, 1, 1)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [[0, 500, 900], [0, 7, 2], [-5, 3, 10], [0, 2**40, 2**41]])
def test_wrong_offsets_never_reach_outside(wrong):
    x, weight = torch.randn(6, 3), torch.randn(4, 3, 3)
    out = ragged_conv1d_fwd(x, torch.tensor(wrong), weight, None, 1, 1, 1, 1)
    ragged_conv1d_bwd_weight(out, x, torch.tensor(wrong), 3, 1, 1, 1, 1)
