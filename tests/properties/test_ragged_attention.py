# SPDX-License-Identifier: Apache-2.0
"""Properties of ragged attention over random batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeops.ragged import ragged_attention
from edgeops.ragged._reference import ragged_attention_fwd_reference
from tests.budget import assert_within_budget
from tests.peers import offsets_of, padded_attention
from tests.strategies import FLOATS, AttentionInput, attention_inputs


def attend(x: AttentionInput) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = ragged_attention(
        x.q, x.k, x.v, x.cu_q, x.cu_k, *x.longest, return_lse=True, **x.options
    )
    return result


def rows_of(cu: Tensor, order: list[int]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.int64), *(torch.arange(int(cu[b]), int(cu[b + 1])) for b in order)])


def take(x: AttentionInput, order: list[int]) -> AttentionInput:
    """The batch of these sequences of x."""
    rows_q, rows_k = rows_of(x.cu_q, order), rows_of(x.cu_k, order)
    cu_q, cu_k = (offsets_of(c.long().diff()[order].tolist(), c.dtype) for c in (x.cu_q, x.cu_k))
    bias = x.bias[order] if x.bias is not None and x.bias.shape[0] > 1 else x.bias
    return AttentionInput(x.q[rows_q], x.k[rows_k], x.v[rows_k], cu_q, cu_k, x.causal, x.window, bias)


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
def test_permuting_sequences_permutes_results(data: Any, dtype: torch.dtype) -> None:
    """Bitwise; leaving some out and repeating others changes nothing either."""
    x = data.draw(attention_inputs(dtype, min_size=1))
    count = len(x.cu_q) - 1
    order = data.draw(st.lists(st.integers(0, count - 1), max_size=8))
    rows = rows_of(x.cu_q, order)
    for got, want in zip(attend(take(x, order)), attend(x)):
        assert torch.equal(got, want[rows])


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
def test_pad_then_mask_is_ragged(data: Any, dtype: torch.dtype) -> None:
    x = data.draw(attention_inputs(dtype))
    wide = [None if t is None else t.double() for t in (x.q, x.k, x.v, x.bias)]
    options = {"causal": x.causal, "window": x.window}
    exact, exact_lse = padded_attention(*wide[:3], x.cu_q, x.cu_k, bias=wide[3], **options)  # type: ignore[arg-type]
    turn = (2,) if dtype == torch.float64 else ()
    peer, peer_lse = padded_attention(x.q.flip(turn), x.k.flip(turn), x.v, x.cu_q, x.cu_k, bias=x.bias, **options)
    out, lse = attend(x)
    # tiny tensors: the peer may be right to the last bit by luck, so a rounding of the largest value is allowed
    noise = torch.finfo(dtype).eps * float(x.v.double().abs().max()) if x.v.numel() else 0.0
    assert_within_budget("out", out, peer, exact, 3.0, noise)
    noise = torch.finfo(lse.dtype).eps * 8
    assert_within_budget("lse", lse, peer_lse.to(lse.dtype), exact_lse, 3.0, noise)


@given(attention_inputs(torch.float64))
def test_native_is_the_twin(x: AttentionInput) -> None:
    scale = x.q.shape[2] ** -0.5
    want = ragged_attention_fwd_reference(x.q, x.k, x.v, x.cu_q, x.cu_k, x.bias, scale, x.causal, *x.window)
    torch.testing.assert_close(attend(x), want)


@given(attention_inputs(min_size=1, with_bias=False))
def test_a_batch_of_one_is_unbatched_sdpa(x: AttentionInput) -> None:
    one = take(x, [0])
    if len(one.k) == 0 or one.window != (-1, -1) or (one.causal and len(one.q) != len(one.k)):
        return
    heads_first = [t.double().transpose(0, 1) for t in (one.q, one.k, one.v)]
    want = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=one.causal, enable_gqa=True)
    torch.testing.assert_close(attend(one)[0].double(), want.transpose(0, 1), atol=2e-6, rtol=0)


@given(attention_inputs(with_bias=False))
def test_splitting_heads_is_consistent(x: AttentionInput) -> None:
    """Each key head with its group of query heads, alone."""
    group = x.q.shape[1] // x.k.shape[1]
    out, lse = attend(x)
    for h in range(x.k.shape[1]):
        mine, kv = slice(h * group, (h + 1) * group), slice(h, h + 1)
        part = AttentionInput(x.q[:, mine], x.k[:, kv], x.v[:, kv], x.cu_q, x.cu_k, x.causal, x.window, None)
        assert torch.equal(attend(part)[0], out[:, mine])
        assert torch.equal(attend(part)[1], lse[:, mine])


@given(attention_inputs(torch.float64, with_bias=False), st.integers(0, 40))
def test_keys_in_two_halves_merge_through_lse(x: AttentionInput, at: int) -> None:
    """Attention over all keys is the lse-weighted mean of attention over two halves: out and lse fit together."""
    lengths = x.cu_k.long().diff()
    first = torch.minimum(torch.tensor(at), lengths)
    position = torch.arange(len(x.k)) - x.cu_k[:-1].long().repeat_interleave(lengths)
    low = position < first.repeat_interleave(lengths)
    parts = []
    for keep, count in ((low, first), (~low, lengths - first)):
        cu = offsets_of(count.tolist())
        parts.append(attend(AttentionInput(x.q, x.k[keep], x.v[keep], x.cu_q, cu, False, (-1, -1), None)))
    out, lse = attend(AttentionInput(x.q, x.k, x.v, x.cu_q, x.cu_k, False, (-1, -1), None))
    weights = [torch.exp(part - lse.masked_fill(lse.isinf(), 0.0))[:, :, None] for _, part in parts]
    torch.testing.assert_close(weights[0] * parts[0][0] + weights[1] * parts[1][0], out)


@given(attention_inputs(min_size=2), st.data())
def test_nan_stays_in_its_sequence(x: AttentionInput, data: Any) -> None:
    b = data.draw(st.integers(0, len(x.cu_q) - 2))
    clean = attend(x)
    rows, keys = rows_of(x.cu_q, [b]), rows_of(x.cu_k, [b])
    for tensor, where in ((x.q, rows), (x.k, keys), (x.v, keys)):
        tensor[where] = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
    others = torch.ones(len(x.q), dtype=torch.bool)
    others[rows] = False
    for before, after in zip(clean, attend(x)):
        assert torch.equal(before[others], after[others])


@given(attention_inputs(), st.integers(1, 3))
def test_any_number_of_threads(x: AttentionInput, count: int) -> None:
    torch.set_num_threads(1)
    want = attend(x)
    torch.set_num_threads(count)
    for got, alone in zip(attend(x), want):
        assert torch.equal(got, alone)
