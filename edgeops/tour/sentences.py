# SPDX-License-Identifier: Apache-2.0
"""Ways to embed a list of sentences with a BERT: padded, sorted, and packed by hand.

All of them take the same padded batches and return mean-pooled, L2-normalised rows in the caller's order, so that only
the treatment of padding differs. Building the padded batches belongs to tokenisation and is not part of what is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Padded token ids and their mask, `[B, L]` int64, with the real token counts."""

    input_ids: Tensor
    attention_mask: Tensor
    lengths: tuple[int, ...]


def make_batches(tokens: Sequence[Sequence[int]], size: int, pad_id: int) -> list[Batch]:
    """Cut token lists into batches of `size`, each padded on the right to its longest.

    >>> [tuple(b.input_ids.shape) for b in make_batches([[1], [1, 2], [3]], 2, pad_id=0)]
    [(2, 2), (1, 1)]
    """
    batches = []
    for start in range(0, len(tokens), size):
        rows = tokens[start : start + size]
        lengths = tuple(len(row) for row in rows)
        ids = torch.full((len(rows), max(lengths)), pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        batches.append(Batch(ids, mask, lengths))
    return batches


Embed = Callable[[Batch], Tensor]


def padded_embed(model: nn.Module) -> Embed:
    """What a model card says: run the batch padded, mean over the mask, normalise. Also how `convert` is called."""

    def embed(batch: Batch) -> Tensor:
        hidden = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        mask = batch.attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    return embed


class PackedLoop:
    """What a careful user writes by hand for a BERT: packed rows, one scaled_dot_product_attention per sequence.

    The query, key and value projections are fused into one product ahead of time, and every position-wise layer runs on
    real tokens only. Packing and pooling are part of the call.

    Args:
        model: a Hugging Face `BertModel` in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.heads: int = model.config.num_attention_heads
        projections = [
            [(p.weight, p.bias) for p in (a.query, a.key, a.value)]
            for a in (layer.attention.self for layer in model.encoder.layer)
        ]
        self.fused = [
            (torch.cat([w for w, _ in qkv]).detach(), torch.cat([b for _, b in qkv]).detach()) for qkv in projections
        ]

    def __call__(self, batch: Batch) -> Tensor:
        """Embeddings `[B, C]` of one batch."""
        kept = batch.attention_mask.bool()
        positions = torch.arange(kept.shape[1]).expand_as(kept)[kept]
        x = self.model.embeddings(input_ids=batch.input_ids[kept][None], position_ids=positions[None])[0]
        lengths = list(batch.lengths)
        for layer, (weight, bias) in zip(self.model.encoder.layer, self.fused):
            qkv = F.linear(x, weight, bias).view(x.shape[0], 3, self.heads, -1)
            # [l, 3, H, D] per sequence -> three [1, H, l, D] views; no copy before the kernel
            rows = [
                F.scaled_dot_product_attention(*part.permute(1, 2, 0, 3)[:, None].unbind(0))[0].transpose(0, 1)
                for part in qkv.split(lengths)
            ]
            x = layer.attention.output(torch.cat(rows).flatten(1), x)
            x = layer.output(layer.intermediate(x), x)
        counts = torch.tensor(lengths)
        owners = torch.repeat_interleave(torch.arange(len(lengths)), counts)
        total = torch.zeros(len(lengths), x.shape[1], dtype=x.dtype).index_add_(0, owners, x)
        return F.normalize(total / counts[:, None], dim=1)


def in_order(embed: Embed, batches: Sequence[Batch]) -> Callable[[], Tensor]:
    """Embed batch after batch: `[N, C]` in the order of the batches."""

    def run() -> Tensor:
        with torch.inference_mode():
            return torch.cat([embed(batch) for batch in batches])

    return run


def restored(embed: Embed, batches: Sequence[Batch], order: Sequence[int]) -> Callable[[], Tensor]:
    """Embed batches whose rows were sorted by `order` and put the rows back in the caller's order."""
    places = torch.tensor(order)

    def run() -> Tensor:
        with torch.inference_mode():
            rows = torch.cat([embed(batch) for batch in batches])
            return torch.empty_like(rows).index_copy_(0, places, rows)

    return run


def useful_flops(lengths: Sequence[int], config: Any) -> float:
    """Floating-point operations on real tokens in the matrix products of a BERT encoder; multiply and add count apart.

    Element-wise work (GELU, LayerNorm, softmax, embeddings) is not counted, so a share of the sgemm roof is on the
    careful side.
    """
    c, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens, pairs = sum(lengths), sum(n * n for n in lengths)
    return float(layers * (2 * tokens * (4 * c * c + 2 * c * f) + 4 * c * pairs))
