# SPDX-License-Identifier: Apache-2.0
"""Projectors between a weight's rows and a subspace, behind one interface. LSP-Offload (AAAI 2025), section 3."""

from __future__ import annotations

import abc
import math
from typing import Any

import torch
from torch import Tensor

from edgeops._common import describe, message
from edgeops.offload.subspace import subspace_expand, subspace_project

VALUES = ("gaussian", "sign")
_SHORT = 2**15


class Projector(abc.ABC):
    """P `[m, d]`: what one side of a weight is projected with.

    Attributes:
        rows: m, the weight's rows (or columns).
        width: d, the subspace's.
    """

    rows: int
    width: int

    @abc.abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """`P^T x`: `[m, N]` to `[d, N]`."""

    @abc.abstractmethod
    def expand(self, y: Tensor) -> Tensor:
        """`P y`: `[d, N]` to `[m, N]`."""

    @abc.abstractmethod
    def dense(self) -> Tensor:
        """P itself, `[m, d]`."""

    @abc.abstractmethod
    def norm(self) -> float:
        """The Frobenius norm of P."""

    @abc.abstractmethod
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Projector:
        """The projector on another device, or of another compute dtype (float32, float64); itself where that is so."""

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """Tensors and numbers that `projector_of` makes it of again."""

    def nbytes(self) -> int:
        """Bytes that it keeps on its device."""
        return sum(x.numel() * x.element_size() for x in self.state().values() if isinstance(x, Tensor))


class IdentityProjector(Projector):
    """P = I: the side is left as it is.

    >>> IdentityProjector(3).project(torch.ones(3, 2)).shape
    torch.Size([3, 2])
    """

    def __init__(self, rows: int) -> None:
        self.rows = self.width = rows

    def project(self, x: Tensor) -> Tensor:
        return x

    def expand(self, y: Tensor) -> Tensor:
        return y

    def dense(self) -> Tensor:
        return torch.eye(self.rows)

    def norm(self) -> float:
        return math.sqrt(self.rows)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> IdentityProjector:
        return self

    def state(self) -> dict[str, Any]:
        return {"kind": "identity", "rows": self.rows}


class DenseProjector(Projector):
    """P as a dense matrix, as of a singular value decomposition (GaLore).

    Args:
        basis: `[m, d]` float32 or float64.
    """

    def __init__(self, basis: Tensor) -> None:
        self.basis = basis
        self.rows, self.width = basis.shape

    def project(self, x: Tensor) -> Tensor:
        return self.basis.T.to(x.dtype) @ x

    def expand(self, y: Tensor) -> Tensor:
        return self.basis.to(y.dtype) @ y

    def dense(self) -> Tensor:
        return self.basis

    def norm(self) -> float:
        return float(self.basis.norm())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DenseProjector:
        basis = self.basis.to(device, dtype or self.basis.dtype)
        return self if basis is self.basis else DenseProjector(basis)

    def state(self) -> dict[str, Any]:
        return {"kind": "dense", "basis": self.basis}


