# SPDX-License-Identifier: Apache-2.0
"""Closed-form arithmetic and memory costs of a transformer encoder layer on padded and on ragged batches.

The formulas are those of CoRa (MLSys 2022, section 7.4 and appendix D): they reproduce the waste that the
paper counts, from a list of sequence lengths alone. A multiply-add counts as one operation, as in the paper; double
the figures to compare them with FLOP/s. `edgeops.ragged.explain` turns the same counts into a recommendation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeops._common import message

__all__ = [
    "BULK",
    "EncoderShape",
    "FlopRatios",
    "activation_bytes",
    "activation_ratio",
    "batches",
    "cora_ops",
    "dense_ops",
    "flop_ratios",
    "geometric_mean",
    "ideal_ops",
    "micro_batch_ops",
    "packed_linear_ops",
]

BULK = 64
"""Rows to which CoRa rounds up the packed total of a batch, and the tile of its attention kernels."""

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of one encoder layer; the defaults are the layer of the paper (512 wide, 8 heads of 64, FF 2048).

    Args:
        hidden_size: model width M, at least 1.
        num_heads: attention heads H, at least 1.
        ff_size: width of the feed-forward layer, at least 1.
        head_dim: size of one head D; `None` means `hidden_size // num_heads`.

    Example:
        >>> EncoderShape().linear_ops, EncoderShape().pair_ops
        (3156480, 1064)
    """

    hidden_size: int = 512
    num_heads: int = 8
    ff_size: int = 2048
    head_dim: int | None = None

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_heads", "ff_size"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(message("EncoderShape", f"{name} must be at least 1", str(value), "Pass real sizes."))
        if self.head_dim is None and self.hidden_size % self.num_heads:
            rule = "hidden_size must be a multiple of num_heads when head_dim is not given"
            raise ValueError(
                message("EncoderShape", rule, f"{self.hidden_size} and {self.num_heads}", "Pass head_dim.")
            )
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(message("EncoderShape", "head_dim must be at least 1", str(self.head_dim), "Correct it."))

    @property
    def attention_width(self) -> int:
        """All heads together, H * D."""
        return self.num_heads * (self.head_dim or self.hidden_size // self.num_heads)

    @property
    def linear_ops(self) -> int:
        """Operations of all position-wise parts, per token: projections, feed-forward, biases, two LayerNorms."""
        m, a, f = self.hidden_size, self.attention_width, self.ff_size
        return (3 * m * a + 3 * a) + (a * m + m) + 4 * m + (m * f + 2 * f) + (f * m + m) + 4 * m

    @property
    def pair_ops(self) -> int:
        """Operations of attention, per (query, key) pair over all heads: two products and the softmax."""
        return 2 * self.attention_width + 5 * self.num_heads


PAPER_LAYER = EncoderShape()


def _round_up(values: Lengths, multiple: int) -> Lengths:
    return -(-values // multiple) * multiple


def _array(lengths: ArrayLike) -> Lengths:
    array = np.asarray(lengths)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        got = f"shape {array.shape}, dtype {array.dtype}"
        raise TypeError(message("flops", "lengths must be a flat list of integers", got, "Pass one per sequence."))
    array = array.astype(np.int64)
    if array.size and array.min() < 0:
        raise ValueError(message("flops", "a length must not be negative", str(int(array.min())), "Pass lengths."))
    return array


def batches(
    lengths: ArrayLike, batch_size: int, *, max_batches: int | None = None, drop_last: bool = True
) -> Iterator[Lengths]:
    """Cut a list of lengths into consecutive batches, in the order given.

    Args:
        lengths: integers `[S]`, tokens per sequence.
        batch_size: sequences per batch, at least 1.
        max_batches: stop after this many; `None` for all.
        drop_last: leave out an incomplete last batch, as the paper's programs do.

    Example:
        >>> [b.tolist() for b in batches([3, 1, 2], 2, drop_last=False)]
        [[3, 1], [2]]
    """
    if batch_size < 1:
        raise ValueError(message("batches", "batch_size must be at least 1", str(batch_size), "Pass a real size."))
    array = _array(lengths)
    count = len(array) // batch_size if drop_last else -(-len(array) // batch_size)
    for i in range(count if max_batches is None else min(count, max_batches)):
        yield array[i * batch_size : (i + 1) * batch_size]


def dense_ops(lengths: ArrayLike, shape: EncoderShape = PAPER_LAYER) -> int:
    """Operations of one layer when the batch is padded to its longest sequence.

    >>> dense_ops([1, 2]) == 2 * dense_ops([2])
    True
    """
    array = _array(lengths)
    if not array.size:
        return 0
    longest = int(array.max())
    return len(array) * (shape.linear_ops * longest + shape.pair_ops * longest**2)


def ideal_ops(lengths: ArrayLike, shape: EncoderShape = PAPER_LAYER) -> int:
    """Operations of one layer on real tokens only.

    >>> ideal_ops([2, 2]) == dense_ops([2, 2])
    True
    """
    array = _array(lengths)
    return shape.linear_ops * int(array.sum()) + shape.pair_ops * int((array**2).sum())


def packed_linear_ops(lengths: ArrayLike, shape: EncoderShape = PAPER_LAYER) -> int:
    """Operations with position-wise parts on real tokens and attention still padded to the longest sequence.

    >>> ideal_ops([1, 2]) < packed_linear_ops([1, 2]) < dense_ops([1, 2])
    True
    """
    array = _array(lengths)
    if not array.size:
        return 0
    return shape.linear_ops * int(array.sum()) + shape.pair_ops * len(array) * int(array.max()) ** 2


def with_bulk_sequence(lengths: ArrayLike) -> Lengths:
    """The lengths plus the fake sequence with which CoRa fills the packed total up to a multiple of 64.

    A total that is a multiple already gets a full 64 more, as in the paper's programs.

    >>> with_bulk_sequence([60]).tolist(), with_bulk_sequence([64]).tolist()
    ([60, 4], [64, 64])
    """
    array = _array(lengths)
    return np.append(array, BULK - int(array.sum()) % BULK)


def cora_ops(lengths: ArrayLike, shape: EncoderShape = PAPER_LAYER) -> int:
    """Operations that the paper's schedules perform: real tokens plus its partial padding of tiles.

    >>> cora_ops([50, 60]) > ideal_ops([50, 60])
    True
    """
    p = with_bulk_sequence(lengths)
    rows64, cols32, cols16 = _round_up(p, 64), _round_up(p, 32), _round_up(p, 16)
    scores = shape.attention_width * int((rows64**2).sum())
    softmax = 5 * shape.num_heads * int((p * cols32).sum())
    values = shape.attention_width * int((cols16 * rows64).sum())
    return shape.linear_ops * int(p.sum()) + scores + softmax + values


def micro_batch_ops(lengths: ArrayLike, micro_batch: int = 8, shape: EncoderShape = PAPER_LAYER) -> int:
    """Operations when the batch is sorted by length and cut into padded micro-batches.

    >>> micro_batch_ops([1, 5, 1, 5], 2) == dense_ops([5, 5]) + dense_ops([1, 1])
    True
    """
    ordered = np.sort(_array(lengths))[::-1]
    return sum(dense_ops(part, shape) for part in batches(ordered, micro_batch, drop_last=False))


@dataclass(frozen=True)
class FlopRatios:
    """Operations over the operations on real tokens (1.0 = no waste), summed over batches.

    Attributes:
        padded: every batch padded to its longest sequence.
        sorted_micro_batches: sorted inside the batch, padded per micro-batch.
        packed_linear: position-wise parts packed, attention padded.
        cora: the paper's partially padded schedules.
    """

    padded: float
    sorted_micro_batches: float
    packed_linear: float
    cora: float


def flop_ratios(
    lengths: ArrayLike,
    batch_size: int = 32,
    *,
    shape: EncoderShape = PAPER_LAYER,
    micro_batch: int = 8,
    max_batches: int | None = None,
    drop_last: bool = True,
) -> FlopRatios:
    """Waste of each way to run an encoder layer over a list of lengths.

    Args:
        lengths: integers `[S]` in the order in which they are served.
        batch_size: sequences per batch.
        shape: sizes of the layer.
        micro_batch: sequences per micro-batch after sorting.
        max_batches: look at the first batches only.
        drop_last: leave out an incomplete last batch.

    Raises:
        ValueError: when not one batch with a token is left.

    Example:
        >>> flop_ratios([10, 20] * 16).padded > 1.3
        True
    """
    groups = list(batches(lengths, batch_size, max_batches=max_batches, drop_last=drop_last))
    ideal = sum(ideal_ops(b, shape) for b in groups)
    if not ideal:
        got = f"{np.size(lengths)} lengths and batch_size={batch_size}"
        advice = "Pass more lengths, a smaller batch_size, or drop_last=False."
        raise ValueError(message("flop_ratios", "needs at least one batch with a token", got, advice))
    return FlopRatios(
        padded=sum(dense_ops(b, shape) for b in groups) / ideal,
        sorted_micro_batches=sum(micro_batch_ops(b, micro_batch, shape) for b in groups) / ideal,
        packed_linear=sum(packed_linear_ops(b, shape) for b in groups) / ideal,
        cora=sum(cora_ops(b, shape) for b in groups) / ideal,
    )


def activation_bytes(
    lengths: ArrayLike,
    shape: EncoderShape = PAPER_LAYER,
    *,
    ragged: bool,
    store_scores: bool = True,
    itemsize: int = 4,
) -> int:
    """Bytes of forward activations of one layer for one batch (paper section 7.4, appendix D).

    Args:
        lengths: integers `[B]`.
        shape: sizes of the layer.
        ragged: packed storage (plus the bulk sequence) instead of padded storage, whose projections and attention
            rows are rounded up to 64 as in the paper's baseline.
        store_scores: keep the scores and the probabilities; `False` describes flash-style attention.
        itemsize: bytes per element.

    Example:
        >>> activation_bytes([64], ragged=False, store_scores=False)
        1703936
    """
    m, a = shape.hidden_size, shape.attention_width
    if ragged:
        p = with_bulk_sequence(lengths)
        rows = attention_rows = int(p.sum())
        pairs = int((p**2).sum())
    else:
        array = _array(lengths)
        longest = int(array.max()) if array.size else 0
        tiled = -(-longest // BULK) * BULK
        rows, attention_rows = len(array) * longest, len(array) * tiled
        pairs = len(array) * tiled**2
    elements = rows * (m + 4 * m + shape.ff_size) + attention_rows * 4 * a
    return itemsize * (elements + (2 * shape.num_heads * pairs if store_scores else 0))


def activation_ratio(
    lengths: ArrayLike,
    batch_size: int = 64,
    *,
    shape: EncoderShape = PAPER_LAYER,
    store_scores: bool = True,
    max_batches: int | None = None,
) -> float:
    """Peak ragged over peak padded activation memory, peaks taken over batches; below 1 means memory saved.

    Args:
        lengths: integers `[S]`.
        batch_size: sequences per batch.
        shape: sizes of the layer.
        store_scores: whether the ragged side keeps scores; the padded side always does, as in the paper.
        max_batches: look at the first batches only.

    Example:
        >>> activation_ratio([16, 128] * 32, store_scores=False) < 0.6
        True
    """
    groups = list(batches(lengths, batch_size, max_batches=max_batches))
    if not groups:
        got = f"{np.size(lengths)} lengths and batch_size={batch_size}"
        advice = "Pass more lengths or a smaller batch_size."
        raise ValueError(message("activation_ratio", "needs at least one full batch", got, advice))
    ragged = max(activation_bytes(b, shape, ragged=True, store_scores=store_scores) for b in groups)
    return ragged / max(activation_bytes(b, shape, ragged=False) for b in groups)


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean of positive ratios.

    >>> round(geometric_mean([1.0, 4.0]), 6)
    2.0
    """
    if not len(values):
        raise ValueError(message("geometric_mean", "needs at least one value", "none", "Pass the ratios to average."))
    return float(np.exp(np.mean(np.log(values))))
