# SPDX-License-Identifier: Apache-2.0
"""The softmax kernels against the float64 twins, in the interpreter."""

import pytest
import torch

from edgeops.ragged import _reference_softmax as twin
from edgeops.triton_kernels.ragged.softmax import ragged_softmax_bwd, ragged_softmax_fwd
from tests.peers import offsets_of

LISTS = pytest.mark.parametrize("lengths", [[3, 0, 5, 1], [0, 0, 70, 0], [1], [0, 0], []], ids=str)
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
LOG = pytest.mark.parametrize("log", [False, True], ids=["softmax", "log"])


@LISTS
@FLOATS
@LOG
@pytest.mark.parametrize("width", [1, 12, 70])
def test_forward_and_backward(lengths, dtype, log, width):
    x, grad, cu = (3 * torch.randn(sum(lengths), width)).to(dtype), torch.randn(sum(lengths), width).to(dtype), None
    cu = offsets_of(lengths, torch.int32)
    exact = twin.ragged_softmax_fwd_reference(x.double(), cu, log)
    out = ragged_softmax_fwd(x, cu, log)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=2 * eps, atol=8e-7)
    exact = twin.ragged_softmax_bwd_reference(grad.double(), out.double(), cu, log)
    got = ragged_softmax_bwd(grad, out, cu, log)
    torch.testing.assert_close(got.double(), exact, rtol=2 * eps, atol=2e-5)


@LOG
def test_bad_values_stay_in_their_segment_and_column(log):
    x = torch.randn(50, 5)
    x[40, 3], x[12, 1], x[10:45, 4], x[3, 0] = float("nan"), float("inf"), float("-inf"), float("-inf")
    cu = offsets_of([10, 35, 5])
    out, exact = ragged_softmax_fwd(x, cu, log), twin.ragged_softmax_fwd_reference(x, cu, log)
    assert torch.equal(out.isnan(), exact.isnan())
    torch.testing.assert_close(out, exact, equal_nan=True)


@pytest.mark.parametrize("wrong", [[0, 500, 900], [0, 7, 2], [-5, 3, 10], [0, 2**40, 2**41]])
def test_wrong_offsets_never_reach_outside(wrong):
    x = torch.randn(6, 3)
    ragged_softmax_fwd(x, torch.tensor(wrong), False)
    ragged_softmax_bwd(x, x, torch.tensor(wrong), True)
