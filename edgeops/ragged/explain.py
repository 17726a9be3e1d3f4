# SPDX-License-Identifier: Apache-2.0
"""`explain`: from a list of lengths, what padding costs and what to do about it. CoRa (MLSys 2022), section 7.4."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeops._common import describe, message
from edgeops.ragged._cost import CostModel
from edgeops.ragged.flops import (
    EncoderShape,
    Lengths,
    batches,
    dense_ops,
    ideal_ops,
    micro_batch_ops,
    packed_linear_ops,
)

__all__ = ["CostModel", "Explanation", "explain"]

WORTHWHILE = 1.10
"""Predicted speed-up below which nothing is recommended."""

_CLOSE = 1.02  # predictions this close count as equal; the simpler way wins


@dataclass(frozen=True)
class Explanation:
    """What `explain` found. Print it, or take the facts with `to_dict`.

    Attributes:
        num_sequences, num_tokens: of the whole list.
        shortest, mean, longest: length of a sequence, in tokens.
        batch_size: sequences per batch.
        micro_batch: size of the sorted micro-batches that was best.
        shape, num_layers: the encoder.
        padding_share: part of all positions that is padding when batches are padded in the order given, 0 to 1.
        flop_ratios: operations over those on real tokens, 1.0 = no waste, for "padded", "sorted" (the whole list
            sorted), "sorted micro-batches" (each batch sorted and cut), "packed linears" (with padded attention) and
            "packed".
        seconds: predicted for the whole list: "leave it", "sort" (the better of both ways) and "pack".
        choice: "leave it", "sort" or "pack".
        reason: why, in a sentence.
        measured: whether the rates behind `seconds` were measured on this machine.
    """

    num_sequences: int
    num_tokens: int
    shortest: int
    mean: float
    longest: int
    batch_size: int
    micro_batch: int
    shape: EncoderShape
    num_layers: int
    padding_share: float
    flop_ratios: dict[str, float]
    seconds: dict[str, float]
    choice: str
    reason: str
    measured: bool

    @property
    def speedup(self) -> dict[str, float]:
        """Predicted speed-up of each way over leaving it."""
        return {name: self.seconds["leave it"] / value for name, value in self.seconds.items()}

    def to_dict(self) -> dict[str, Any]:
        """All facts as plain JSON types."""
        return asdict(self) | {"speedup": self.speedup}

    def __str__(self) -> str:
        shape = self.shape
        lines = [
            f"{self.num_sequences:,} sequences, {self.num_tokens:,} tokens: "
            f"{self.shortest} to {self.longest} long, {self.mean:.1f} on average",
            f"{self.num_layers} layers, {shape.hidden_size} wide, {shape.num_heads} heads, FF {shape.ff_size}",
            f"padded in batches of {self.batch_size}: {self.padding_share:.1%} of all positions are padding",
            "",
            "operations over those on real tokens",
            *(f"  {name:<21}{ratio:6.2f}" for name, ratio in self.flop_ratios.items()),
            "",
            f"predicted speed-up over padding ({'rates measured here' if self.measured else 'typical rates'})",
            *(f"  {name:<21}{ratio:6.2f}" for name, ratio in self.speedup.items()),
            "",
            f"=> {self.choice}: {self.reason}",
        ]
        return "\n".join(lines)


def _read_file(path: Path) -> list[int]:
    try:
        return [int(line) for line in path.read_text().split()]
    except ValueError as error:
        advice = "Write one token count per line."
        raise ValueError(message("explain", f"{path.name} must hold integers only", str(error), advice)) from None


def _lengths(given: object) -> Lengths:
    """Any accepted form of lengths as int64 `[S]`."""
    if isinstance(given, (str, os.PathLike)):
        given = _read_file(Path(given))
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    if isinstance(given, Sequence) and len(given) and all(getattr(item, "ndim", 0) == 2 for item in given):
        return np.concatenate([_lengths(item) for item in given])
    array: NDArray[Any] = np.asarray(given)
    if array.ndim == 2:
        array = (array != 0).sum(1)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or not array.size):
        rule = "lengths must be integers [S], token masks [B, L], a list of such masks, or a file of integers"
        raise TypeError(message("explain", rule, describe(given), "Pass one token count per sequence."))
    if not array.size or array.min() < 0 or not array.any():
        rule = "needs at least one sequence with a token and no negative length"
        raise ValueError(message("explain", rule, f"{array.size} lengths", "Pass the lengths of your data."))
    return array.astype(np.int64)


def _sizes(model: object) -> tuple[EncoderShape, int]:
    """Layer sizes and number of layers of a model or a Hugging Face config."""
    if isinstance(model, nn.Module):
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder):
                return _layer_sizes(module.layers[0]), len(module.layers)
            if isinstance(module, nn.TransformerEncoderLayer):
                return _layer_sizes(module), 1
            config = getattr(module, "config", None)
            if hasattr(config, "num_hidden_layers"):
                return _sizes(config)
    names = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
    found = [getattr(model, name, None) for name in names]
    found[2] = found[2] or getattr(model, "hidden_dim", None)  # what DistilBERT calls it
    if not all(isinstance(value, int) for value in found):
        rule = f"model must be an nn.TransformerEncoder(Layer), or have a config with {', '.join(names)}"
        raise TypeError(message("explain", rule, describe(model)[:80], "Pass (EncoderShape(...), num_layers) instead."))
    hidden, heads, ff, layers = found
    return EncoderShape(hidden, heads, ff, getattr(model, "head_dim", None)), layers  # type: ignore[arg-type,return-value]


def _layer_sizes(layer: Any) -> EncoderShape:
    return EncoderShape(layer.self_attn.embed_dim, layer.self_attn.num_heads, layer.linear1.out_features)


def _advise(seconds: dict[str, float], padding: float, how_to_sort: str) -> tuple[str, str]:
    leave, sort, pack = seconds["leave it"], seconds["sort"], seconds["pack"]
    best = min(sort, pack)
    if leave / best < WORTHWHILE:
        return "leave it", (
            f"{padding:.1%} padding; the best alternative is predicted {leave / best:.2f}x, below {WORTHWHILE:.2f}x"
        )
    if sort <= pack * _CLOSE:
        return "sort", (
            f"{how_to_sort} is predicted {leave / sort:.2f}x faster than padding in order, "
            f"and packing ({leave / pack:.2f}x) would not add to it"
        )
    return "pack", (
        f"packed rows are predicted {leave / pack:.2f}x faster than padding in order and {sort / pack:.2f}x faster "
        f"than sorting; call edgeops.ragged.convert(model)"
    )


def explain(
    lengths: object,
    model: nn.Module | tuple[EncoderShape, int] | object | None = None,
    *,
    batch_size: int = 32,
    costs: CostModel | str | None = None,
) -> Explanation:
    """Predict what padding costs, and recommend to leave it, to sort, or to pack.

    Args:
        lengths: tokens per sequence in the order served: integers `[S]` (list, array, tensor), a file of integers, or
            token masks `[B, L]` with nonzero = token (one, or a list of them).
        model: the encoder, for its sizes: an `nn.Module` with an `nn.TransformerEncoder(Layer)` or a Hugging Face
            config, such a config, or `(EncoderShape, num_layers)`. By default six layers of the paper's size.
        batch_size: sequences per batch, at least 1.
        costs: rates of the machine. By default those of an AVX2 core; "measure" measures them now (about a second).

    Returns:
        An `Explanation`. Times and speed-ups in it are predictions.

    Raises:
        TypeError: lengths or model of another kind.
        ValueError: no token at all, a negative length, `batch_size` below 1, an unknown `costs`.

    Example:
        >>> explain([64] * 256).choice
        'leave it'
        >>> print(explain([12, 90, 35, 7] * 64))
        256 sequences, 9,216 tokens: 7 to 90 long, 36.0 on average
        6 layers, 512 wide, 8 heads, FF 2048
        padded in batches of 32: 60.0% of all positions are padding
        ...
        => pack: packed rows are predicted ...x faster than padding in order ...
    """
    array = _lengths(lengths)
    if model is None:
        shape, layers = EncoderShape(), 6
    elif isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], EncoderShape):
        shape, layers = model
    else:
        shape, layers = _sizes(model)
    if isinstance(costs, str) and costs != "measure":
        raise ValueError(message("explain", "costs must be a CostModel, None or 'measure'", repr(costs), "Pick one."))
    rates = CostModel.measured() if costs == "measure" else costs if isinstance(costs, CostModel) else CostModel()

    groups = list(batches(array, batch_size, drop_last=False))
    sorted_groups = list(batches(np.sort(array)[::-1], batch_size, drop_last=False))
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size < batch_size] or [1]

    def padded_seconds(parts: list[Lengths]) -> float:
        return sum(rates.padded_seconds(part, shape, layers) for part in parts)

    def cut(size: int) -> list[Lengths]:
        return [part for group in groups for part in batches(np.sort(group)[::-1], size, drop_last=False)]

    micro_seconds = {size: padded_seconds(cut(size)) for size in sizes}
    micro = min(micro_seconds, key=micro_seconds.__getitem__)
    whole = padded_seconds(sorted_groups)
    seconds = {
        "leave it": padded_seconds(groups),
        "sort": min(whole, micro_seconds[micro]),
        "pack": sum(rates.packed_seconds(group, shape, layers) for group in groups),
    }
    how = "sorting the whole list" if whole <= micro_seconds[micro] else f"sorting each batch into parts of {micro}"
    padding = 1.0 - float(array.sum()) / sum(len(group) * int(group.max()) for group in groups)
    choice, reason = _advise(seconds, padding, how)

    ideal = sum(ideal_ops(group, shape) for group in groups)
    ratios = {
        "padded": sum(dense_ops(group, shape) for group in groups) / ideal,
        "sorted": sum(dense_ops(group, shape) for group in sorted_groups) / ideal,
        "sorted micro-batches": sum(micro_batch_ops(group, micro, shape) for group in groups) / ideal,
        "packed linears": sum(packed_linear_ops(group, shape) for group in groups) / ideal,
        "packed": 1.0,
    }
    return Explanation(
        num_sequences=len(array),
        num_tokens=int(array.sum()),
        shortest=int(array.min()),
        mean=float(array.mean()),
        longest=int(array.max()),
        batch_size=batch_size,
        micro_batch=micro,
        shape=shape,
        num_layers=layers,
        padding_share=padding,
        flop_ratios=ratios,
        seconds=seconds,
        choice=choice,
        reason=reason,
        measured=costs == "measure",
    )
