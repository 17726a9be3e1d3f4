# SPDX-License-Identifier: Apache-2.0
"""The error budget: a result may be at most twice as wrong as plain torch in the same dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Errors:
    """Largest and root-mean-square distances from the exact result."""

    largest: float
    rms: float


def errors(got: Tensor, exact: Tensor) -> Errors:
    """Distances of `got` from float64 `exact`; infinities must stand in the same places."""
    finite = exact.isfinite()
    assert torch.equal(got.double()[~finite].nan_to_num(nan=0.5), exact[~finite].nan_to_num(nan=0.5)), (
        "infinities or NaN differ"
    )
    gap = (got.double() - exact)[finite].abs()
    if gap.numel() == 0:
        return Errors(0.0, 0.0)
    return Errors(float(gap.max()), float(gap.square().mean().sqrt()))


def noise_of(exact: Tensor, dtype: torch.dtype) -> float:
    """What rounding one addition in `dtype` costs at the size of `exact`, twice."""
    low = exact[exact.isfinite()].to(dtype)
    if dtype == torch.float64 and low.numel():  # `exact` is float64 too, off by a few roundings of its own
        return 16 * torch.finfo(dtype).eps * max(1.0, float(low.abs().max()))
    return float(2 * (low + 0.3 - 0.3 - low).abs().max()) if low.numel() else 0.0


def assert_within_budget(
    name: str, got: Tensor, peer: Tensor, exact: Tensor, factor: float = 2.0, noise: float = 0.0
) -> None:
    """Check a result against the exact one, with plain torch as the measure.

    Args:
        name: what is compared, for the message.
        got: the result under test.
        peer: plain torch in the same dtype on the same input.
        exact: float64.
        factor: how many times the peer's largest error is allowed.
        noise: allowed besides, where a sum is much smaller than its terms: `eps` times the sum of their sizes.
    """
    assert got.dtype == peer.dtype, f"{name}: dtype {got.dtype}, expected {peer.dtype}"
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    ours, theirs = errors(got, exact), errors(peer, exact)
    noise += noise_of(exact, got.dtype)
    ratio = ours.rms / theirs.rms if theirs.rms else float("inf") if ours.rms else 1.0
    assert ours.largest <= factor * theirs.largest + noise, (
        f"{name}: max error {ours.largest:.3g}, torch {theirs.largest:.3g}, noise {noise:.3g}, RMS ratio {ratio:.2f}"
    )
