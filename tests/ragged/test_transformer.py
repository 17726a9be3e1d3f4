# SPDX-License-Identifier: Apache-2.0
"""`RaggedTransformerEncoderLayer` and `RaggedTransformerEncoder` against the stock modules in float64."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeops.ragged import (
    RaggedLayout,
    RaggedTransformerEncoder,
    RaggedTransformerEncoderLayer,
    convert,
    pack,
    unpack,
)
from tests.messages import refused

WIDTH, HEADS, FEED = 12, 3, 20
LENGTHS = [5, 1, 3]
SIZES = (WIDTH, HEADS, FEED)


def options(**changes: Any) -> dict[str, Any]:
    return {"dropout": 0.0, "activation": "gelu", "batch_first": True, "dtype": torch.float64} | changes


def shaken(module: nn.Module) -> nn.Module:
    """Parameters off their initial values: zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    return module


def pair(kind: str, **changes: Any) -> tuple[nn.Module, nn.Module]:
    """A stock module and a ragged one with its weights, loaded through the state dict."""
    given = options(**changes)
    stock: nn.Module = nn.TransformerEncoderLayer(*SIZES, **given)
    ragged: nn.Module = RaggedTransformerEncoderLayer(*SIZES, **given)
    if kind == "encoder":
        norms = [nn.LayerNorm(WIDTH, dtype=torch.float64) if given.get("norm_first") else None for _ in range(2)]
        stock = nn.TransformerEncoder(stock, 2, norms[0], enable_nested_tensor=False)  # type: ignore[arg-type]
        ragged = RaggedTransformerEncoder(ragged, 2, norms[1])  # type: ignore[arg-type]
    shaken(stock)
    missing = ragged.load_state_dict(stock.state_dict())
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    return stock, ragged


