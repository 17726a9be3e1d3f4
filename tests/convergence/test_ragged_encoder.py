# SPDX-License-Identifier: Apache-2.0
"""A small encoder trained on packed rows follows the loss curve of the same encoder trained padded in plain torch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeops.ragged import RaggedLayout, add_layer_norm, bias_gelu, pack, ragged_attention, ragged_pool

WIDTH, HEADS, VOCABULARY, CLASSES, STEPS = 32, 4, 20, 4, 30


class Layer(nn.Module):
    """Post-norm encoder layer: the parameters, and the two ways to run them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])

    def padded(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = self.norms[0](x + self.out(mixed.transpose(1, 2).flatten(2)))
        y: Tensor = self.norms[1](x + self.down(F.gelu(self.up(x))))
        return y

    def packed(self, x: Tensor, layout: RaggedLayout) -> Tensor:
        q, k, v = self.qkv(x).unflatten(1, (3, HEADS, -1)).unbind(1)
        cu, longest = layout.offsets, layout.max_len
        mixed = ragged_attention(q, k, v, cu, cu, longest, longest).flatten(1)
        x = self.join(F.linear(mixed, self.out.weight), x, self.norms[0], self.out.bias)
        hidden = bias_gelu(F.linear(x, self.up.weight), self.up.bias)
        return self.join(F.linear(hidden, self.down.weight), x, self.norms[1], self.down.bias)

    @staticmethod
    def join(rows: Tensor, residual: Tensor, norm: nn.Module, bias: Tensor) -> Tensor:
        assert isinstance(norm, nn.LayerNorm)
        return add_layer_norm(rows, residual, norm.weight, norm.bias, norm.eps, x_bias=bias)


class Encoder(nn.Module):
    """Two layers and a classifier of the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(WIDTH, CLASSES)

    def padded(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer.padded(x, mask)  # type: ignore[operator]
        mean = (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        logits: Tensor = self.head(mean)
        return logits

    def packed(self, tokens: Tensor, mask: Tensor) -> Tensor:
        layout = RaggedLayout.from_padding_mask(mask)
        x = self.embedding(pack(tokens, layout))
        for layer in self.layers:
            x = layer.packed(x, layout)  # type: ignore[operator]
        logits: Tensor = self.head(ragged_pool(x, layout.offsets, "mean"))
        return logits


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens of random lengths; the class is the token that the first position names, modulo CLASSES."""
    lengths = torch.randint(1, 20, (16,), generator=generator)
    tokens = torch.randint(0, VOCABULARY, (16, 20), generator=generator)
    return tokens, torch.arange(20) < lengths[:, None], tokens[:, 0] % CLASSES


def train(model: Encoder, forward: Callable[[Encoder, Tensor, Tensor], Tensor], seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(STEPS):
        tokens, mask, target = batch(generator)
        loss = F.cross_entropy(forward(model, tokens, mask), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_same_losses(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    start = Encoder().to(dtype)
    padded = train(copy.deepcopy(start), Encoder.padded, 1)
    packed = train(copy.deepcopy(start), Encoder.packed, 1)
    assert padded[-1] < padded[0] - 0.1, "the padded model must learn, or the comparison says nothing"
    other_seed = train(copy.deepcopy(start), Encoder.padded, 2)
    between_seeds = max(abs(a - b) for a, b in zip(padded, other_seed))
    gap = max(abs(a - b) for a, b in zip(padded, packed))
    # the curves stay 2 eps apart; 1,000 leaves room for sums in other orders, and two seeds are 0.4 apart
    assert gap < 1e3 * torch.finfo(dtype).eps < 1e-3 * between_seeds
