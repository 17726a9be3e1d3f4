# SPDX-License-Identifier: Apache-2.0
"""Converted `nn.TransformerEncoder` and `nn.TransformerEncoderLayer` against the unconverted ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeops.ragged import RaggedLayout
from edgeops.ragged.convert import RaggedEncoder, convert, encode_packed

WIDTH, HEADS, LENGTH = 16, 2, 7


def _encoder(norm_first: bool = False, batch_first: bool = True, activation: str = "relu", **changes: Any) -> Any:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 24, 0.0, activation, batch_first=batch_first, norm_first=norm_first, **changes
    )
    norm = nn.LayerNorm(WIDTH) if norm_first else None
    encoder = nn.TransformerEncoder(layer, 2, norm=norm, enable_nested_tensor=False)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def _padding(kind: str) -> Tensor | None:
    """True = padding, as `src_key_padding_mask`."""
    if kind == "none":
        return None
    mask = torch.zeros(4, LENGTH, dtype=torch.bool)
    mask[0, 3:] = True
    if kind == "anywhere":
        mask[1, :2] = True
        mask[2, [1, 4]] = True
    return mask


def _close(expected: Tensor, got: Tensor, padding: Tensor | None, batch_first: bool, atol: float) -> None:
    assert got.shape == expected.shape
    assert got.is_contiguous()
    if not batch_first:
        expected, got = expected.transpose(0, 1), got.transpose(0, 1)
    keep = torch.ones(expected.shape[:2], dtype=torch.bool) if padding is None else ~padding
    torch.testing.assert_close(got[keep], expected[keep], atol=atol, rtol=0)
    assert not got[~keep].any()


@pytest.mark.parametrize("padding", ["none", "right", "anywhere"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch-first", "sequence-first"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["norm-first", "norm-last"])
def test_encoder_and_layer(norm_first: bool, batch_first: bool, activation: str, padding: str) -> None:
    mask = _padding(padding)
    src = torch.randn(4, LENGTH, WIDTH) if batch_first else torch.randn(LENGTH, 4, WIDTH)
    encoder = _encoder(norm_first, batch_first, activation)
    for stock in (encoder, encoder.layers[0], nn.Sequential(encoder.layers[1])[0]):
        for dtype, atol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            stock, x = stock.to(dtype), src.to(dtype)
            got = convert(stock)(x, src_key_padding_mask=mask)
            _close(stock(x, src_key_padding_mask=mask), got, mask, batch_first, atol)


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch-first", "sequence-first"])
def test_causal_and_other_masks(batch_first: bool) -> None:
    stock = _encoder(batch_first=batch_first).double()
    packed = convert(stock)
    src = torch.randn(4, LENGTH, WIDTH).double()
    src = src if batch_first else src.transpose(0, 1).contiguous()
    causal = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=torch.float64)
    band = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(1).triu(-2).logical_not()
    added = torch.randn(LENGTH, LENGTH).double()
    for mask, hint in ((causal, None), (causal, True), (causal.isinf(), None), (band, None), (added, None)):
        for kind in ("none", "right", "anywhere"):
            padding = _padding(kind)
            given = padding
            if padding is not None and mask.dtype != torch.bool:
                given = torch.zeros(padding.shape, dtype=torch.float64).masked_fill(padding, -torch.inf)
            if kind == "anywhere" and mask is not causal and not torch.equal(mask, causal.isinf()):
                with pytest.raises(NotImplementedError, match="needs sequences without holes or padding in front"):
                    packed(src, mask=mask, src_key_padding_mask=given)
                continue
            expected = stock(src, mask=mask, src_key_padding_mask=given)
            got = packed(src, mask=mask, src_key_padding_mask=given, is_causal=hint)
            # padding in front of a causal sequence has no key: NaN in the stock model
            _close(expected.nan_to_num(), got, padding, batch_first, 1e-12)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 5), st.integers(1, 9), st.booleans(), st.booleans(), st.data())
def test_any_padding_mask(batch: int, length: int, norm_first: bool, causal: bool, data: st.DataObject) -> None:
    stock = _encoder(norm_first).double().eval()
    flags = data.draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length))
    padding = torch.tensor(flags, dtype=torch.bool).view(batch, length)
    src = torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(length)).double()
    got = convert(stock)(src, src_key_padding_mask=padding, is_causal=causal)
    assert not got[padding].any()
    for b in range(batch):
        tokens = src[b][~padding[b]][None]
        if not tokens.shape[1]:
            continue
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=torch.float64) if causal else None
        torch.testing.assert_close(got[b][~padding[b]], stock(tokens, mask=mask)[0], atol=1e-12, rtol=0)


def test_no_allowed_key_gives_finite_rows() -> None:
    packed = convert(_encoder())
    src = torch.randn(4, LENGTH, WIDTH)
    out = packed(src, src_key_padding_mask=torch.ones(4, LENGTH, dtype=torch.bool))
    assert not out.any()
    nothing = torch.full((LENGTH, LENGTH), -torch.inf)
    assert packed(src, mask=nothing).isfinite().all()


def test_unbatched_and_nested_input() -> None:
    stock = _encoder().double()
    packed = convert(stock)
    src = torch.randn(LENGTH, WIDTH).double()
    padding = torch.tensor([False] * 5 + [True] * 2)
    expected, got = stock(src, src_key_padding_mask=padding), packed(src, src_key_padding_mask=padding)
    torch.testing.assert_close(got[:5], expected[:5], atol=1e-12, rtol=0)
    assert got.shape == (LENGTH, WIDTH)
    parts = [torch.randn(n, WIDTH).double() for n in (3, 1, 5)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    result = packed(nested)
    assert result.is_nested
    torch.testing.assert_close((nested + result).values() - nested.values(), result.values())
    for part, encoded in zip(parts, result.unbind(), strict=True):
        torch.testing.assert_close(encoded, stock(part[None])[0], atol=1e-12, rtol=0)
    with pytest.raises(NotImplementedError, match="given with a nested src"):
        packed(nested, src_key_padding_mask=torch.zeros(3, 5, dtype=torch.bool))


def test_gradients_match() -> None:
    src = torch.randn(4, LENGTH, WIDTH).double()
    padding = _padding("anywhere")
    for norm_first in (True, False):
        stock = _encoder(norm_first, activation="gelu").double()
        grads = []
        for model in (stock, convert(copy.deepcopy(stock))):
            x = src.clone().requires_grad_(True)
            out = model(x, src_key_padding_mask=padding)
            out[~padding].square().sum().backward()
            grads.append([x.grad] + [p.grad for p in model.parameters()])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(b, a, atol=1e-11, rtol=1e-9)


def test_nan_in_padding_does_not_leak() -> None:
    packed = convert(_encoder())
    padding = _padding("anywhere")
    src = torch.randn(4, LENGTH, WIDTH)
    clean = packed(src, src_key_padding_mask=padding)
    src[padding] = torch.nan
    src.requires_grad_(True)
    dirty = packed(src, src_key_padding_mask=padding)
    assert torch.equal(clean, dirty)
    dirty.sum().backward()
    assert src.grad.isfinite().all()


def test_lists_of_tokens() -> None:
    stock = _encoder(batch_first=False).double()
    parts = [torch.randn(n, WIDTH).double() for n in (3, 1, 5)]
    expected = [stock(part[:, None])[:, 0] for part in parts]
    encoder = RaggedEncoder(stock)
    for got, wanted in zip(encoder(parts), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    torch.testing.assert_close(encoder(nested).values(), torch.cat(expected), atol=1e-12, rtol=0)
    values, layout = encode_packed(encoder, torch.cat(parts), layout=RaggedLayout.from_lengths([3, 1, 5]))
    torch.testing.assert_close(values, torch.cat(expected), atol=1e-12, rtol=0)
    assert layout.lengths == (3, 1, 5)
    padded = torch.zeros(5, 3, WIDTH).double()
    padding = torch.ones(3, 5, dtype=torch.bool)
    for b, part in enumerate(parts):
        padded[: len(part), b], padding[b, : len(part)] = part, False
    values, _ = encode_packed(encoder, padded, src_key_padding_mask=padding)
    torch.testing.assert_close(values, torch.cat(expected), atol=1e-12, rtol=0)
    causal = encode_packed(encoder, parts, is_causal=True)[0]
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    torch.testing.assert_close(causal[4:], stock(parts[2][:, None], mask=mask)[:, 0], atol=1e-12, rtol=0)
    means = RaggedEncoder(stock, pool="mean")(parts)
    torch.testing.assert_close(means, torch.stack([part.mean(0) for part in expected]), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="as many as the layout has"):
        encode_packed(encoder, torch.cat(parts), layout=RaggedLayout.from_lengths([3, 1]))
    with pytest.raises(ValueError, match=r"or rows .* with their layout"):
        encode_packed(encoder, torch.cat(parts))
    with pytest.raises(ValueError, match="sequence 1 must be a tensor"):
        encode_packed(encoder, [parts[0], [1, 2]])
    with pytest.raises(ValueError, match="pool must be None or one of"):
        RaggedEncoder(stock, pool="median")


def test_calls_that_are_refused() -> None:
    packed = convert(_encoder())
    src = torch.randn(4, LENGTH, WIDTH)
    with pytest.raises(NotImplementedError, match=r"has shape \(8, 7, 7\)"):
        packed(src, mask=torch.zeros(4 * HEADS, LENGTH, LENGTH))
    with pytest.raises(NotImplementedError, match="numbers other than 0 and -inf"):
        packed(src, src_key_padding_mask=torch.full((4, LENGTH), 0.5))
    with pytest.raises(ValueError, match=r"mask must have shape \(7, 7\)"):
        packed(src, mask=torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"src_key_padding_mask must have shape \(4, 7\)"):
        packed(src, src_key_padding_mask=torch.zeros(3, 7, dtype=torch.bool))


def test_bare_layers_without_bias_and_other_activations() -> None:
    stock = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, 0.0, nn.SiLU(), batch_first=True, bias=False).double()
    src = torch.randn(4, LENGTH, WIDTH).double()
    padding = _padding("right")
    _close(
        stock(src, src_key_padding_mask=padding),
        convert(stock)(src, src_key_padding_mask=padding),
        padding,
        True,
        1e-12,
    )


def test_inside_nn_transformer() -> None:
    torch.manual_seed(0)
    stock = nn.Transformer(WIDTH, HEADS, 2, 1, 24, 0.0, batch_first=True).double()
    packed = convert(stock)
    src, tgt = torch.randn(4, LENGTH, WIDTH).double(), torch.randn(4, 3, WIDTH).double()
    padding = _padding("right")
    masks = {"src_key_padding_mask": padding, "memory_key_padding_mask": padding}
    torch.testing.assert_close(packed(src, tgt, **masks), stock(src, tgt, **masks), atol=1e-12, rtol=0)


_NOISE = "ignore:.*should not be instantiated:DeprecationWarning"  # from inside torch.compile


@pytest.mark.filterwarnings(_NOISE)
def test_compiles_in_one_graph_per_kind_of_shape() -> None:
    packed = convert(_encoder(activation="gelu"))
    count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(packed, backend=count, fullgraph=True)
    for length in (5, 6, 9):
        src = torch.randn(3, length, WIDTH, requires_grad=True)
        torch.testing.assert_close(compiled(src), packed(src), atol=1e-5, rtol=0)
    assert count.frame_count <= 2
    compiled(src).sum().backward()
    assert src.grad is not None


@pytest.mark.filterwarnings(_NOISE)
def test_compiles_past_the_padding_mask() -> None:
    packed = convert(_encoder(activation="gelu"))
    count = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(packed, backend=count)
    frames = []
    with torch.no_grad():
        for length in (5, 6, 9, 8, 12):
            src, padding = torch.randn(3, length, WIDTH), torch.zeros(3, length, dtype=torch.bool)
            padding[0, length // 2 :] = True
            expected = packed(src, src_key_padding_mask=padding)
            torch.testing.assert_close(compiled(src, src_key_padding_mask=padding), expected, atol=1e-5, rtol=0)
            frames.append(count.frame_count)
    assert frames[-1] == frames[1], "new lengths must not compile again"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)], ids=["fp32", "bf16"])
def test_on_a_gpu(dtype: torch.dtype, atol: float) -> None:
    stock = _encoder(activation="gelu").eval()
    packed = convert(copy.deepcopy(stock)).to("cuda", dtype)
    src, padding = torch.randn(4, LENGTH, WIDTH), _padding("anywhere")
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            got = packed(src.to("cuda", dtype), src_key_padding_mask=padding.cuda())
            expected = stock(src, src_key_padding_mask=padding)
        torch.testing.assert_close(got[~padding.cuda()].float().cpu(), expected[~padding], atol=atol, rtol=0)
        assert not got[padding.cuda()].any()
