# SPDX-License-Identifier: Apache-2.0
"""Converted Hugging Face text encoders against the unconverted ones, on random small models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="needs edgeops[hf]")

from edgeops.ragged import RaggedLayout, ragged_pool, unpack  # noqa: E402
from edgeops.ragged.convert import RaggedEncoder, convert, encode_packed, is_converted  # noqa: E402

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-5,
}
DISTIL = {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40}
FAMILIES = ["Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "Data2VecText", "DistilBert"]


def _build(family: str, head: str = "Model", **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = DISTIL if family == "DistilBert" else SIZES
    if family == "Electra":
        sizes = sizes | {"embedding_size": 24}
    config = getattr(transformers, f"{family}Config")(**(sizes | changes))
    model = getattr(transformers, f"{family}{head}")(config).eval()
    with torch.no_grad():  # LayerNorms and biases begin as ones and zeros, which hides mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _batch(model: Any, batch: int = 5, length: int = 11, seed: int = 1) -> dict[str, Tensor]:
    """Ids and a mask with right padding, left padding, holes, a full row and a row of padding only."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (batch, length), generator=generator)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, 4:] = 0
    mask[1, :3] = 0
    mask[2, [1, 5, 9]] = 0
    mask[3] = 0
    ids[mask == 0] = model.config.pad_token_id
    return {"input_ids": ids, "attention_mask": mask}


