# SPDX-License-Identifier: Apache-2.0
"""Converted ViT: the stock call, images of different sizes, and tokens embedded elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs edgeops[hf]")

from edgeops.ragged import RaggedLayout  # noqa: E402
from edgeops.ragged.convert import RaggedEncoder, convert, encode_packed  # noqa: E402


def _vit(head: str = "Model", **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.ViTConfig(**(sizes | {"intermediate_size": 48} | changes))
    model = getattr(transformers, f"ViT{head}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_the_stock_call() -> None:
    stock = _vit()
    pixels = torch.randn(3, 3, 16, 16)
    for dtype, atol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        stock = stock.to(dtype)
        packed = convert(stock)
        for call in ({}, {"output_hidden_states": True}, {"interpolate_pos_encoding": True}):
            expected, got = stock(pixels.to(dtype), **call), packed(pixels.to(dtype), **call)
            assert type(got) is type(expected)
            assert list(got) == list(expected)
            torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, atol=atol, rtol=0)
            torch.testing.assert_close(got.pooler_output, expected.pooler_output, atol=atol, rtol=0)
            for a, b in zip(expected.hidden_states or (), got.hidden_states or (), strict=True):
                torch.testing.assert_close(b, a, atol=atol, rtol=0)
    assert isinstance(packed(pixels.double(), return_dict=False), tuple)
    with pytest.raises(ValueError, match="pixel_values"):
        packed()


def test_attention_mask_of_patches() -> None:
    stock = _vit().double()
    packed = convert(stock)
    pixels = torch.randn(3, 3, 16, 16).double()
    mask = torch.ones(3, 17, dtype=torch.long)
    mask[0, 9:] = 0
    mask[1, [2, 5]] = 0
    expected, got = stock(pixels, attention_mask=mask), packed(pixels, attention_mask=mask)
    keep = mask.bool()
    torch.testing.assert_close(got.last_hidden_state[keep], expected.last_hidden_state[keep], atol=1e-12, rtol=0)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, atol=1e-12, rtol=0)
    assert not got.last_hidden_state[~keep].any()


def test_images_of_different_sizes() -> None:
    stock = _vit().double()
    images = [torch.randn(3, h, w).double() for h, w in ((16, 16), (8, 12), (20, 8), (8, 12))]
    packed = convert(stock)
    values, layout = encode_packed(packed, images)
    assert layout.lengths == (17, 7, 11, 7)
    alone = [stock(image[None], interpolate_pos_encoding=True) for image in images]
    torch.testing.assert_close(values, torch.cat([out.last_hidden_state[0] for out in alone]), atol=1e-12, rtol=0)
    first = RaggedEncoder(stock, pool="first")(images)
    pooled = torch.cat([out.last_hidden_state[:, 0] for out in alone])
    torch.testing.assert_close(first, pooled, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match=r"image 0 must be a tensor \[channels, height, width\]"):
        encode_packed(packed, [images[0][None]])


def test_tokens_embedded_elsewhere() -> None:
    stock = _vit()
    packed = convert(stock)
    tokens = [torch.randn(n, 32) for n in (4, 9)]

    def run(part: torch.Tensor) -> torch.Tensor:
        hidden = part[None]
        for layer in stock.layers:
            hidden = layer(hidden, None)
        return stock.layernorm(hidden)[0]

    expected = torch.cat([run(part) for part in tokens])
    values, layout = encode_packed(packed, tokens=tokens)
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
    values, _ = encode_packed(packed, tokens=torch.cat(tokens), layout=layout)
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(RaggedEncoder(stock)(tokens)), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="either pixel_values or tokens"):
        encode_packed(packed)
    with pytest.raises(ValueError, match=r"rows .* with their layout"):
        encode_packed(packed, tokens=torch.cat(tokens), layout=RaggedLayout.from_lengths([1]))


def test_heads_and_gradients() -> None:
    stock = _vit("ForImageClassification", num_labels=3).double()
    pixels = torch.randn(2, 3, 16, 16).double()
    grads = []
    for model in (stock, convert(stock)):
        model.zero_grad()
        model(pixels, labels=torch.tensor([0, 2])).loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-11, rtol=1e-9, msg=name)
