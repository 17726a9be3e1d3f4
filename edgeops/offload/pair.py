# SPDX-License-Identifier: Apache-2.0
"""A weight's two projectors: what is compressed, what comes back, what is lost. LSP-Offload (AAAI 2025), section 3."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeops import _native
from edgeops.offload._reference import round_by_chance
from edgeops.offload.projector import DenseProjector, Projector, SparseProjector, projector_of

_ROWS = 256
_apply = _native.kernel("_subspace_apply", "subspace_apply")


@dataclass(frozen=True)
class Pair:
    """Projectors P `[m, p]` and Q `[n, q]` of a weight `[m, n]`.

    >>> from edgeops.offload import IdentityProjector
    >>> pair = Pair(IdentityProjector(2), IdentityProjector(3))
    >>> float(pair.bias(torch.ones(2, 3)))
    0.0
    """

    left: Projector
    right: Projector

    @property
    def shape(self) -> tuple[int, int]:
        """Of the subspace: `(p, q)`."""
        return self.left.width, self.right.width

    def compress(self, grad: Tensor) -> Tensor:
        """`P^T G Q`: `[m, n]` to `[p, q]`."""
        return self.right.project(self.left.project(grad).T).T

    def expand(self, subspace: Tensor) -> Tensor:
        """`P S Q^T`: `[p, q]` to `[m, n]`."""
        return self.right.expand(self.left.expand(subspace).T).T

    def grad(self, x: Tensor, dy: Tensor) -> Tensor:
        """`P^T (dy^T x) Q` of `y = x W^T`, without `dy^T x`: `x` `[T, n]`, `dy` `[T, m]`."""
        return self.left.project(dy.T) @ self.right.project(x.T).T

    def bias(self, grad: Tensor) -> Tensor:
        """The relative estimation bias `||P P^T G Q Q^T - G|| / ||G||` (definition 2), a scalar; 0 where G is 0."""
        lost = torch.linalg.vector_norm(self.expand(self.compress(grad)) - grad)
        whole = torch.linalg.vector_norm(grad)
        return torch.where(whole > 0, lost / whole, torch.zeros_like(lost))

    @functools.cached_property
    def scale(self) -> float:
        """What makes `P S Q^T` as large, element by element, as a white S: `sqrt(m n) / (||P|| ||Q||)`."""
        norms = self.left.norm() * self.right.norm()
        return math.sqrt(self.left.rows * self.right.rows) / norms if norms > 0 else 0.0

    def apply_(
        self, weight: Tensor, delta: Tensor, alpha: float, keep: float, seed: int | None = None, first: int = 0
    ) -> None:
        """`weight <- keep * weight + alpha * P delta Q^T` in place, of plain tensors.

        Args:
            weight: `[m, n]`, or some of its rows.
            delta: `[p, q]` in the compute type of the weight.
            alpha: a factor, negative to go down.
            keep: the weight's own factor (decoupled weight decay).
            seed: round a bfloat16 weight by chance, by this seed; otherwise to the nearest.
            first: the first of the rows.
        """
        count = weight.shape[0]
        if count == 0:
            return
        torch.autograd.graph.increment_version(weight)
        if isinstance(self.left, SparseProjector) and isinstance(self.right, SparseProjector):
            left, right = self.left, self.right
            _apply(
                weight,
                delta,
                left.index[first : first + count],
                left.value[first : first + count],
                right.index,
                right.value,
                alpha,
                keep,
                seed is not None,
                (seed or 0) ^ first,
            )
            return
        update = self.expand(delta)[first : first + count]
        for i in range(0, count, _ROWS):  # by parts: rounding takes several times the memory
            rows = weight[i : i + _ROWS]
            wide = (rows.to(update.dtype) * keep).add_(update[i : i + _ROWS], alpha=alpha)
            rows.copy_(wide if seed is None else round_by_chance(wide, seed, first + i))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Pair:
        """Both projectors on another device or of another compute dtype; itself where nothing changes."""
        left, right = self.left.to(device, dtype), self.right.to(device, dtype)
        return self if left is self.left and right is self.right else Pair(left, right)

    def nbytes(self) -> int:
        """Bytes of both."""
        return self.left.nbytes() + self.right.nbytes()

    def state(self) -> dict[str, Any]:
        """What `Pair.of` makes it of again."""
        return {"left": self.left.state(), "right": self.right.state()}

    @staticmethod
    def of(state: dict[str, Any]) -> Pair:
        """The pair of a `state()`."""
        return Pair(projector_of(state["left"]), projector_of(state["right"]))


def svd_pair(grad: Tensor, width: tuple[int, int]) -> Pair:
    """The pair of a gradient's leading singular vectors, `width` of them on each side (GaLore's projection, twice)."""
    u, _, vt = torch.linalg.svd(grad.to(torch.float64), full_matrices=False)
    return Pair(
        DenseProjector(u[:, : width[0]].to(grad.dtype).contiguous()),
        DenseProjector(vt[: width[1]].T.to(grad.dtype).contiguous()),
    )


def rows_pair(grad: Tensor, width: tuple[int, int]) -> Pair:
    """The pair that selects the rows and the columns of the largest norms (GRASS)."""
    rows = grad.norm(dim=1).topk(width[0]).indices.cpu()
    columns = grad.norm(dim=0).topk(width[1]).indices.cpu()
    return Pair(
        SparseProjector.select(grad.shape[0], rows, dtype=grad.dtype),
        SparseProjector.select(grad.shape[1], columns, dtype=grad.dtype),
    )
