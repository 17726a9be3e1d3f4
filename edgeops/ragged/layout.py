# SPDX-License-Identifier: Apache-2.0
"""`RaggedLayout`: where each sequence of a packed batch begins, built once and shared by all layers and operators.

CoRa (MLSys 2022), sections 2 and 4: the raggedness pattern is known before the values are computed, so all index
data is one prefix sum of B + 1 integers, computed up front on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from edgeops._common import describe, message

_ADVICE_LENGTHS = "For lengths use RaggedLayout.from_lengths."


def offsets_from_lengths(lengths: Sequence[int] | Tensor) -> Tensor:
    """Exclusive prefix sums of sequence lengths.

    Args:
        lengths: N non-negative integers (a sequence or an integer tensor `[N]`).

    Returns:
        int64 `[N + 1]` on the CPU, beginning with 0.

    Raises:
        TypeError: lengths are not integers.
        ValueError: a length is negative, or lengths are not one-dimensional.

    >>> offsets_from_lengths([2, 0, 3])
    tensor([0, 2, 2, 5])
    """
    return torch.from_numpy(_offsets_array(lengths))


def _offsets_array(lengths: Sequence[int] | Tensor) -> np.ndarray:
    who = "offsets_from_lengths"
    array = lengths.detach().cpu().numpy() if isinstance(lengths, Tensor) else np.asarray(lengths)
    if array.size == 0:
        array = array.reshape(-1).astype(np.int64)
    if array.ndim != 1:
        raise ValueError(message(who, "lengths must be one-dimensional", describe(lengths), "Flatten them first."))
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(message(who, "lengths must be integers", describe(lengths), "Cast them to int64."))
    if array.size and array.min() < 0:
        worst = int(array.argmin())
        raise ValueError(
            message(
                who, "lengths must not be negative", f"{int(array[worst])} at {worst}", "Use 0 for empty sequences."
            )
        )
    offsets = np.zeros(array.size + 1, dtype=np.int64)
    np.cumsum(array, out=offsets[1:])
    return offsets


_T = TypeVar("_T")


class _once(Generic[_T]):
    """`functools.cached_property` without its lock, which the compiler cannot trace through up to Python 3.11."""

    def __init__(self, function: Callable[[Any], _T]) -> None:
        self.function = function
        self.name = function.__name__
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, instance: None, owner: Any) -> _once[_T]: ...
    @overload
    def __get__(self, instance: object, owner: Any) -> _T: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self.name] = self.function(instance)
        return value


class RaggedLayout:
    """Positions of N sequences packed one after another into `T` rows.

    Immutable. Build it once per batch with one of the `from_*` methods and hand it to every op and layer.

    >>> layout = RaggedLayout.from_lengths([2, 0, 3])
    >>> layout.offsets, layout.total, layout.max_len
    (tensor([0, 2, 2, 5]), 5, 3)
    >>> layout.positions
    tensor([0, 1, 0, 1, 2])
    """

    _array: np.ndarray
    device: torch.device
    num_sequences: int
    """Number of sequences N (empty ones count)."""
    total: int
    """Number of packed rows T."""
    max_len: int
    """Longest length; 0 without sequences."""
    indices: Tensor | None
    """Flat row (b * padded_len + column) of each token in the padded source, int64 `[T]`; `None` where every
    sequence stands left-aligned in its row."""
    padded_len: int
    """Number of columns L of the padded source or target."""

    def __init__(
        self,
        offsets: np.ndarray,
        *,
        device: torch.device | str | None = None,
        indices: Tensor | None = None,
        padded_len: int | None = None,
    ) -> None:
        """Private: use the `from_*` methods, which check their input."""
        offsets.flags.writeable = False
        longest = int(np.diff(offsets).max(initial=0))
        device = torch.device(device or "cpu")
        self.__dict__.update(
            _array=offsets,
            device=device,
            indices=indices,
            num_sequences=len(offsets) - 1,
            total=int(offsets[-1]),
            max_len=longest,
            padded_len=longest if padded_len is None else padded_len,
        )
        if device.type == "cpu":  # every op needs them, and a compiled graph should find them there
            self.__dict__["offsets"] = torch.from_numpy(offsets.copy())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            message("RaggedLayout", "is immutable", f"an assignment to '{name}'", "Build a new layout instead.")
        )

    @classmethod
    def from_lengths(cls, lengths: Sequence[int] | Tensor, device: torch.device | str | None = None) -> RaggedLayout:
        """From N non-negative lengths. The device is that of a tensor argument unless given."""
        if device is None and isinstance(lengths, Tensor):
            device = lengths.device
        return cls(_offsets_array(lengths), device=device)

    @classmethod
    def from_offsets(cls, offsets: Tensor, total: int | None = None) -> RaggedLayout:
        """From int32 or int64 offsets `[N + 1]` (`cu_seqlens`); `total`, if given, must be the last one.

        Raises:
            TypeError: not an integer tensor.
            ValueError: not one-dimensional, empty, not starting at 0, decreasing, or not ending at `total`.
        """
        who = "RaggedLayout.from_offsets"
        if not isinstance(offsets, Tensor) or offsets.dtype not in (torch.int32, torch.int64):
            raise TypeError(message(who, "offsets must be an int32 or int64 tensor", describe(offsets), "Cast them."))
        if offsets.ndim != 1 or offsets.numel() == 0:
            raise ValueError(message(who, "offsets must have shape [N + 1]", describe(offsets), _ADVICE_LENGTHS))
        array = offsets.detach().cpu().numpy().astype(np.int64)
        if array[0] != 0:
            raise ValueError(message(who, "offsets must start at 0", f"offsets[0] = {array[0]}", _ADVICE_LENGTHS))
        steps = np.diff(array)
        if steps.size and steps.min() < 0:
            b = int(np.argmax(steps < 0))
            raise ValueError(
                message(who, "offsets must not decrease", f"{array[b]} then {array[b + 1]} at {b}", _ADVICE_LENGTHS)
            )
        if total is not None and array[-1] != total:
            raise ValueError(
                message(who, f"offsets must end at the number of rows, {total}", str(array[-1]), _ADVICE_LENGTHS)
            )
        return cls(array, device=offsets.device)

    @classmethod
    def from_padding_mask(cls, mask: Tensor) -> RaggedLayout:
        """From a `[B, L]` mask in which True or nonzero marks a token (the Hugging Face convention).

        Left padding and holes are allowed: tokens keep their order. PyTorch's `src_key_padding_mask` marks padding
        instead: pass `~mask`.

        >>> RaggedLayout.from_padding_mask(torch.tensor([[1, 1, 0], [0, 1, 1]])).lengths
        (2, 2)
        """
        who = "RaggedLayout.from_padding_mask"
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            raise ValueError(message(who, "mask must have shape [B, L]", describe(mask), "Pass the 2-D padding mask."))
        if mask.is_floating_point() or mask.is_complex():
            raise TypeError(
                message(who, "mask must be boolean or integer, 1 = token", describe(mask), "Use mask > 0 or mask == 0.")
            )
        host = mask.detach().cpu().numpy() != 0
        counts = host.sum(1)
        offsets = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        padded_len = mask.shape[1]
        left_aligned = bool((host == (np.arange(padded_len)[None, :] < counts[:, None])).all())
        indices = None
        if not left_aligned:
            indices = torch.from_numpy(np.flatnonzero(host)).to(mask.device)
        return cls(offsets, device=mask.device, indices=indices, padded_len=padded_len)

    @classmethod
    def from_nested(cls, nested: Tensor) -> RaggedLayout:
        """From a `torch.nested` tensor of layout `torch.jagged` without holes."""
        who = "RaggedLayout.from_nested"
        if not (isinstance(nested, Tensor) and nested.is_nested and nested.layout == torch.jagged):
            raise TypeError(
                message(
                    who, "needs a torch.nested tensor with layout=torch.jagged", describe_nested(nested), "Convert it."
                )
            )
        jagged: Any = nested
        if jagged.lengths() is not None:
            raise ValueError(
                message(who, "nested tensors with holes (narrowed) are not supported", "lengths", "Call .contiguous().")
            )
        return cls.from_offsets(jagged.offsets())

    @_once
    def lengths(self) -> tuple[int, ...]:
        """The N sequence lengths, on the host."""
        return tuple(np.diff(self._array).tolist())

    @_once
    def sum_sq(self) -> int:
        """Sum of squared lengths: the number of (query, key) pairs of self-attention."""
        return int((np.diff(self._array) ** 2).sum())

    @_once
    def offsets(self) -> Tensor:
        """int64 `[N + 1]`, on `device`."""
        return torch.from_numpy(self._array.copy()).to(self.device)

    @_once
    def cu_seqlens(self) -> Tensor:
        """int32 `[N + 1]`, on `device`: the form of `varlen_attn` and FlashAttention."""
        if self.total > np.iinfo(np.int32).max:
            raise ValueError(
                message(
                    "RaggedLayout.cu_seqlens",
                    "int32 offsets hold up to 2^31 - 1 rows",
                    str(self.total),
                    "Use .offsets.",
                )
            )
        return torch.from_numpy(self._array.astype(np.int32)).to(self.device)

    @_once
    def sequence_ids(self) -> Tensor:
        """int64 `[T]`: which sequence a row belongs to."""
        ids = np.repeat(np.arange(self.num_sequences, dtype=np.int64), np.diff(self._array))
        return torch.from_numpy(ids).to(self.device)

    @_once
    def positions(self) -> Tensor:
        """int64 `[T]`: position of a row inside its sequence."""
        steps = np.arange(self.total, dtype=np.int64) - np.repeat(self._array[:-1], np.diff(self._array))
        return torch.from_numpy(steps).to(self.device)

    def key_padding_mask(self, length: int | None = None) -> Tensor:
        """bool `[N, length or padded_len]`, True = token, left-aligned or as in the mask this came from."""
        width = self.padded_len if length is None else length
        if width < self.max_len:
            raise ValueError(
                message(
                    "RaggedLayout.key_padding_mask", f"length must be at least {self.max_len}", str(width), "Raise it."
                )
            )
        if self.indices is not None and width == self.padded_len:
            flat = torch.zeros(self.num_sequences * width, dtype=torch.bool, device=self.device)
            flat[self.indices] = True
            return flat.view(self.num_sequences, width)
        lengths = torch.from_numpy(np.diff(self._array)).to(self.device)
        return torch.arange(width, device=self.device)[None, :] < lengths[:, None]

    def to(self, device: torch.device | str) -> RaggedLayout:
        """The same layout with its tensors on another device."""
        if torch.device(device) == self.device:
            return self
        indices = None if self.indices is None else self.indices.to(device)
        return RaggedLayout(self._array.copy(), device=device, indices=indices, padded_len=self.padded_len)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._array.copy(), str(self.device), self.indices, self.padded_len)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RaggedLayout):
            return NotImplemented
        same_indices = (self.indices is None) == (other.indices is None) and (
            self.indices is None or torch.equal(self.indices.cpu(), other.indices.cpu())  # type: ignore[union-attr]
        )
        return np.array_equal(self._array, other._array) and self.padded_len == other.padded_len and same_indices

    def __hash__(self) -> int:
        return hash((self._array.tobytes(), self.padded_len))

    def __repr__(self) -> str:
        return f"RaggedLayout({self.num_sequences} sequences, {self.total} rows, longest {self.max_len}, {self.device})"


def _rebuild(array: np.ndarray, device: str, indices: Tensor | None, padded_len: int) -> RaggedLayout:
    return RaggedLayout(array, device=device, indices=indices, padded_len=padded_len)


def describe_nested(value: object) -> str:
    """`describe`, for tensors that may be nested (whose shape cannot always be printed)."""
    if isinstance(value, Tensor) and value.is_nested:
        return f"a nested tensor of layout {value.layout}"
    return describe(value)
