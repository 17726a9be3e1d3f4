# SPDX-License-Identifier: Apache-2.0
"""What `convert` promises about modules: names, files, copies, shared weights, and refusals with reasons."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs edgeops[hf]")

from edgeops.ragged.convert import convert, encode_packed, is_converted  # noqa: E402

IDS = torch.tensor([[5, 6, 7, 8], [9, 5, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def _bert(head: str = "Model", **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(**(sizes | {"intermediate_size": 24, "max_position_embeddings": 20} | changes))
    return getattr(transformers, f"Bert{head}")(config).eval()


def _encoder(dropout: float = 0.0) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _run(model: Any) -> torch.Tensor:
    if isinstance(model, nn.TransformerEncoder):
        return model(torch.linspace(-1, 1, 2 * 4 * 16).view(2, 4, 16), src_key_padding_mask=MASK == 0)
    return model(IDS, MASK)[0]


MODELS = [_bert, lambda: _bert("ForSequenceClassification"), _encoder]


@pytest.mark.parametrize("build", MODELS, ids=["bert", "classifier", "encoder"])
def test_names_classes_and_signatures_stay(build: Any) -> None:
    stock = build()
    packed = convert(stock)
    assert list(packed.state_dict()) == list(stock.state_dict())
    assert isinstance(packed, type(stock))
    assert type(packed).__name__ == type(stock).__name__
    assert list(inspect.signature(packed.forward).parameters) == list(inspect.signature(stock.forward).parameters)
    assert [name for name, _ in packed.named_modules()] == [name for name, _ in stock.named_modules()]
    assert is_converted(packed)
    assert not is_converted(stock)
    assert "Ragged[" in repr(packed)
    assert convert(packed) is packed


@pytest.mark.parametrize("build", MODELS, ids=["bert", "classifier", "encoder"])
def test_state_dict_round_trip_is_exact(build: Any) -> None:
    stock = build()
    packed = convert(build())
    values = {name: torch.randn_like(x) if x.is_floating_point() else x for name, x in stock.state_dict().items()}
    stock.load_state_dict(values)
    packed.load_state_dict(stock.state_dict())
    for name, value in packed.state_dict().items():
        assert torch.equal(value, values[name]), name
    build().load_state_dict(packed.state_dict())
    torch.testing.assert_close(_run(packed)[0], _run(stock)[0], atol=1e-5, rtol=0)
    packed.load_state_dict({name: x.clone() for name, x in values.items()}, assign=True)
    with torch.inference_mode():
        torch.testing.assert_close(_run(packed)[0], _run(stock)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("build", MODELS, ids=["bert", "classifier", "encoder"])
def test_pickle_deepcopy_and_save(build: Any, tmp_path: Path) -> None:
    packed = convert(build())
    expected = _run(packed)
    buffer = io.BytesIO()
    torch.save(packed.state_dict(), buffer)
    restored = convert(build())
    restored.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    copies = [pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed), restored]
    for twin in copies:
        assert type(twin) is type(packed)
        assert is_converted(twin)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(_run(twin), expected, atol=1e-6, rtol=0)
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in packed.parameters()}
    with torch.no_grad():
        next(copies[1].parameters()).add_(1.0)
    assert torch.equal(_run(packed), expected)


def test_files_of_save_pretrained_are_stock(tmp_path: Path) -> None:
    stock = _bert()
    packed = convert(stock)
    packed.save_pretrained(tmp_path)
    loaded = transformers.BertModel.from_pretrained(tmp_path)
    assert not is_converted(loaded)
    assert loaded.config.architectures == ["BertModel"]
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, stock.state_dict()[name]), name


def test_copy_shares_parameters_and_leaves_the_model_alone() -> None:
    stock = _bert()
    before = _run(stock).detach().clone()
    packed = convert(stock)
    assert all(a is b for a, b in zip(stock.parameters(), packed.parameters(), strict=True))
    assert torch.equal(_run(stock), before)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.mul_(1.1)
    torch.testing.assert_close(_run(packed)[0], _run(stock)[0], atol=1e-5, rtol=0)
    assert convert(stock, inplace=True) is stock
    assert is_converted(stock)


def test_shared_projection_storage() -> None:
    packed = convert(_bert())
    attention = packed.encoder.layer[0].attention.self
    parts = [attention.query, attention.key, attention.value]
    assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1
    with torch.inference_mode():
        expected = _run(packed)
        # in-place writes reach the shared storage; replaced parameters and modules are noticed
        attention.query.weight.data.mul_(2.0)
        doubled = _run(packed)
        attention.query.weight.data.div_(2.0)
        assert not torch.allclose(doubled, expected)
        torch.testing.assert_close(_run(packed), expected)
    for replace in (
        lambda: setattr(attention.query, "weight", nn.Parameter(attention.query.weight.detach() * 2.0)),
        lambda: setattr(attention.query.weight, "data", attention.query.weight.data * 2.0),
        lambda: setattr(attention, "query", nn.Sequential(_doubled(attention.query))),
    ):
        saved, weight = attention.query, attention.query.weight.detach().clone()
        replace()
        with torch.inference_mode():
            torch.testing.assert_close(_run(packed), doubled, atol=1e-5, rtol=0)
        attention.query = saved
        with torch.no_grad():
            attention.query.weight.copy_(weight)
        with torch.inference_mode():
            torch.testing.assert_close(_run(packed), expected, atol=1e-5, rtol=0)


def _doubled(linear: nn.Linear) -> nn.Linear:
    twin = copy.deepcopy(linear)
    with torch.no_grad():
        twin.weight.mul_(2.0)
    return twin


def test_projections_stay_apart_where_other_owners_could_notice() -> None:
    tied = _bert()
    tied.encoder.layer[0].attention.self.key.weight = tied.encoder.layer[0].attention.self.query.weight
    shared = _bert().share_memory()
    with torch.inference_mode():
        frozen = _bert()
    for stock in (tied, shared, frozen):
        packed = convert(stock)
        assert packed.fused_projections()[0] is None
        with torch.inference_mode():
            torch.testing.assert_close(_run(packed)[0], _run(stock)[0], atol=1e-5, rtol=0)
    again = convert(_bert()).share_memory()
    assert again.fused_projections()[0] is not None
    later = _bert()
    with torch.inference_mode():
        trained = convert(later)
    assert trained.fused_projections()[0] is not None
    trained(IDS, MASK).last_hidden_state.sum().backward()
    assert trained.encoder.layer[0].attention.self.query.weight.grad is not None


def test_hooks_on_leaves_are_called() -> None:
    packed = convert(_bert())
    layer = packed.encoder.layer[0]
    leaves = [
        layer.attention.self.key,
        layer.attention.output.dense,
        layer.attention.output.LayerNorm,
        layer.intermediate.dense,
        layer.intermediate.intermediate_act_fn,
        layer.output.dense,
        layer.output.LayerNorm,
    ]
    seen: list[nn.Module] = []
    with torch.inference_mode():
        expected = _run(packed)
        for leaf in leaves:
            handle = leaf.register_forward_hook(lambda module, args, output: seen.append(module))
            torch.testing.assert_close(_run(packed), expected, atol=1e-6, rtol=0)
            handle.remove()
    assert seen == leaves


def test_moves_between_dtypes_keep_one_storage() -> None:
    packed = convert(_bert()).double()
    attention = packed.encoder.layer[1].attention.self
    with torch.inference_mode():
        fused = packed.fused_projections()[1]
        assert fused is not None
        assert fused.weight.dtype == torch.float64
        assert attention.query.weight.data_ptr() == fused.weight.data_ptr()
        stock = _bert().double()
        torch.testing.assert_close(_run(packed)[0], _run(stock)[0], atol=1e-12, rtol=0)
    half = convert(_bert()).bfloat16()
    with torch.inference_mode():
        torch.testing.assert_close(_run(half)[0].float(), _run(_bert())[0], atol=0.1, rtol=0)


def test_autocast() -> None:
    stock = _bert()
    packed = convert(stock)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(_run(packed)[0].float(), _run(stock)[0].float(), atol=0.05, rtol=0)


def test_several_encoders_in_one_tree() -> None:
    tree = nn.ModuleDict({"text": _bert(), "image": _encoder(), "head": nn.Linear(2, 2)})
    packed = convert(tree)
    assert sorted(name for name, m in packed.named_modules() if is_converted(m)) == ["", "image", "text"]
    with pytest.raises(ValueError, match="one converted encoder; got text, image"):
        encode_packed(packed, IDS)
    with pytest.raises(ValueError, match="got Linear without any"):
        encode_packed(nn.Linear(2, 2), IDS)


class _Custom(nn.TransformerEncoderLayer):
    def forward(self, src: Any, *args: Any, **kwargs: Any) -> Any:
        return src


def test_refusals_name_every_module_and_reason() -> None:
    bad = _bert()
    bad.encoder.layer[1].attention.self.forward = lambda *args, **kwargs: None
    bad.encoder.layer[0].register_forward_hook(lambda module, args, output: None)
    decoder = _bert(is_decoder=True, add_cross_attention=True)
    custom = _encoder()
    custom.layers[1] = _Custom(16, 2, 24, 0.0)
    wide = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24), 1, enable_nested_tensor=False)
    wide.layers[0].self_attn = nn.MultiheadAttention(16, 2, kdim=8, vdim=8)
    biased = nn.TransformerEncoderLayer(16, 2, 24)
    biased.self_attn = nn.MultiheadAttention(16, 2, add_bias_kv=True)
    parts = {"good": _bert(), "bad": bad, "decoder": decoder, "custom": custom, "wide": wide, "biased": biased}
    tree = nn.ModuleDict(parts)
    with pytest.raises(NotImplementedError) as refused:
        convert(tree)
    text = str(refused.value)
    expected = [
        "\n  bad:\n    - encoder.layer.0 has a forward hook",
        "encoder.layer.1.attention.self is a BertSelfAttention with a forward of its own",
        "\n  decoder:\n    - it is configured as a decoder",
        "it has cross-attention",
        "\n  custom:\n    - layers.1 is a _Custom with a forward of its own",
        "\n  wide:\n    - layers.0.self_attn has keys or values of another width",
        "\n  biased:\n    - self_attn appends a key of its own",
    ]
    for part in expected:
        assert part in text
    assert "good" not in text
    assert not is_converted(tree)


def test_models_without_a_known_encoder_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"needs one of: BERT, .*; got Linear without any"):
        convert(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"must be an nn\.Module; got str"):
        convert("bert")  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="chunked over the padded batch"):
        convert(_bert(chunk_size_feed_forward=2))


def test_calls_that_are_refused() -> None:
    packed = convert(_bert())
    with pytest.raises(NotImplementedError, match=r"output_attentions(.|\n)*has shape \(2, 1, 4, 4\)"):
        packed(IDS, torch.ones(2, 1, 4, 4), output_attentions=True)
    with pytest.raises(NotImplementedError, match="encoder_hidden_states is given"):
        packed(IDS, MASK, encoder_hidden_states=torch.zeros(2, 3, 16))


def test_transformers_is_never_imported_for_the_user() -> None:
    code = (
        "import sys, torch; from edgeops.ragged import convert;"
        "model = convert(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval();"
        "model(torch.randn(1, 2, 8)); sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_changed_subclass_is_refused_and_an_unchanged_one_is_not() -> None:
    class Renamed(transformers.BertModel):
        pass

    class Changed(transformers.BertModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    config = _bert().config
    assert isinstance(convert(Renamed(config)), Renamed)
    with pytest.raises(NotImplementedError, match="its forward is not that of BertModel"):
        convert(Changed(config))