def _assert_tokens_close(expected: Tensor, got: Tensor, mask: Tensor, atol: float) -> None:
    keep = mask.bool()
    torch.testing.assert_close(got[keep], expected[keep], atol=atol, rtol=0)
    assert not got[~keep].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_match_in_fp32_and_fp64(family: str) -> None:
    for dtype, atol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        stock = _build(family).to(dtype)
        batch = _batch(stock)
        packed = convert(stock)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                expected = stock(**batch, output_hidden_states=True)
                got = packed(**batch, output_hidden_states=True)
            assert type(got) is type(expected)
            assert list(got) == list(expected)
            assert len(got.hidden_states) == len(expected.hidden_states) == 3
            assert got.hidden_states[-1] is got.last_hidden_state
            for a, b in zip(expected.hidden_states, got.hidden_states, strict=True):
                _assert_tokens_close(a, b, batch["attention_mask"], atol)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_mask_every_token_is_real(family: str) -> None:
    stock = _build(family)
    ids = _batch(stock)["input_ids"]
    packed = convert(stock)
    torch.testing.assert_close(packed(ids).last_hidden_state, stock(ids).last_hidden_state, atol=1e-5, rtol=0)
    full = packed(ids, torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(full, stock(ids).last_hidden_state, atol=1e-5, rtol=0)
    one = ids[:1, :1]
    torch.testing.assert_close(packed(one).last_hidden_state, stock(one).last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert"])
def test_inputs_embeds_positions_and_token_types(family: str) -> None:
    stock = _build(family)
    packed = convert(stock)
    batch = _batch(stock)
    mask = batch["attention_mask"]
    embeds = torch.randn(5, 11, 32)
    extra: dict[str, Tensor] = {}
    if family != "DistilBert":
        extra["token_type_ids"] = torch.randint(0, stock.config.type_vocab_size, (5, 11))
    positions = torch.randint(3, 40, (5, 11))
    calls: list[dict[str, Any]] = [
        {"inputs_embeds": embeds, "attention_mask": mask},
        {"inputs_embeds": embeds},
        {**batch, "position_ids": positions},
        {**batch, "position_ids": positions[:1]},
        {**batch, **extra},
        {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions, **extra},
    ]
    for call in calls:
        keep = call.get("attention_mask", torch.ones_like(mask))
        _assert_tokens_close(stock(**call).last_hidden_state, packed(**call).last_hidden_state, keep, 1e-5)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        packed(**batch, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        packed(attention_mask=mask)


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_pooler_and_tuple_outputs(family: str) -> None:
    stock = _build(family)
    packed = convert(stock)
    batch = _batch(stock)
    right_padded = [0, 2, 4]
    expected, got = stock(**batch, return_dict=False), packed(**batch, return_dict=False)
    assert isinstance(got, tuple)
    assert len(got) == len(expected) == 2
    torch.testing.assert_close(got[1][right_padded], expected[1][right_padded], atol=1e-5, rtol=0)
    # with padding in front the stock model pools a padding position; the converted one the first token
    first = got[0][1, 3]
    torch.testing.assert_close(got[1][1], stock.pooler(first[None, None])[0], atol=1e-5, rtol=0)
    assert got[1].isfinite().all()
    no_pooler = convert(type(stock)(stock.config, add_pooling_layer=False).eval())
    assert no_pooler(**batch).pooler_output is None


def test_selected_hidden_states() -> None:
    stock = _build("Bert")
    batch = _batch(stock)
    packed = convert(stock)
    every = packed(**batch, output_hidden_states=True).hidden_states
    some = packed(**batch, output_hidden_states=[0, -1]).hidden_states
    assert some[1] is None
    torch.testing.assert_close(some[0], every[0])
    torch.testing.assert_close(some[2], every[2])
    assert packed(**batch).hidden_states is None
    packed.config.output_hidden_states = True
    assert len(packed(**batch).hidden_states) == 3


def test_heads_keep_their_results() -> None:
    for head in ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "ForQuestionAnswering"):
        stock = _build("Bert", head)
        packed = convert(stock)
        assert type(packed) is type(stock)
        assert is_converted(packed)
        batch = _batch(stock)
        rows = [0, 2, 4]
        batch = {name: value[rows] for name, value in batch.items()}
        expected, got = stock(**batch), packed(**batch)
        for name in expected:
            a, b = expected[name], got[name]
            if a.shape[:2] == batch["input_ids"].shape:
                keep = batch["attention_mask"].bool()
                a, b = a[keep], b[keep]
            torch.testing.assert_close(b, a, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Electra"])
def test_gradients_match(family: str) -> None:
    stock = _build(family).double()
    other = convert(copy.deepcopy(stock))
    batch = _batch(stock)
    keep = batch.pop("attention_mask")
    embeds = torch.randn(5, 11, SIZES["hidden_size"] if family != "Electra" else 24, dtype=torch.float64)
    weight = torch.randn(5, 11, 32, dtype=torch.float64)
    weight[3] = 0  # the row without a token: the stock model attends to nothing there, which has no defined result
    for inputs in ({"input_ids": batch["input_ids"]}, {"inputs_embeds": embeds}):
        grads = []
        for model in (stock, other):
            model.zero_grad()
            given = {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
            hidden = model(**given, attention_mask=keep).last_hidden_state
            (hidden * weight * keep[..., None]).sum().backward()
            found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            if "inputs_embeds" in given:
                found["input"] = given["inputs_embeds"].grad
            grads.append(found)
        assert grads[0].keys() == grads[1].keys()
        for name in grads[0]:
            torch.testing.assert_close(grads[1][name], grads[0][name], atol=1e-11, rtol=1e-9, msg=name)


def _counting(layer: Any, calls: list[int]) -> Any:
    inner = layer._gradient_checkpointing_func

    def call(*args: Any) -> Any:
        calls.append(1)
        return inner(*args)

    return call


def test_training_with_hidden_dropout_and_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = _build("Bert", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.0).double()
    packed = convert(copy.deepcopy(stock)).train()
    batch = _batch(stock)
    losses: list[Any] = []
    calls: list[int] = []
    for checkpointing in (False, True):
        if checkpointing:
            # renamed in transformers 5.2x
            enable = getattr(packed, "activation_checkpointing_enable", None) or packed.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            layer = packed.encoder.layer[0]
            monkeypatch.setattr(layer, "_gradient_checkpointing_func", _counting(layer, calls))
        packed.zero_grad()
        torch.manual_seed(3)
        loss = packed(**batch).last_hidden_state.square().sum()
        loss.backward()
        losses.append((loss.detach(), packed.encoder.layer[0].attention.self.query.weight.grad.clone()))
    torch.testing.assert_close(losses[0], losses[1])
    assert len(calls) == 1
    assert losses[0][0] != packed.eval()(**batch).last_hidden_state.square().sum()


def test_nan_in_padding_does_not_leak() -> None:
    stock = _build("Bert")
    packed = convert(stock)
    batch = _batch(stock)
    mask = batch["attention_mask"]
    embeds = torch.randn(5, 11, 32)
    clean = packed(inputs_embeds=embeds, attention_mask=mask)
    embeds[mask == 0] = torch.nan
    embeds.requires_grad_(True)
    dirty = packed(inputs_embeds=embeds, attention_mask=mask, output_hidden_states=True)
    assert torch.equal(dirty.last_hidden_state, clean.last_hidden_state)
    assert all(states.isfinite().all() for states in dirty.hidden_states)
    dirty.last_hidden_state.square().sum().backward()
    assert embeds.grad.isfinite().all()
    assert not embeds.grad[mask == 0].any()


def test_masks_of_other_dtypes() -> None:
    stock = _build("Bert")
    packed = convert(stock)
    batch = _batch(stock)
    expected = packed(**batch).last_hidden_state
    for dtype in (torch.bool, torch.int32, torch.float32):
        got = packed(batch["input_ids"], batch["attention_mask"].to(dtype)).last_hidden_state
        assert torch.equal(got, expected)


def test_batch_order_does_not_matter() -> None:
    packed = convert(_build("Bert"))
    batch = _batch(packed)
    order = torch.tensor([4, 2, 0, 1, 3])
    with torch.inference_mode():
        whole = packed(**batch).last_hidden_state
        permuted = packed(**{name: value[order] for name, value in batch.items()}).last_hidden_state
    torch.testing.assert_close(permuted, whole[order], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert"])
def test_encode_packed(family: str) -> None:
    stock = _build(family)
    model = nn.ModuleDict({"transformer": stock, "pool": nn.Identity()})
    packed = convert(model)
    batch = _batch(stock)
    rows = [0, 2, 4]
    ids, mask = batch["input_ids"][rows], batch["attention_mask"][rows]
    ids[1], mask[1] = 7, 1
    values, layout = encode_packed(packed, ids, mask)
    assert values.shape == (4 + 11 + 11, 32)
    expected = stock(ids, mask).last_hidden_state
    _assert_tokens_close(expected, unpack(values, layout), mask, 1e-5)
    mean = (expected * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(ragged_pool(values, layout.offsets, "mean"), mean, atol=1e-5, rtol=0)
    lists = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    from_lists, again = encode_packed(packed, lists)
    assert again.lengths == layout.lengths
    torch.testing.assert_close(from_lists, values, atol=1e-6, rtol=0)
    flat = torch.tensor([token for row in lists for token in row])
    torch.testing.assert_close(encode_packed(packed, flat, layout=layout)[0], values, atol=1e-6, rtol=0)
    pooled = RaggedEncoder(model, pool="mean")(lists)
    torch.testing.assert_close(pooled, mean, atol=1e-5, rtol=0)
    parts = RaggedEncoder(model)([torch.tensor(row) for row in lists])
    assert [len(part) for part in parts] == list(layout.lengths)
    first = RaggedEncoder(model, pool="first")(lists)
    torch.testing.assert_close(first, expected[:, 0], atol=1e-5, rtol=0)
    embedded = [torch.randn(3, 32), torch.randn(6, 32)]
    alone = [stock(inputs_embeds=part[None]).last_hidden_state[0] for part in embedded]
    for got, wanted in zip(RaggedEncoder(model)(embedded), alone, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_encode_packed_positions_of_roberta_skip_pad_tokens() -> None:
    stock = _build("Roberta")
    pad = stock.config.pad_token_id
    ids = torch.tensor([[9, pad, 8, 7, 6], [5, 6, pad, pad, 9]])
    packed = convert(stock)
    expected = stock(ids).last_hidden_state
    torch.testing.assert_close(packed(ids).last_hidden_state, expected, atol=1e-5, rtol=0)
    values, _ = encode_packed(packed, list(ids))
    torch.testing.assert_close(values, expected.flatten(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert"])
def test_flattened_sequences_with_cu_seq_lens(family: str) -> None:
    stock = _build(family)
    packed = convert(stock)
    parts = [torch.randint(5, 50, (n,)) for n in (4, 1, 6)]
    first = 0 if family != "Roberta" else stock.config.pad_token_id + 1
    positions = torch.cat([torch.arange(first, first + len(part)) for part in parts])[None]
    offsets = torch.tensor([0, 4, 5, 11], dtype=torch.int32)
    row = torch.cat(parts)[None]
    got = packed(row, position_ids=positions, cu_seq_lens_q=offsets, cu_seq_lens_k=offsets, max_length_q=6)
    expected = torch.cat([stock(part[None]).last_hidden_state[0] for part in parts])[None]
    torch.testing.assert_close(got.last_hidden_state, expected, atol=1e-5, rtol=0)
    if family != "DistilBert":
        torch.testing.assert_close(got.pooler_output, stock(parts[0][None]).pooler_output, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="a batch of one row; got 2 rows"):
        packed(row.expand(2, -1), cu_seq_lens_q=offsets)
    with pytest.raises(ValueError, match="must end at the number of rows, 11"):
        packed(row, cu_seq_lens_q=offsets[:3])


def test_encode_packed_refuses_inputs_that_do_not_fit() -> None:
    packed = convert(_build("Bert"))
    layout = RaggedLayout.from_lengths([2, 3])
    with pytest.raises(ValueError, match="rows must be as many as the layout has, 5"):
        encode_packed(packed, torch.tensor([1, 2]), layout=layout)
    with pytest.raises(ValueError, match=r"lengths \(2, 3\)"):
        encode_packed(packed, [[1, 2], [1, 2]], layout=layout)
    with pytest.raises(ValueError, match=r"lengths \(1, 1\)"):
        encode_packed(packed, [[1], [2]], token_type_ids=[[0], [0, 0]])
    with pytest.raises(TypeError, match="must be integers"):
        encode_packed(packed, [[1.5], [2.0]])
    with pytest.raises(ValueError, match="at least one sequence"):
        encode_packed(packed, [])
    with pytest.raises(ValueError, match="must have the shape of the tokens"):
        packed(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 4))


def test_empty_batches() -> None:
    packed = convert(_build("Bert"))
    ids = torch.full((3, 4), 7)
    nothing = packed(ids, torch.zeros_like(ids))
    assert nothing.last_hidden_state.shape == (3, 4, 32)
    assert not nothing.last_hidden_state.any()
    assert nothing.pooler_output.isfinite().all()
    assert packed(ids[:0]).last_hidden_state.shape == (0, 4, 32)
    values, layout = encode_packed(packed, [[], [3, 4], []])
    assert values.shape == (2, 32)
    assert layout.lengths == (0, 2, 0)
