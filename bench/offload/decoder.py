# SPDX-License-Identifier: Apache-2.0
"""Decoders of published sizes with random weights: what the items on memory and on steps train (spec section 14, GPU).

RMSNorm, causal attention, gated feed-forward, no positions: the matrices and the arithmetic of a Llama.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder."""

    layers: int
    width: int
    feed: int
    heads: int
    vocabulary: int


SHAPES = {
    "1.3B": Shape(24, 2048, 5504, 16, 32256),
    "7B": Shape(32, 4096, 11008, 32, 32000),
    "tiny": Shape(2, 32, 48, 2, 64),
}


class Block(nn.Module):
    """One layer; its seven matrices are what a subspace may train."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, feed = shape.width, shape.feed
        self.heads = shape.heads
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, feed, bias=False) for _ in range(2))
        self.down = nn.Linear(feed, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[0](x)
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.o(attended)
        h = self.norms[1](x)
        out: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return out


class Decoder(nn.Module):
    """Embedding, layers with recomputed activations, head. Embedding and head stay as they are."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        for part in (self.embedding, self.head):
            part.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss of predicting each next token."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        logits = self.head(self.norm(x))[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def random_weights(module: nn.Module, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A module that was made on the device "meta", there: matrices of deviation 0.02, norms of 1."""
    module = module.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(1.0) if p.dim() == 1 else p.normal_(0.0, 0.02, generator=generator)
    return module


def decoder(name: str, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A decoder of one of `SHAPES` with random weights."""
    with torch.device("meta"):
        model = Decoder(SHAPES[name])
    return random_weights(model, device, dtype)


def layers(name: str, count: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> nn.ModuleList:
    """So many layers of one of `SHAPES` with random weights."""
    with torch.device("meta"):
        blocks = nn.ModuleList(Block(SHAPES[name]) for _ in range(count))
    made = random_weights(blocks, device, dtype)
    assert isinstance(made, nn.ModuleList)
    return made
