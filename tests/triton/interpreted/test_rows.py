# SPDX-License-Identifier: Apache-2.0
"""pack, unpack, pooling and the fused row kernels against the float64 twins, in the interpreter."""

import pytest
import torch

from edgeops.ragged import _reference as twin
from edgeops.triton_kernels.ragged.fused import add_layer_norm_fwd, bias_gelu_fwd
from edgeops.triton_kernels.ragged.pack import ragged_pack, ragged_unpack
from edgeops.triton_kernels.ragged.pool import ragged_pool_fwd
from tests.peers import offsets_of

LENGTHS = {
    "mixed": [3, 0, 5, 1, 0],
    "one long among empty": [0, 0, 70, 0],
    "one": [1],
    "all empty": [0, 0],
    "none": [],
}
LISTS = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
COPIED = [torch.float32, torch.bfloat16, torch.int64, torch.bool]
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
WIDTHS = pytest.mark.parametrize("width", [1, 31, 128, 700])


def values(*shape, dtype):
    x = torch.randn(*shape) * 3
    return x > 0 if dtype == torch.bool else x.to(dtype)


def close(got, exact):
    """Within two roundings of the dtype, absolute near zero: one fused pass in float32 and one final rounding."""
    eps = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=2 * eps, atol=8 * eps)


@LISTS
@pytest.mark.parametrize("dtype", COPIED, ids=str)
@pytest.mark.parametrize("tail", [(), (7,), (2, 3)], ids=str)
def test_pack(lengths, dtype, tail):
    padded = values(len(lengths), max(lengths, default=0) + 2, *tail, dtype=dtype)
    out = padded.new_zeros(sum(lengths) + 1, *tail)
    ragged_pack(padded, offsets_of(lengths), out)
    assert torch.equal(out[:-1], twin.ragged_pack_reference(padded, offsets_of(lengths), sum(lengths)))
    assert (out[-1] == 0).all(), "rows beyond the last offset are left as they are"


@LISTS
@pytest.mark.parametrize("dtype", COPIED, ids=str)
@pytest.mark.parametrize("tail", [(), (7,), (2, 3)], ids=str)
def test_unpack(lengths, dtype, tail):
    packed = values(sum(lengths), *tail, dtype=dtype)
    out = packed.new_empty(len(lengths), max(lengths, default=0) + 2, *tail)
    padding = 1.0 if dtype == torch.bool else -100.0
    ragged_unpack(packed, offsets_of(lengths, torch.int32), padding, out)
    assert torch.equal(out, twin.ragged_unpack_reference(packed, offsets_of(lengths), out.shape[1], padding))


@pytest.mark.parametrize("padding", [0.0, -1.5, float("inf"), float("nan"), 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_unpack_writes_the_padding_exactly(padding, dtype):
    out = torch.empty(1, 2, 3, dtype=dtype)
    ragged_unpack(torch.ones(1, 3, dtype=dtype), offsets_of([1]), padding, out)
    expected = torch.full((3,), padding, dtype=dtype)
    assert torch.equal(out[0, 1].nan_to_num(7.0), expected.nan_to_num(7.0))


def test_pack_never_reads_the_padding_and_keeps_nan_bits():
    padded = torch.full((2, 4, 3), float("nan"))
    padded[0, :2], padded[1, :3] = 1.0, 2.0
    out = torch.zeros(5, 3)
    ragged_pack(padded, offsets_of([2, 3]), out)
    assert out.isfinite().all()
    signalling = torch.tensor([[[0x7F800001]]], dtype=torch.int32).view(torch.float32)
    out = torch.zeros(1, 1)
    ragged_pack(signalling, offsets_of([1]), out)
    assert out.view(torch.int32).item() == 0x7F800001


def test_pack_reads_strides():
    padded = torch.randn(6, 4, 5).transpose(0, 1)[:, :, ::2]
    out = torch.zeros(9, 3)
    ragged_pack(padded, offsets_of([3, 0, 5, 1]), out)
    assert torch.equal(out, twin.ragged_pack_reference(padded, offsets_of([3, 0, 5, 1]), 9))


@pytest.mark.parametrize("wrong", [[0, 500, 900], [0, 7, 2], [-5, 3, 10], [0, 2**40, 2**41]])
def test_wrong_offsets_never_reach_outside(wrong):
    bad = torch.tensor(wrong)
    ragged_pack(torch.randn(2, 4, 3), bad, torch.zeros(6, 3))
    ragged_unpack(torch.randn(6, 3), bad, 0.0, torch.zeros(2, 4, 3))
    ragged_pool_fwd(torch.randn(6, 3), bad, 2)


@LISTS
@FLOATS
@pytest.mark.parametrize("mode", range(5), ids=twin.POOL_MODES)
def test_pool(lengths, dtype, mode):
    x = values(sum(lengths), 37, dtype=dtype)
    exact = twin.ragged_pool_fwd_reference(x.double(), offsets_of(lengths), mode)
    got = ragged_pool_fwd(x, offsets_of(lengths, torch.int32), mode)
    assert got.dtype == dtype
    # a sum of n terms carries n roundings of the float32 accumulator
    scale = max([1, *lengths])
    torch.testing.assert_close(got.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=scale * 1e-6)


@pytest.mark.parametrize("mode", range(5), ids=twin.POOL_MODES)
def test_pool_keeps_nan_in_its_segment(mode):
    x = torch.randn(50, 5)
    x[40, 3] = float("nan")
    out = ragged_pool_fwd(x, offsets_of([10, 35, 5]), mode)
    assert out.isnan().nonzero().tolist() == [[1, 3]]


def test_pool_reads_strided_rows():
    x = torch.randn(9, 20)[:, 3:9]
    got = ragged_pool_fwd(x, offsets_of([4, 5]), 1)
    close(got, twin.ragged_pool_fwd_reference(x.double(), offsets_of([4, 5]), 1))


@FLOATS
@WIDTHS
@pytest.mark.parametrize("tanh", [False, True], ids=["erf", "tanh"])
def test_bias_gelu(dtype, width, tanh):
    x, bias = values(3, width, dtype=dtype), values(width, dtype=dtype)
    close(bias_gelu_fwd(x, bias, tanh), twin.bias_gelu_fwd_reference(x.double(), bias.double(), tanh))


@FLOATS
@WIDTHS
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "x_bias"])
def test_add_layer_norm(dtype, width, with_bias):
    x, residual = values(3, width, dtype=dtype), values(3, width + 4, dtype=dtype)[:, 2 : width + 2]
    weight, bias, x_bias = values(3, width, dtype=dtype)
    x_bias = x_bias if with_bias else None
    got, mean, rstd = add_layer_norm_fwd(x, x_bias, residual, weight, bias, 1e-5)
    wide = [None if t is None else t.double() for t in (x, x_bias, residual, weight, bias)]
    exact, exact_mean, exact_rstd = twin.add_layer_norm_fwd_reference(*wide, 1e-5)
    eps = torch.finfo(dtype).eps
    # the last product and sum work on numbers as large as weight times the largest normalised value
    size = float(exact.abs().max()) + 1
    torch.testing.assert_close(got.double(), exact, rtol=2 * eps, atol=8 * 1e-6 * size)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rstd.double(), exact_rstd, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_one_row(rows):
    x = torch.randn(rows, 8)
    assert bias_gelu_fwd(x, torch.zeros(8), False).shape == (rows, 8)
    out, mean, rstd = add_layer_norm_fwd(x, None, x, torch.ones(8), torch.zeros(8), 1e-5)
    assert (out.shape, mean.shape, rstd.shape) == ((rows, 8), (rows,), (rows,))
