# SPDX-License-Identifier: Apache-2.0
"""pack, unpack, pooling and the fused row operators on a GPU, through the public functions."""

import pytest
import torch

from edgeops import _native
from edgeops.ragged import RaggedLayout, add_layer_norm, bias_gelu, pack, ragged_pool, unpack
from edgeops.ragged import _reference as twin
from edgeops.ragged._cuda import rows
from tests.budget import assert_within_budget

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
COPIED = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.complex64]
LENGTHS = {
    "mixed": [3, 0, 500, 1, 0],
    "one long among empty": [0, 0, 4000, 0],
    "all empty": [0, 0],
    "none": [],
}
LISTS = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())


def values(*shape, dtype):
    x = torch.randn(*shape, device="cuda") * 3
    return x > 0 if dtype == torch.bool else x.to(dtype)


def test_the_compiled_module_is_loaded():
    status = _native.native_status()["cuda"]
    assert status.startswith("on") or torch.version.hip, status


@LISTS
@pytest.mark.parametrize("dtype", COPIED, ids=str)
@pytest.mark.parametrize("tail", [(), (1,), (7,), (3, 8), (129,)], ids=str)
def test_pack_and_unpack(lengths, dtype, tail):
    layout = RaggedLayout.from_lengths(lengths, device="cuda")
    padded = values(len(lengths), layout.max_len + 2, *tail, dtype=dtype)
    packed = pack(padded, layout)
    assert torch.equal(packed, twin.ragged_pack_reference(padded, layout.offsets, layout.total))
    number = 1.0 if dtype == torch.bool else -2.0
    back = unpack(packed, layout, padding_value=number, length=layout.max_len + 2)
    assert torch.equal(back, twin.ragged_unpack_reference(packed, layout.offsets, back.shape[1], number))


@pytest.mark.parametrize("shift", range(5))
def test_unaligned_rows(shift):
    layout = RaggedLayout.from_lengths([3, 0, 50], device="cuda")
    padded = torch.randn(3, 50, 40, device="cuda", dtype=torch.float16)[:, :, shift : shift + 16]
    assert torch.equal(pack(padded, layout), twin.ragged_pack_reference(padded, layout.offsets, 53))
    values_shifted = torch.randn(53, 40, device="cuda", dtype=torch.float16)[:, shift : shift + 16]
    assert torch.equal(pack(unpack(values_shifted, layout), layout), values_shifted)


def test_triton_and_compiled_pack_agree():
    layout = RaggedLayout.from_lengths([3, 0, 50], device="cuda")
    padded = torch.randn(3, 50, 40, device="cuda")
    out = rows.ragged_pack_cuda(padded, layout.offsets, 53)
    assert torch.equal(out, pack(padded, layout))
    back = torch.zeros(3, 50, 40, device="cuda")
    rows.ragged_unpack_cuda(out, layout.offsets, 0.5, back)
    assert torch.equal(back, unpack(out, layout, padding_value=0.5))


@LISTS
@FLOATS
@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
def test_pool(lengths, dtype, reduction):
    layout = RaggedLayout.from_lengths(lengths, device="cuda")
    x = values(layout.total, 300, dtype=dtype)
    mode = twin.POOL_MODES.index(reduction)
    peer = torch.zeros(len(lengths), 300, dtype=dtype, device="cuda")
    for b, part in enumerate(x.split(lengths)):
        if len(part):
            peer[b] = part.amax(0) if mode == 2 else part.sum(0) if mode == 0 else part.mean(0)
    exact = twin.ragged_pool_fwd_reference(x.double().cpu(), layout.offsets.cpu(), mode)
    # a sum far smaller than its terms: each term may be off by a float32 rounding
    noise = 2e-7 * float(x.abs().sum()) / 300 if x.numel() else 0.0
    got = ragged_pool(x, layout.offsets, reduction).cpu()
    assert_within_budget(reduction, got, peer.cpu(), exact, noise=noise if mode < 2 else 0.0)


@FLOATS
@pytest.mark.parametrize("width", [1, 384, 1000, 3072])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_bias_gelu(dtype, width, approximate):
    x, bias = values(70, width, dtype=dtype), values(width, dtype=dtype)
    exact = torch.nn.functional.gelu(x.double() + bias.double(), approximate=approximate).cpu()
    peer = torch.nn.functional.gelu(x + bias, approximate=approximate).cpu()
    assert_within_budget("gelu", bias_gelu(x, bias, approximate).cpu(), peer, exact)


@FLOATS
@pytest.mark.parametrize("width", [1, 384, 1000, 5000, 16384, 20000])
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "x_bias"])
def test_add_layer_norm(dtype, width, with_bias):
    x, residual = values(2, 30, width, dtype=dtype)
    weight, bias, x_bias = values(3, width, dtype=dtype)
    x_bias = x_bias if with_bias else None
    wide = [None if t is None else t.double().cpu() for t in (x, x_bias, residual, weight, bias)]
    exact = twin.add_layer_norm_fwd_reference(*wide, 1e-5)[0]
    total = x + residual if x_bias is None else x + x_bias + residual
    peer = torch.nn.functional.layer_norm(total, (width,), weight, bias, 1e-5).cpu()
    got = add_layer_norm(x, residual, weight, bias, 1e-5, x_bias).cpu()
    assert_within_budget("norm", got, peer, exact, noise=1e-5 if width == 1 else 0.0)


@FLOATS
def test_gradients_reach_every_input(dtype):
    x, residual = (values(9, 16, dtype=dtype).requires_grad_() for _ in range(2))
    vectors = [values(16, dtype=dtype).requires_grad_() for _ in range(3)]
    offsets = torch.tensor([0, 3, 3, 9], device="cuda")
    y = add_layer_norm(bias_gelu(x, vectors[0]), residual, vectors[1], vectors[2])
    for gradient in torch.autograd.grad(ragged_pool(y, offsets, "max").sum(), [x, residual, *vectors]):
        assert gradient.isfinite().all()


def test_nothing_waits_for_the_gpu(no_sync):
    layout = RaggedLayout.from_lengths([3, 0, 50], device="cuda")
    padded, x = torch.randn(3, 50, 40, device="cuda"), torch.randn(53, 40, device="cuda")
    vector, offsets = torch.randn(40, device="cuda"), layout.offsets

    def everything():
        pack(padded, layout)
        unpack(x, layout, padding_value=1.5)
        ragged_pool(x, offsets, "mean")
        bias_gelu(x, vector)
        add_layer_norm(x, x, vector, vector)

    everything()
    with no_sync:
        everything()
