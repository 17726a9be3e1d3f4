# SPDX-License-Identifier: Apache-2.0
"""LSPAdamW in the loops that people have: transformers' Trainer and accelerate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgeops.offload import LSPAdamW

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed (extra: train)")


def classifier() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def samples(count: int) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 40, (count, 8), generator=g)
    return [{"input_ids": row, "attention_mask": torch.ones(8, dtype=torch.long), "labels": row[0] % 2} for row in ids]


def trained(folder: Path, resume: bool, steps: int = 8) -> tuple[nn.Module, LSPAdamW]:
    model = classifier()
    optimizer = LSPAdamW(model, lr=5e-3, d=8, r=2, check_every=3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 20)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        save_steps=4, logging_strategy="no", report_to=[], use_cpu=True, seed=0, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=samples(64), optimizers=(optimizer, schedule)
    )
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4") if resume else None)
    return model, optimizer


def test_the_trainer_clips_accumulates_saves_and_resumes(tmp_path: Path) -> None:
    """Gradients are clipped by the Trainer (norm 1 by default), accumulated over two batches, and resumed exactly."""
    whole, optimizer = trained(tmp_path, resume=False)
    assert all(t.learned >= 2 for t in optimizer.targets)
    assert not any("subspace" in key for key in whole.state_dict())
    again, resumed = trained(tmp_path, resume=True)
    assert [t.learned for t in resumed.targets] == [t.learned for t in optimizer.targets]
    for a, b in zip(whole.state_dict().values(), again.state_dict().values()):
        assert torch.equal(a, b)


def test_accelerate_prepares_it() -> None:
    model = classifier()
    optimizer = LSPAdamW(model, lr=5e-3, d=8, r=2)
    accelerator = accelerate.Accelerator(cpu=True)
    loader = torch.utils.data.DataLoader(samples(16), batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for _ in range(3):
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < sum(losses[:4])