def source(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Rows `[B, L, E]` and the padding mask, True = padding."""
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(5) >= torch.tensor(LENGTHS)[:, None]


KINDS = pytest.mark.parametrize("kind", ["layer", "encoder"])


@KINDS
@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("activation", ["relu", "gelu", nn.functional.silu], ids=["relu", "gelu", "silu"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "sequence first"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_results_and_gradients(kind: str, norm_first: bool, activation: Any, batch_first: bool, bias: bool) -> None:
    stock, ragged = pair(kind, norm_first=norm_first, activation=activation, batch_first=batch_first, bias=bias)
    results = []
    for module in (stock, ragged):
        x, padding = source()
        x = (x if batch_first else x.transpose(0, 1).contiguous()).requires_grad_()
        out = module(x, src_key_padding_mask=padding)
        out = out if batch_first else out.transpose(0, 1)
        upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape) * ~padding[:, :, None]
        named = dict(module.named_parameters())
        grads = torch.autograd.grad(out, [x, *named.values()], upstream)
        results.append((out[~padding], dict(zip(["x", *named], grads, strict=True))))
        if module is ragged:
            assert not out[padding].any()
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-12, rtol=1e-12)
    for name, want in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], want, atol=1e-11, rtol=1e-11, msg=name)


@KINDS
def test_packed_rows_with_their_layout(kind: str) -> None:
    _, ragged = pair(kind)
    x, padding = source()
    layout = RaggedLayout.from_padding_mask(~padding)
    rows = ragged(pack(x, layout), layout=layout)
    assert torch.equal(unpack(rows, layout), ragged(x, src_key_padding_mask=padding))
    # two layers in a row, nothing padded in between
    again = ragged(rows, layout=layout)
    assert again.shape == (sum(LENGTHS), WIDTH)
    with refused(ValueError, type(ragged).__name__, "src_key_padding_mask must be None with packed rows"):
        ragged(rows, src_key_padding_mask=padding, layout=layout)
    with pytest.raises(ValueError, match=r"rows must have shape \[9, E\]"):
        ragged(rows[1:], layout=layout)


@KINDS
@pytest.mark.parametrize("kind_of_mask", ["causal flag", "causal mask", "boolean mask", "additive mask"])
def test_masks(kind: str, kind_of_mask: str) -> None:
    stock, ragged = pair(kind)
    x, padding = source()
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    masks = {
        "causal flag": {"is_causal": True},
        "boolean mask": {"mask": torch.ones(5, 5, dtype=torch.bool).triu(2)},
        "additive mask": {"mask": torch.randn(5, 5, dtype=torch.float64)},
    }
    given: dict[str, Any] = {"mask": causal} | masks.get(kind_of_mask, {})
    name = "mask" if kind == "encoder" else "src_mask"
    given = {name if key == "mask" else key: value for key, value in given.items()}
    mask = given[name]
    # the stock module wants both masks of one kind
    same = padding if mask.dtype == torch.bool else padding.double().masked_fill(padding, -torch.inf)
    want = stock(x, src_key_padding_mask=same, **given)
    got = ragged(x, src_key_padding_mask=padding, **given)
    torch.testing.assert_close(got[~padding], want[~padding], atol=1e-12, rtol=1e-12)


@KINDS
def test_no_mask_unbatched_and_nested(kind: str) -> None:
    stock, ragged = pair(kind)
    x, _ = source()
    torch.testing.assert_close(ragged(x), stock(x), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ragged(x[0]), stock(x[0]), atol=1e-12, rtol=1e-12)
    parts = [one[:n] for one, n in zip(x, LENGTHS, strict=True)]
    out = ragged(torch.nested.nested_tensor(parts, layout=torch.jagged))
    for got, part in zip(out.unbind(), parts, strict=True):
        torch.testing.assert_close(got, stock(part), atol=1e-12, rtol=1e-12)


@KINDS
def test_it_is_the_stock_class_in_all_but_the_forward(kind: str) -> None:
    stock, ragged = pair(kind)
    base, ours = type(stock), type(ragged)
    assert isinstance(ragged, base)
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(base).parameters)
    theirs = {name: p.default for name, p in inspect.signature(base).parameters.items()}
    assert {name: p.default for name, p in inspect.signature(ours).parameters.items()} == theirs
    arguments = list(inspect.signature(ours.forward).parameters)
    assert arguments == [*inspect.signature(base.forward).parameters, "layout"]
    assert list(ragged.state_dict()) == list(stock.state_dict())
    assert ours.__name__ in repr(ragged)
    stock.load_state_dict(ragged.state_dict())
    assert convert(ragged) is ragged


@KINDS
def test_pickle_copy_and_files(kind: str) -> None:
    _, ragged = pair(kind)
    x, padding = source()
    want = ragged(x, src_key_padding_mask=padding)
    buffer = io.BytesIO()
    torch.save(ragged.state_dict(), buffer)
    fresh = pair(kind)[1]
    fresh.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    for twin in (pickle.loads(pickle.dumps(ragged)), copy.deepcopy(ragged), fresh):
        assert type(twin) is type(ragged)
        assert torch.equal(twin(x, src_key_padding_mask=padding), want)
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in ragged.parameters()}


def test_layers_go_into_either_encoder() -> None:
    x, padding = source()
    stock, _ = pair("encoder")
    want = stock(x, src_key_padding_mask=padding)[~padding]
    mixed = [
        RaggedTransformerEncoder(nn.TransformerEncoderLayer(*SIZES, **options()), 2),
        nn.TransformerEncoder(RaggedTransformerEncoderLayer(*SIZES, **options()), 2, enable_nested_tensor=False),
    ]
    for encoder in mixed:
        encoder.load_state_dict(stock.state_dict())
        for training in (True, False):
            encoder.train(training)
            with torch.set_grad_enabled(training):
                got = encoder(x, src_key_padding_mask=padding)[~padding]
            torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


@KINDS
def test_dropout_in_training(kind: str) -> None:
    """Hidden dropout draws anew in each call, with a fixed seed the same, and is off in evaluation."""
    _, ragged = pair(kind, dropout=0.4)
    x, padding = source()
    torch.manual_seed(0)
    first, second = (ragged(x, src_key_padding_mask=padding) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(ragged(x, src_key_padding_mask=padding), first)
    assert not torch.equal(first, second)
    ragged.eval()
    assert torch.equal(ragged(x, src_key_padding_mask=padding), ragged(x, src_key_padding_mask=padding))


def test_empty_batches() -> None:
    layer = RaggedTransformerEncoderLayer(*SIZES, dropout=0.0, batch_first=True)
    assert layer(torch.zeros(0, 4, WIDTH)).shape == (0, 4, WIDTH)
    assert layer(torch.zeros(2, 0, WIDTH)).shape == (2, 0, WIDTH)
    out = layer(torch.randn(2, 3, WIDTH), src_key_padding_mask=torch.ones(2, 3, dtype=torch.bool))
    assert torch.equal(out, torch.zeros(2, 3, WIDTH))
    out = layer(torch.zeros(0, WIDTH, requires_grad=True), layout=RaggedLayout.from_lengths([0, 0]))
    out.sum().backward()
    assert out.shape == (0, WIDTH)


def test_nan_in_padding_does_not_leak() -> None:
    _, ragged = pair("encoder")
    x, padding = source()
    want = ragged(x, src_key_padding_mask=padding)
    x[padding] = torch.nan
    assert torch.equal(ragged(x, src_key_padding_mask=padding), want)


class _Custom(nn.TransformerEncoderLayer):
    def forward(self, src: Any, *args: Any, **kwargs: Any) -> Any:
        return src


class _CustomRagged(RaggedTransformerEncoderLayer):
    def forward(self, src: Any, *args: Any, **kwargs: Any) -> Any:
        return src


def test_layers_that_are_refused() -> None:
    who = "RaggedTransformerEncoder"
    rule = "needs a layer that packed rows can run"
    with refused(NotImplementedError, who, rule, "Linear: it is not an nn.TransformerEncoderLayer"):
        RaggedTransformerEncoder(nn.Linear(2, 2), 1)  # type: ignore[arg-type]
    for custom in (_Custom, _CustomRagged):
        with pytest.raises(NotImplementedError, match=f"{who}: {rule}; got _Custom.*forward"):
            RaggedTransformerEncoder(custom(*SIZES), 1)
    biased = RaggedTransformerEncoderLayer(*SIZES)
    biased.self_attn = nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True)
    with pytest.raises(NotImplementedError, match="appends a key of its own"):
        RaggedTransformerEncoder(biased, 1)
