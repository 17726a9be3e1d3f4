# SPDX-License-Identifier: Apache-2.0
"""Ways to fine-tune an encoder's matrices, each an optimizer and the numbers that a step of it would move.

Offload specification, section 11: LoRA and GaLore as their users set them, LSP and its ablations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.offload.encoder import Classifier
from bench.registry import Unavailable
from edgeops.offload import LSPAdamW

WIDTH, ENTRIES = 256, 4
LORA_RANK, GALORE_RANK = 8, 96
Optimizer = torch.optim.Optimizer


@dataclass(frozen=True)
class Method:
    """One way.

    Attributes:
        make: changes the model as it needs, and gives the optimizer and the numbers moved each way by a step.
        rates: the learning rates to begin with; `quality` goes on where the best one is at an edge.
    """

    make: Callable[[Classifier, float], tuple[Optimizer, int]]
    rates: tuple[float, ...]


def matrices(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The encoder's linear layers."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("encoder.encoder")]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _adamw(model: Classifier, lr: float) -> tuple[Optimizer, int]:
    trained = _trained(model)
    return torch.optim.AdamW(trained, lr=lr), sum(p.numel() for p in trained)


def _lsp(**settings: Any) -> Callable[[Classifier, float], tuple[Optimizer, int]]:
    def make(model: Classifier, lr: float) -> tuple[Optimizer, int]:
        moved = sum(p.numel() for p in _trained(model) if p.dim() != 2)
        optimizer = LSPAdamW(model, lr=lr, r=ENTRIES, targets=["encoder.encoder.*"], **{"d": WIDTH, **settings})
        return optimizer, moved + _of_subspaces(optimizer)

    return make


def _of_subspaces(optimizer: LSPAdamW) -> int:
    return sum(t.pair.shape[0] * t.pair.shape[1] for t in optimizer.targets)


class _Widened(nn.Module):
    """A weight kept in bfloat16, computed with in float32: many CPUs multiply bfloat16 slowly."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


def _half(**settings: Any) -> Callable[[Classifier, float], tuple[Optimizer, int]]:
    def make(model: Classifier, lr: float) -> tuple[Optimizer, int]:
        weights = []
        for _, linear in matrices(model):
            linear.weight = nn.Parameter(linear.weight.detach().bfloat16())
            parametrize.register_parametrization(linear, "weight", _Widened(), unsafe=True)
            weights.append(dict(linear.named_parameters())["parametrizations.weight.original"])
        chosen = {id(w) for w in weights}
        rest = [p for p in _trained(model) if id(p) not in chosen]
        groups = [{"params": weights, "d": WIDTH, "r": ENTRIES}, {"params": rest}]
        optimizer = LSPAdamW(groups, lr=lr, **settings)
        return optimizer, sum(p.numel() for p in rest) + _of_subspaces(optimizer)

    return make


def _lora(model: Classifier, lr: float) -> tuple[Optimizer, int]:
    if find_spec("peft") is None:
        raise Unavailable("it needs the package peft: pip install peft")
    import peft

    names = sorted({n.rpartition(".")[2] for n, _ in matrices(model)})
    config = peft.LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=names, lora_dropout=0.0)
    model.encoder = peft.get_peft_model(model.encoder, config).eval()
    return _adamw(model, lr)


def _galore(model: Classifier, lr: float) -> tuple[Optimizer, int]:
    if find_spec("pytorch_optimizer") is None:
        raise Unavailable("it needs the package pytorch-optimizer: pip install pytorch-optimizer")
    import pytorch_optimizer

    weights = [m.weight for _, m in matrices(model)]
    chosen = {id(w) for w in weights}
    rest = [p for p in _trained(model) if id(p) not in chosen]
    groups = [
        {"params": weights, "rank": GALORE_RANK, "update_proj_gap": 200, "scale": 0.25, "projection_type": "std"},
        {"params": rest},
    ]
    moved = sum(GALORE_RANK * max(w.shape) for w in weights) + sum(p.numel() for p in rest)
    return pytorch_optimizer.GaLore(groups, lr=lr, weight_decay=0.01, eps=1e-8), moved


METHODS: dict[str, Method] = {
    "adamw": Method(_adamw, (5e-5, 1e-4, 2e-4, 4e-4)),
    "lsp": Method(_lsp(), (5e-5, 1e-4, 2e-4, 4e-4)),
    "lora": Method(_lora, (5e-4, 1e-3, 2e-3, 4e-3)),
    "galore": Method(_galore, (2e-4, 4e-4, 8e-4, 1.6e-3)),
    "lsp, d 96": Method(_lsp(d=96), (5e-5, 1e-4, 2e-4, 4e-4)),
    "lsp, svd": Method(_lsp(projector="svd"), (5e-5, 1e-4, 2e-4, 4e-4)),
    "lsp, random": Method(_lsp(projector="random"), (5e-5, 1e-4, 2e-4, 4e-4)),
    "lsp, bf16": Method(_half(), (5e-5, 1e-4, 2e-4, 4e-4)),
    "lsp, bf16 to nearest": Method(_half(stochastic_rounding=False), (5e-5, 1e-4, 2e-4, 4e-4)),
}
