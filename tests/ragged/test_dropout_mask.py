# SPDX-License-Identifier: Apache-2.0
"""The dropout mask of ragged attention: a function of (seed, sequence, head, query, key), the same on every device."""

from __future__ import annotations

import pytest
import torch

from edgeops.ragged._reference import (
    dropout_keep_reference,
    ragged_attention_bwd_reference,
    ragged_attention_fwd_reference,
)

WORD = 0xFFFFFFFF
KNOWN = ["1000100001011001", "0001010110011010"]


def _mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & WORD
    x ^= x >> 15
    x = x * 0x846CA68B & WORD
    return x ^ x >> 16


def _keep(seed: int, p: float, b: int, h: int, i: int, j: int) -> bool:
    """The definition again, on Python's integers."""
    state = _mix((seed & WORD) + 0x9E3779B9 * b & WORD)
    state = _mix(state ^ (seed >> 32 & WORD) ^ (0x85EBCA6B * h & WORD))
    state = _mix(state + 0xC2B2AE35 * i & WORD)
    return _mix(state ^ (0x27D4EB2F * j & WORD)) >= int(p * 2**32)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 5, 2**63 - 1, -1, -(2**63)])
def test_mask_follows_its_definition(seed: int) -> None:
    keep = dropout_keep_reference(seed, 0.3, 7, 2, 3, 5)
    want = [[[_keep(seed, 0.3, 7, h, i, j) for j in range(5)] for i in range(3)] for h in range(2)]
    assert keep.tolist() == want


def test_known_words() -> None:
    # fixed for all time: results of a training run must be repeatable with a later version
    rows = dropout_keep_reference(1234, 0.5, 0, 1, 2, 16)[0].to(torch.int64)
    assert ["".join(map(str, row)) for row in rows.tolist()] == KNOWN


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate(p: float) -> None:
    keep = dropout_keep_reference(3, p, 1, 8, 128, 128)
    sigma = (p * (1 - p) / keep.numel()) ** 0.5
    assert abs(1 - keep.double().mean().item() - p) < 5 * sigma
    # and so in every direction: no row, column or head is special
    for dims in ((1, 2), (0, 2), (0, 1)):
        rates = 1 - keep.double().mean(dims)
        assert (rates - p).abs().max() < 6 * (p * (1 - p) * len(rates) / keep.numel()) ** 0.5


def test_limits() -> None:
    assert dropout_keep_reference(0, 0.0, 0, 2, 4, 4).all()
    assert not dropout_keep_reference(0, 1.0, 0, 2, 4, 4).any()
    assert dropout_keep_reference(0, 0.5, 0, 2, 0, 4).shape == (2, 0, 4)


def test_neighbours_are_independent() -> None:
    keep = dropout_keep_reference(11, 0.5, 0, 4, 128, 128).double()
    others = [
        keep[:, 1:, :] * keep[:, :-1, :],
        keep[:, :, 1:] * keep[:, :, :-1],
        keep[1:] * keep[:-1],
        keep * dropout_keep_reference(12, 0.5, 0, 4, 128, 128),
        keep * dropout_keep_reference(11 + 2**32, 0.5, 0, 4, 128, 128),
        keep * dropout_keep_reference(11, 0.5, 1, 4, 128, 128),
    ]
    for both in others:
        assert abs(both.mean().item() - 0.25) < 5 * (0.25 * 0.75 / both.numel()) ** 0.5


def test_lengths_do_not_matter_and_seeds_do() -> None:
    large = dropout_keep_reference(5, 0.4, 2, 3, 9, 12)
    assert torch.equal(large, dropout_keep_reference(5, 0.4, 2, 3, 9, 12))
    assert torch.equal(large[:2, :4, :7], dropout_keep_reference(5, 0.4, 2, 2, 4, 7))
    for other in (6, 5 + 2**32, -5):
        assert not torch.equal(large, dropout_keep_reference(other, 0.4, 2, 3, 9, 12))
    # a larger p drops what a smaller one drops
    assert (dropout_keep_reference(5, 0.2, 2, 3, 9, 12) | ~large).all()


def _inputs(lengths: list[int]) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    total = sum(lengths)
    cu = torch.tensor([0, *lengths]).cumsum(0)
    return (*(torch.randn(total, 2, 4, dtype=torch.float64) for _ in range(3)), cu)


def test_masks_go_by_sequence_index() -> None:
    q, k, v, cu = _inputs([3, 5, 4])
    out, _ = ragged_attention_fwd_reference(q, k, v, cu, cu, dropout_p=0.5, seed=9)
    # another length of the first sequence changes nothing in the second
    cut = torch.tensor([0, 2, 7, 11])
    shorter, _ = ragged_attention_fwd_reference(q[1:], k[1:], v[1:], cut, cut, dropout_p=0.5, seed=9)
    assert torch.equal(out[3:], shorter[2:])
    # at another index it meets another mask
    alone, _ = ragged_attention_fwd_reference(q[3:8], k[3:8], v[3:8], cut[:1].new_tensor([0, 5]),
                                              cut[:1].new_tensor([0, 5]), dropout_p=0.5, seed=9)  # fmt: skip
    assert not torch.equal(out[3:8], alone)


def test_lse_is_of_all_scores_and_all_dropped_gives_zero() -> None:
    q, k, v, cu = _inputs([3, 5])
    plain, lse = ragged_attention_fwd_reference(q, k, v, cu, cu)
    for p in (0.3, 1.0):
        out, dropped_lse = ragged_attention_fwd_reference(q, k, v, cu, cu, dropout_p=p, seed=1)
        assert torch.equal(lse, dropped_lse)
        assert not torch.equal(out, plain)
    assert not out.any()


@pytest.mark.parametrize("with_bias", [False, True])
def test_backward_is_the_gradient(with_bias: bool) -> None:
    q, k, v, cu = _inputs([3, 0, 4])
    bias = torch.randn(3, 1, 4, 4, dtype=torch.float64) if with_bias else None
    leaves = [x.requires_grad_() for x in (q, k, v, bias) if x is not None]
    out, lse = ragged_attention_fwd_reference(q, k, v, cu, cu, bias, 0.5, True, dropout_p=0.4, seed=21)
    grads = torch.randn_like(out), torch.randn_like(lse)
    want = torch.autograd.grad((out, lse), leaves, grads)
    with torch.no_grad():
        got = ragged_attention_bwd_reference(
            grads[0], grads[1], q, k, v, out, lse, cu, cu, bias, 0.5, True, dropout_p=0.4, seed=21
        )
    for w, g in zip(want, got, strict=False):
        torch.testing.assert_close(g, w)