class SparseProjector(Projector):
    """A (d, r)-sparse P: exactly r entries a row. LSP-Offload, definition 1.

    Args:
        index: int16 or int32 `[m, r]`, columns of the entries in [0, width).
        value: `[m, r]` float32 or float64.
        width: d.
        skip_zeros: leave entries of value 0 out of the column lists (row selection).

    Raises:
        TypeError, ValueError: dtypes or shapes that do not fit, or a column outside the matrix.
    """

    def __init__(self, index: Tensor, value: Tensor, width: int, *, skip_zeros: bool = False) -> None:
        who = "SparseProjector"
        if index.dtype not in (torch.int16, torch.int32):
            raise TypeError(message(who, "index must be int16 or int32", describe(index), "Cast it with .int()."))
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(message(who, "value must be float32 or float64", describe(value), "Cast it with .float()."))
        if index.dim() != 2 or index.shape != value.shape or index.numel() == 0:
            got = f"{describe(index)} and {describe(value)}"
            raise ValueError(message(who, "index and value must have one shape [m, r]", got, "Pass one of each entry."))
        if int(index.min()) < 0 or int(index.max()) >= width:
            got = f"{int(index.min())} to {int(index.max())}"
            raise ValueError(message(who, f"index must lie in [0, {width})", got, "Pass columns of P."))
        self.index, self.value, self.width, self.skip_zeros = index.contiguous(), value.contiguous(), width, skip_zeros
        self.rows = index.shape[0]
        columns = self.index.reshape(-1).long()
        order = torch.argsort(columns, stable=True)
        if skip_zeros:
            order = order[self.value.reshape(-1)[order] != 0]
        counts = torch.bincount(columns[order], minlength=width)
        self.order = order.int()
        self.starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()

    @classmethod
    def draw(
        cls,
        rows: int,
        width: int,
        r: int,
        *,
        values: str = "gaussian",
        shrink: bool = True,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> SparseProjector:
        """A random projector: r distinct columns a row, values of variance 1 / r.

        Args:
            rows: m.
            width: d, at least r.
            r: entries a row.
            values: "gaussian", or "sign" for plus or minus `1 / sqrt(r)`.
            shrink: divide by `sqrt(1 + m / d + k)`, k = 2 / r for Gaussian values and 0 for signs: an unlearned pair
                then loses nothing (relative error about 1, not 3 to 15), and learning starts from there.
            generator: of the CPU; torch's default otherwise.
            dtype: float32 or float64.

        Raises:
            ValueError: r > d, sizes below 1, or unknown values.

        >>> SparseProjector.draw(8, 4, 2).dense().count_nonzero(dim=1).tolist()
        [2, 2, 2, 2, 2, 2, 2, 2]
        """
        who = "SparseProjector.draw"
        if min(rows, width, r) < 1 or r > width:
            got = f"rows {rows}, d {width}, r {r}"
            raise ValueError(message(who, "needs rows >= 1 and 1 <= r <= d", got, "Choose a smaller r or a larger d."))
        if values not in VALUES:
            raise ValueError(message(who, f"values must be one of {', '.join(VALUES)}", repr(values), "Choose one."))
        places = [  # in parts: the scores are [rows, width]
            torch.rand(min(4096, rows - i), width, generator=generator).topk(r, dim=1).indices
            for i in range(0, rows, 4096)
        ]
        index = torch.cat(places).to(torch.int16 if width <= _SHORT else torch.int32)
        noise = torch.randn(rows, r, generator=generator, dtype=dtype)
        value = (noise if values == "gaussian" else torch.where(noise >= 0, 1.0, -1.0).to(dtype)) / math.sqrt(r)
        if shrink:
            value /= math.sqrt(1 + rows / width + (2 / r if values == "gaussian" else 0))
        return cls(index, value, width)

    @classmethod
    def select(cls, rows: int, chosen: Tensor, *, dtype: torch.dtype = torch.float32) -> SparseProjector:
        """Row selection (GRASS): column c is the unit vector of row `chosen[c]`; other rows are not projected.

        Args:
            rows: m.
            chosen: integers `[d]` in [0, m), distinct.
            dtype: float32 or float64.

        >>> SparseProjector.select(3, torch.tensor([2])).project(torch.tensor([[1.0], [2.0], [3.0]]))
        tensor([[3.]])
        """
        width = chosen.numel()
        index = torch.zeros(rows, 1, dtype=torch.int16 if width <= _SHORT else torch.int32)
        value = torch.zeros(rows, 1, dtype=dtype)
        index[chosen, 0] = torch.arange(width, dtype=index.dtype)
        value[chosen, 0] = 1
        return cls(index, value, width, skip_zeros=True)

    @property
    def r(self) -> int:
        """Entries a row."""
        return self.index.shape[1]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`index, value, starts, order`, as `subspace_project` and `subspace_expand` take them."""
        return self.index, self.value, self.starts, self.order

    def project(self, x: Tensor) -> Tensor:
        return subspace_project(x, *self.tensors())

    def expand(self, y: Tensor) -> Tensor:
        return subspace_expand(y, *self.tensors())

    def dense(self) -> Tensor:
        return self.value.new_zeros(self.rows, self.width).scatter_add(1, self.index.long(), self.value)

    def norm(self) -> float:
        return float(self.value.norm())

    def with_value(self, value: Tensor) -> SparseProjector:
        """The projector of the same places with other values; nothing is sorted again."""
        other = object.__new__(SparseProjector)
        other.__dict__.update(self.__dict__)
        other.value = value
        return other

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SparseProjector:
        value = self.value.to(device, dtype or self.value.dtype)
        if value is self.value:
            return self
        other = self.with_value(value)
        other.index, other.starts, other.order = (x.to(device) for x in (self.index, self.starts, self.order))
        return other

    def state(self) -> dict[str, Any]:
        return {
            "kind": "sparse", "index": self.index, "value": self.value, "width": self.width,
            "skip_zeros": self.skip_zeros,
        }  # fmt: skip


def projector_of(state: dict[str, Any]) -> Projector:
    """The projector of a `state()`.

    Raises:
        ValueError: a kind that is not known.

    >>> projector_of(IdentityProjector(4).state()).rows
    4
    """
    kind = state["kind"]
    if kind == "identity":
        return IdentityProjector(state["rows"])
    if kind == "dense":
        return DenseProjector(state["basis"])
    if kind == "sparse":
        return SparseProjector(state["index"], state["value"], state["width"], skip_zeros=state["skip_zeros"])
    raise ValueError(message("projector_of", "kind must be identity, dense or sparse", repr(kind), "Save it again."))
