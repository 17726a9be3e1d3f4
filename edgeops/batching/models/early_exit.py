# SPDX-License-Identifier: Apache-2.0
"""A transformer that stops where it is sure enough: one layer, applied again and again. ACRoBat, spec section 7.2."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from edgeops.batching.cell import cell
from edgeops.batching.models.model import Classify, Model
from edgeops.batching.programs import wait


class EarlyExit(Model):
    """A shared encoder layer, a classifier and a certainty after each application; every instance leaves on its own.

    Losses, one an application: cross entropy, and the squared distance of the certainty from whether the class was
    right. Instances: `(tokens, label, seed)`, tokens int64 `[length]` of one length; an instance leaves where its
    certainty exceeds a draw, which the seed fixes, and after `layers` applications at the latest.

    Args:
        tokens, classes: how many there are.
        width: of the layer, a multiple of `heads`; the feed-forward part is four times as wide.
        length: tokens of an instance.
        layers: applications at most.
    """

    def __init__(self, tokens: int, classes: int, width: int, length: int, heads: int = 2, layers: int = 6) -> None:
        super().__init__()
        self.embed = cell(_Embed(tokens, length, width))
        self.layer = cell(nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True))
        self.judge = cell(_Judge(width, classes))
        self.layers = layers

    async def program(self, instance: tuple[Tensor, int, int]) -> list[Any]:
        """One loss an application."""
        tokens, label, seed = instance
        draws = random.Random(seed)
        x = self.embed(tokens)
        losses: list[Any] = []
        while True:
            x = self.layer(x)
            loss, certainty = self.judge(x, label)
            losses.append(loss)
            if len(losses) == self.layers or (await wait(certainty)).item() > draws.random():
                return losses


class _Embed(nn.Module):
    def __init__(self, tokens: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.places = nn.Parameter(torch.randn(length, width))

    def forward(self, tokens: Tensor) -> Tensor:
        rows: Tensor = self.tokens(tokens) + self.places
        return rows


class _Judge(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classify, self.certain = Classify(width, classes), nn.Linear(width, 1)

    def forward(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        whole = x.mean(1)
        certainty = self.certain(whole)[:, 0].sigmoid()
        right = self.classify.out(whole).argmax(1) == label
        loss = self.classify(whole, label) + (certainty - right.to(x.dtype)).square()
        return loss, certainty
