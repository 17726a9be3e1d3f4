# SPDX-License-Identifier: Apache-2.0
"""The normalisation kernels against the float64 twins, in the interpreter."""

import pytest
import torch

from edgeops.ragged import _reference_norm as twin
from edgeops.triton_kernels.ragged.norm import ragged_instance_norm_bwd, ragged_instance_norm_fwd
from tests.peers import offsets_of


@pytest.mark.parametrize("lengths", [[3, 0, 5, 1], [0, 0, 70, 0], [1], [0, 0], []], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("with_weight", [False, True])
@pytest.mark.parametrize("width", [1, 12, 70])
def test_forward_and_backward(lengths, dtype, with_weight, width):
    cu = offsets_of(lengths, torch.int32)
    x, grad = (torch.randn(sum(lengths), width).to(dtype) for _ in range(2))
    weight, bias = torch.randn(2, width).to(dtype) if with_weight else (None, None)
    exact = [None if v is None else v.double() for v in (x, weight, bias, grad)]
    out, mean, rstd = twin.ragged_instance_norm_fwd_reference(exact[0], cu, *exact[1:3], 1e-3)
    got = ragged_instance_norm_fwd(x, cu, weight, bias, 1e-3)
    eps = torch.finfo(dtype).eps
    for mine, theirs in zip(got, (out, mean, rstd), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2 * eps + 1e-5, atol=2 * eps + 1e-5)
    want = twin.ragged_instance_norm_bwd_reference(exact[3], exact[0], cu, mean, rstd, exact[1])
    got = ragged_instance_norm_bwd(grad, x, cu, *got[1:], weight)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2 * eps + 1e-4, atol=2 * eps + 1e-3)


@pytest.mark.parametrize("wrong", [[0, 500, 900], [0, 7, 2], [-5, 3, 10], [0, 2**40, 2**41]])
def test_wrong_offsets_never_reach_outside(wrong):
    x, bad = torch.randn(6, 3), torch.tensor(wrong)
    _, mean, rstd = ragged_instance_norm_fwd(x, bad, None, None, 1e-5)
    ragged_instance_norm_bwd(x, x, bad, mean, rstd, None)
