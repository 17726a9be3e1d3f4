# SPDX-License-Identifier: Apache-2.0
"""Training of converted models: dropout, checkpointing, autocast, compile, per-sample gradients, `Trainer`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from edgeops.ragged import RaggedLayout
from edgeops.ragged.convert import _stack, convert, encode_packed

transformers = pytest.importorskip("transformers", reason="needs edgeops[hf]")

IDS = torch.tensor([[5, 6, 7, 8, 4], [9, 5, 0, 0, 0], [7, 7, 3, 0, 0]])
MASK = IDS.ne(0).long()
SIZES = {"vocab_size": 30, "max_position_embeddings": 20}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}


def bert(hidden: float = 0.0, attention: float = 0.0, head: str = "Model", **changes: Any) -> Any:
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": hidden, "attention_probs_dropout_prob": attention}
    return getattr(transformers, f"Bert{head}")(transformers.BertConfig(**SIZES, **SMALL, **dropout, **changes))


def distilbert(attention: float = 0.0) -> Any:
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(**SIZES, **DISTIL, dropout=0.0, attention_dropout=attention)
    return transformers.DistilBertModel(config)


def encoder(hidden: float = 0.0, attention: float = 0.0) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, hidden, "gelu", batch_first=True)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for one in stack.layers:
        one.self_attn.dropout = attention  # type: ignore[union-attr, assignment]
    return stack


def run(model: Any) -> Tensor:
    if isinstance(model, nn.TransformerEncoder):
        x: Tensor = model(torch.linspace(-1, 1, 3 * 5 * 16).view(3, 5, 16), src_key_padding_mask=MASK == 0)
        return x
    out: Tensor = model(IDS, MASK).last_hidden_state
    return out


def loss_of(out: Tensor) -> Tensor:
    """Not the plain sum of squares: LayerNorm keeps that constant, so its gradients are rounding errors."""
    return (out.float() * MASK[:, :, None] + torch.linspace(-1, 1, 16)).pow(3).sum()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(run(model)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("build", [lambda p: bert(0.0, p), distilbert, lambda p: encoder(0.0, p)])
def test_attention_dropout_is_handed_to_the_attention(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    real = _stack.ragged_attention

    def attention(*args: Any, dropout_p: float = 0.0, **options: Any) -> Any:
        seen.append(dropout_p)
        return real(*args, **options)

    monkeypatch.setattr(_stack, "ragged_attention", attention)
    packed = convert(build(0.25)).train()
    run(packed).sum().backward()
    with torch.no_grad():
        run(packed)
    assert seen == [0.25] * 4
    run(packed.eval()).sum().backward()
    assert seen[4:] == [0.0] * 2


@pytest.mark.parametrize("build", [lambda p: bert(0.0, p), distilbert, lambda p: encoder(0.0, p)])
def test_attention_dropout_is_unbiased_and_repeats(build: Any) -> None:
    packed = convert(build(0.3)).train()
    torch.manual_seed(1)
    one, other = gradients(packed), run(packed)
    torch.manual_seed(1)
    again = gradients(packed)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert torch.equal(run(packed), other)
    assert not torch.equal(run(packed), other)


@pytest.mark.parametrize("build", [bert, encoder])
def test_hidden_dropout_follows_the_modules(build: Any) -> None:
    """Every `nn.Dropout` of the stack is called on packed rows, so a replaced or hooked one is heard."""
    packed = convert(build(0.5)).train()
    seen: list[tuple[int, ...]] = []
    dropouts = {name: m for name, m in packed.named_modules() if isinstance(m, nn.Dropout)}
    places = [m for name, m in dropouts.items() if "layer" in name and "self" not in name]
    for place in places:
        place.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    gradients(packed)
    assert len(seen) == len(places) > 0
    assert {shape[0] for shape in seen} == {int(MASK.sum())}


@pytest.mark.parametrize("reentrant", [None, False, True], ids=["default", "not reentrant", "reentrant"])
@pytest.mark.parametrize("head", ["bert", "distilbert"])
def test_gradient_checkpointing_changes_nothing(head: str, reentrant: bool | None) -> None:
    packed = convert(bert(0.3) if head == "bert" else distilbert()).train()
    torch.manual_seed(2)
    expected = gradients(packed)
    # renamed in transformers 5.2x
    enable = getattr(packed, "activation_checkpointing_enable", None) or packed.gradient_checkpointing_enable
    enable(*([] if reentrant is None else [{"use_reentrant": reentrant}]))
    torch.manual_seed(2)
    got = gradients(packed)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name)


def test_gradient_checkpointing_draws_the_same_attention_dropout() -> None:
    packed = convert(bert(0.2, 0.2)).train()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            enable = getattr(packed, "activation_checkpointing_enable", None) or packed.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        torch.manual_seed(2)
        results.append(gradients(packed))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)


@pytest.mark.parametrize("build", [bert, distilbert, encoder])
def test_autocast_training(build: Any) -> None:
    """Gradients keep the dtype of the parameters and are as near to float32 as those of the stock model."""
    stock = build().train()
    packed, exact = convert(copy.deepcopy(stock)), gradients(stock)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = gradients(stock), gradients(packed)
    for name, true in exact.items():
        assert ours[name].dtype == torch.float32, name
        room = 3 * (theirs[name] - true).abs().max() + 0.02 * true.abs().max()
        assert (ours[name] - true).abs().max() <= room + 1e-4, name


# both from inside torch.compile
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("build", [bert, encoder])
def test_compiled_training(build: Any) -> None:
    packed = convert(build()).train()
    compiled = torch.compile(packed, backend="aot_eager")
    expected = gradients(packed)
    packed.zero_grad()
    out = (
        run(compiled)
        if build is bert
        else compiled(torch.linspace(-1, 1, 3 * 5 * 16).view(3, 5, 16), src_key_padding_mask=MASK == 0)
    )
    loss_of(out).backward()
    for name, p in packed.named_parameters():
        if name in expected:
            atol = 2e-6 * float(expected[name].abs().max()) + 1e-6
            torch.testing.assert_close(p.grad, expected[name], atol=atol, rtol=0, msg=name)


def test_per_sample_gradients() -> None:
    """`vmap(grad(...))` over samples of one layout, through `functional_call`, equals a loop."""
    packed = convert(encoder()).double().train()
    layout = RaggedLayout.from_lengths([2, 0, 3])
    samples = torch.randn(4, layout.total, 16, dtype=torch.float64)
    parameters = dict(packed.named_parameters())

    class Packed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, rows: Tensor) -> Tensor:
            return encode_packed(self.inner, rows, layout=layout)[0]

    whole = Packed(packed)
    parameters = {f"inner.{name}": p.detach() for name, p in parameters.items()}

    def loss(values: dict[str, Tensor], rows: Tensor) -> Tensor:
        out: Tensor = functional_call(whole, values, (rows,))
        return (out + torch.linspace(-1, 1, 16)).pow(3).sum()

    got = vmap(grad(loss), in_dims=(None, 0))(parameters, samples)
    for i in range(len(samples)):
        want = grad(loss)(parameters, samples[i])
        for name, value in want.items():
            torch.testing.assert_close(got[name][i], value, msg=name)


class Sentences(torch.utils.data.Dataset):
    """Random ids whose label is whether the first of them is odd."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = []
        for _ in range(count):
            length = int(torch.randint(2, 12, (), generator=generator))
            ids = torch.randint(1, 30, (length,), generator=generator).tolist()
            self.rows.append({"input_ids": ids, "labels": ids[0] % 2})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.rows[i]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": padded, "attention_mask": padded.ne(0).long(), "labels": labels}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_trainer_runs_an_epoch(tmp_path: Path) -> None:
    """`transformers.Trainer` trains, evaluates, saves and loads a converted model as it would the stock one."""
    pytest.importorskip("accelerate", reason="needs edgeops[train]")
    histories = {}
    for kind in ("stock", "converted"):
        model = bert(head="ForSequenceClassification", num_labels=2)
        model = convert(model) if kind == "converted" else model
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / kind), num_train_epochs=1, per_device_train_batch_size=8, learning_rate=5e-3,
            logging_steps=1, save_strategy="epoch", report_to=[], use_cpu=True, seed=0, disable_tqdm=True,
            dataloader_pin_memory=False, gradient_checkpointing=kind == "converted",
        )  # fmt: skip
        data = Sentences(64)
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=data, eval_dataset=data, data_collator=collate
        )
        trainer.train()
        histories[kind] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        assert trainer.evaluate()["eval_loss"] < 1.0
    assert len(histories["stock"]) == 8
    torch.testing.assert_close(
        torch.tensor(histories["converted"]), torch.tensor(histories["stock"]), atol=1e-3, rtol=0
    )
    saved = next((tmp_path / "converted").glob("checkpoint-*"))
    loaded = transformers.BertForSequenceClassification.from_pretrained(saved)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
