# SPDX-License-Identifier: Apache-2.0
"""The functions that `register_cuda` registers, run on CPU tensors through the interpreted kernels."""

import pytest
import torch

from edgeops.ragged import _cuda as dispatch
from edgeops.ragged import _reference as twin
from edgeops.ragged._cuda import rows
from edgeops.ragged._cuda.attention import ragged_attention_bwd_cuda, ragged_attention_fwd_cuda
from edgeops.ragged._ops import TWINS
from tests.native.op_samples import ENTRIES

OFFSETS = torch.tensor([0, 3, 3, 9])


def arguments():
    x, residual = torch.randn(2, 9, 12)
    bias, weight = torch.randn(2, 12)
    q = torch.randn(9, 2, 12)
    inputs = (q, q, q, OFFSETS, OFFSETS, torch.randn(3, 1, 6, 6), 0.3, True, -1, -1)
    out, lse = twin.ragged_attention_fwd_reference(*inputs)
    return {
        "_ragged_attention_fwd": inputs,
        "_ragged_attention_bwd": (torch.randn(9, 2, 12), torch.randn(9, 2), *inputs[:3], out, lse, *inputs[3:]),
        "_ragged_pack": (torch.randn(3, 6, 5), OFFSETS, 9),
        "_ragged_unpack": (torch.randn(9, 5), OFFSETS, 7, -1.0),
        "_ragged_pool_fwd": (x, OFFSETS, 1),
        "_bias_gelu_fwd": (x, bias, True),
        "_add_layer_norm_fwd": (x, bias, residual, weight, bias, 1e-5),
        "_ragged_pool_bwd": (residual[:3], x, twin.ragged_pool_fwd_reference(x, OFFSETS, 2), OFFSETS, 2),
        "_bias_gelu_bwd": (residual, x, bias, True),
        "_add_layer_norm_bwd": (residual, x, bias, residual, x[:, 0], x[:, 1].exp(), weight),
        "_ragged_conv1d_fwd": (x, OFFSETS, torch.randn(4, 6, 3), torch.randn(4), 1, 1, 1, 2),
        "_ragged_conv1d_bwd_weight": (torch.randn(9, 4), x, OFFSETS, 3, 1, 1, 1, 2),
        "_ragged_instance_norm_fwd": (x, OFFSETS, weight, bias, 1e-3),
        "_ragged_instance_norm_bwd": (x, residual, OFFSETS, *torch.rand(2, 3, 12), weight),
        "_ragged_softmax_fwd": (x, OFFSETS, True),
        "_ragged_softmax_bwd": (x, residual, OFFSETS, False),
        "_trmm_fwd": (torch.randn(70, 70), torch.randn(70, 5), False, True, 0.5),
        "_trmm_bwd_l": (torch.randn(70, 5), torch.randn(70, 5), True, 0.5),
        "_tri_binary": (torch.randn(9, 9), torch.randn(9, 9), True, False),
        **{name: ENTRIES[name].samples()[0].args for name in ("_vgemm", "_vgemm_packed", "_grouped_mm")},
    }


def results(function, inputs):
    out = function(*(a.clone() if isinstance(a, torch.Tensor) else a for a in inputs))
    return out if isinstance(out, (tuple, list)) else (out,)


@pytest.mark.parametrize("name", dispatch.KERNELS)
def test_kernels_agree_with_the_twins(name):
    inputs = arguments()[name]
    for a, b in zip(results(dispatch.KERNELS[name], inputs), results(TWINS[name], inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_rows_of_any_stride_are_accepted():
    x = torch.randn(12, 9).T
    torch.testing.assert_close(
        rows.bias_gelu_fwd_cuda(x, torch.zeros(24)[::2], False),
        torch.nn.functional.gelu(x),
        rtol=1e-5,
        atol=1e-6,
    )
    q = torch.randn(12, 2, 9).permute(2, 1, 0)
    rest = (OFFSETS, OFFSETS, None, 0.3, False, -1, -1)
    strided = ragged_attention_fwd_cuda(q, q, q, OFFSETS, OFFSETS, None, 0.3, False, -1, -1)
    dense = ragged_attention_fwd_cuda(*[q.contiguous()] * 3, OFFSETS, OFFSETS, None, 0.3, False, -1, -1)
    assert torch.equal(strided[0], dense[0])
    # gradients of a sum arrive expanded
    grad = torch.ones(()).expand(9, 2, 12), torch.ones(()).expand(9, 2)
    got = ragged_attention_bwd_cuda(*grad, q, q, q, *dense, *rest)
    want = ragged_attention_bwd_cuda(*(g.contiguous() for g in grad), *[q.contiguous()] * 3, *dense, *rest)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["_ragged_attention_fwd", "_ragged_attention_bwd"])
def test_dropout_of_both_arities(name):
    inputs = arguments()[name]
    reference = getattr(twin, f"{name.removeprefix('_')}_reference")
    seed = torch.tensor(3)
    arities = ((), (0.0, None), (0.5, seed))
    plain, none, dropped = (results(dispatch.KERNELS[name], (*inputs, *more)) for more in arities)
    for a, b, c, d in zip(plain, none, dropped, results(reference, (*inputs, 0.5, seed)), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, d, rtol=1e-5, atol=1e-5)
    assert not torch.equal(plain[0], dropped[0])
