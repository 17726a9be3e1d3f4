# SPDX-License-Identifier: Apache-2.0
"""Forward attention, native and twin, against padded SDPA in float64. Ragged spec, sections 12.4 and 14 (C3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeops.ragged import ragged_attention
from edgeops.ragged._reference import ragged_attention_fwd_reference
from tests.budget import assert_within_budget
from tests.peers import offsets_of, padded_attention

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LENGTHS = {
    "no sequences": [],
    "no rows": [0],
    "all empty": [0, 0, 0],
    "tiles": [0, 1, 15, 16, 17, 0, 18, 19, 36, 0],
    "primes": [37, 2, 61, 127],
    "giant among empty": [0, 0, 130, 0],
    "one tile of keys": [512, 3],
    "over one tile": [1, 513],
    "three tiles": [1100],
}


def twin(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    left, right = options.get("window", (-1, -1))
    scale = options.get("scale")
    scale = q.shape[2] ** -0.5 if scale is None else scale
    return ragged_attention_fwd_reference(
        q, k, v, cu_q, cu_k, options.get("bias"), scale, options.get("causal", False), left, right
    )


def native(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    longest = [int(c.diff().max()) if len(c) > 1 else 0 for c in (cu_q, cu_k)]
    return ragged_attention(q, k, v, cu_q, cu_k, *longest, return_lse=True, **options)


@pytest.fixture(params=[native, twin], ids=["native", "twin"])
def attend(request: pytest.FixtureRequest) -> Callable[..., tuple[Tensor, Tensor]]:
    return request.param


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def check(
    attend: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, **options: Any
) -> None:
    """Output and lse of `attend` within the budget that padded SDPA in the same dtype sets."""
    exact, exact_lse = padded_attention(*(x.double() for x in (q, k, v)), cu_q, cu_k, **options)
    # in float64 the peer adds up in the other direction, so that it shows what float64 can tell
    turn = (2,) if q.dtype == torch.float64 else ()
    peer, peer_lse = padded_attention(q.flip(turn), k.flip(turn), v, cu_q, cu_k, **options)
    out, lse = attend(q, k, v, cu_q, cu_k, **options)
    # a row of outputs is one chain of additions in key order, which makes it independent of the batch; torch adds long
    # rows in blocks, which rounds less: its RMS error is 2.2 times smaller at 1,100 keys
    factor = 4.0 if k.shape[0] > 512 else 2.0
    assert_within_budget("out", out, peer, exact, factor)
    wide = torch.promote_types(q.dtype, torch.float32)
    assert_within_budget("lse", lse, peer_lse.to(wide), exact_lse, factor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_lengths(attend: Callable[..., Any], lengths: list[int], dtype: torch.dtype) -> None:
    total = sum(lengths)
    q, k, v = (normal(total, 2, 16, dtype=dtype, seed=i) for i in range(3))
    check(attend, q, k, v, offsets_of(lengths), offsets_of(lengths))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim_v", [1, 20, 33, 64, 80, 256])
@pytest.mark.parametrize("dim", [1, 20, 32, 64, 80, 128, 256])
def test_head_sizes(dim: int, dim_v: int, dtype: torch.dtype) -> None:
    lengths = [0, 1, 7, 19]
    q, k, v = (normal(27, 2, d, dtype=dtype, seed=d) for d in (dim, dim, dim_v))
    check(native, q, k, v, offsets_of(lengths), offsets_of(lengths))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 1), (6, 2), (8, 8)])
def test_grouped_heads(attend: Callable[..., Any], heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    lengths = [5, 0, 17, 33]
    q = normal(55, heads, 20, dtype=dtype)
    k, v = normal(55, kv_heads, 20, dtype=dtype, seed=1), normal(55, kv_heads, 12, dtype=dtype, seed=2)
    check(attend, q, k, v, offsets_of(lengths), offsets_of(lengths), causal=True)


CROSS = ([0, 4, 9, 1, 30, 2, 0], [3, 0, 1, 40, 7, 600, 0])


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (0, 0), (3, -1), (2, 5), (-1, 40), (700, 700)])
@pytest.mark.parametrize("causal", [False, True])
def test_cross_lengths_causal_and_windows(attend: Callable[..., Any], causal: bool, window: tuple[int, int]) -> None:
    cu_q, cu_k = (offsets_of(n, torch.int32) for n in CROSS)
    q, k, v = normal(46, 4, 8), normal(651, 2, 8, seed=1), normal(651, 2, 10, seed=2)
    check(attend, q, k, v, cu_q, cu_k, causal=causal, window=window, scale=0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [(511, 0), (600, 2), (20, -1), (-1, 530)])
def test_windows_over_several_key_tiles(window: tuple[int, int], dtype: torch.dtype) -> None:
    cu = offsets_of([1100, 0, 40])
    q, k, v = (normal(1140, 1, 8, dtype=dtype, seed=i) for i in range(3))
    check(native, q, k, v, cu, cu, window=window)


@pytest.mark.parametrize("form", [(b, h, i, j) for b in (0, 1) for h in (0, 1) for i in (0, 1) for j in (0, 1)])
def test_bias_broadcasts(attend: Callable[..., Any], form: tuple[int, ...]) -> None:
    lengths = [5, 0, 19, 2]
    cu = offsets_of(lengths)
    q, k, v = (normal(26, 2, 8, seed=i) for i in range(3))
    bias = normal(*(n if wanted else 1 for n, wanted in zip((4, 2, 19, 19), form)), seed=3)
    check(attend, q, k, v, cu, cu, bias=bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("longest", [19, 24, 530])
def test_bias_forbids_pairs_and_whole_rows(attend: Callable[..., Any], longest: int, dtype: torch.dtype) -> None:
    lengths = [5, 0, min(longest, 19), 2] if longest < 100 else [5, 0, 520, 2]
    cu = offsets_of(lengths)
    q, k, v = (normal(sum(lengths), 2, 8, dtype=dtype, seed=i) for i in range(3))
    bias = normal(4, 1, longest, longest, seed=3).masked_fill(normal(4, 1, longest, longest, seed=4) > 0.5, -torch.inf)
    bias[:, :, 1] = -torch.inf
    bias[2] = -torch.inf
    bias = bias.to(dtype)
    check(attend, q, k, v, cu, cu, bias=bias)
    out, lse = attend(q, k, v, cu, cu, bias=bias)
    assert not out[5 : 5 + lengths[2]].any()
    assert (lse[5 : 5 + lengths[2]] == -torch.inf).all()


def test_bias_in_another_float_dtype() -> None:
    cu = offsets_of([5, 3])
    q, k, v = (normal(8, 2, 8, dtype=torch.bfloat16, seed=i) for i in range(3))
    bias = normal(1, 2, 5, 5, seed=3)
    check(native, q, k, v, cu, cu, bias=bias)
    check(native, q.float(), k.float(), v.float(), cu, cu, bias=bias.double())
    check(native, q.float(), k.float(), v.float(), cu, cu, bias=bias.half())


def _layouts(dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    total, heads, dim = 24, 3, 16
    fused = normal(total, 3, heads, dim, dtype=dtype)
    q, k, v = fused.unbind(1)
    buffer = torch.full((3, total + 9, heads + 2, dim + 5), torch.nan, dtype=dtype)
    buffer[:, 4:-5, 1:-1, 2:-3] = fused.transpose(0, 1)
    sliced = buffer[:, 4:-5, 1:-1, 2:-3]
    one = normal(1, 1, dim, dtype=dtype)
    return {
        "interleaved": (q, k, v),
        "heads first": tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)),  # type: ignore[dict-item]
        "channels first": tuple(x.transpose(0, 2).contiguous().transpose(0, 2) for x in (q, k, v)),  # type: ignore[dict-item]
        "out of a NaN buffer": tuple(sliced),  # type: ignore[dict-item]
        "every second": tuple(x.repeat_interleave(2, 2)[:, :, ::2] for x in (q, k, v)),  # type: ignore[dict-item]
        "reversed copy": tuple(x.flip(0).flip(0) for x in (q, k, v)),  # type: ignore[dict-item]
        "expanded": (q, one.expand(total, heads, dim), one.expand(total, heads, dim)),
        "expanded scalar": tuple(normal(1, 1, 1, dtype=dtype, seed=i).expand(total, heads, dim) for i in range(3)),  # type: ignore[dict-item]
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(_layouts(torch.float32)))
def test_layouts(name: str, dtype: torch.dtype) -> None:
    q, k, v = _layouts(dtype)[name]
    cu = offsets_of([7, 0, 17])
    options: dict[str, Any] = {"causal": True}
    check(native, q, k, v, cu, cu, **options)
    strided = native(q, k, v, cu, cu, **options)
    dense = native(q.contiguous(), k.contiguous(), v.contiguous(), cu, cu, **options)
    assert all(torch.equal(a, b) for a, b in zip(strided, dense)), "strides change the numbers"


def test_strided_offsets() -> None:
    q, k, v = (normal(9, 2, 8, seed=i) for i in range(3))
    cu = offsets_of([4, 0, 5])
    strided = torch.stack([cu, torch.full_like(cu, 77)], 1)[:, 0]
    assert not strided.is_contiguous()
    for a, b in zip(native(q, k, v, strided, strided), native(q, k, v, cu, cu)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("causal", [False, True])
def test_c3_absolute_error(causal: bool) -> None:
    """Unit-normal float32 input, up to 512 tokens: at most 2e-6 from float64."""
    lengths = [1, 2, 3, 5, 12, 16, 31, 64, 100, 256, 511, 512]
    cu = offsets_of(lengths)
    for dim in (32, 64):
        q, k, v = (normal(sum(lengths), 2, dim, seed=dim + i) for i in range(3))
        out, _ = native(q, k, v, cu, cu, causal=causal)
        exact, _ = padded_attention(q.double(), k.double(), v.double(), cu, cu, causal=causal)
        assert float((out - exact).abs().max()) <= 2e-6


def test_large_scores(attend: Callable[..., Any]) -> None:
    cu = offsets_of([40, 600])
    q, k, v = (normal(640, 1, 16, seed=i) for i in range(3))
    check(attend, 60 * q, 60 * k, v, cu, cu)


def test_large_bias(attend: Callable[..., Any]) -> None:
    cu = offsets_of([40, 600])
    q, k, v = (normal(640, 1, 16, seed=i) for i in range(3))
    check(attend, q, k, v, cu, cu, bias=normal(1, 1, 600, 600).mul(1e3))


@pytest.mark.parametrize("low", [-1e30, torch.finfo(torch.float32).min])
def test_rows_whose_bias_is_all_very_low(
    attend: Callable[..., Any], low: float, request: pytest.FixtureRequest
) -> None:
    """Masks made with `finfo.min`, as Hugging Face makes them, give an even mean where a row is masked as a whole."""
    cu = offsets_of([40, 600])
    q, k, v = (normal(640, 1, 16, seed=i) for i in range(3))
    check(attend, q, k, v, cu, cu, bias=torch.full((1, 1, 1, 1), low))


def test_lse_is_returned_only_on_request() -> None:
    q = normal(4, 2, 8)
    cu = offsets_of([4])
    assert isinstance(ragged_attention(q, q, q, cu, cu, 4, 4), Tensor)
    out, lse = ragged_attention(q, q, q, cu, cu, 4, 4, return_lse=True)
    assert (out.shape, lse.shape, lse.dtype) == ((4, 2, 8), (4, 2), torch.float32)
    half = ragged_attention(*[q.half()] * 3, cu, cu, 4, 4, return_lse=True)
    assert (half[0].dtype, half[1].dtype) == (torch.float16, torch.float32)


@pytest.mark.slow
def test_one_very_long_sequence() -> None:
    """33,000 tokens and two heads have more than 2^31 pairs; a few rows are compared, with a window and without."""
    total = 33_000
    q, k, v = (normal(total, 2, 8, seed=i) for i in range(3))
    cu = offsets_of([total, 3])
    q, k, v = (torch.cat([x, x[:3]]) for x in (q, k, v))
    local, _ = native(q, k, v, cu, cu, window=(64, 0))
    few = torch.tensor([0, 1, 500, 16_384, total - 1])
    cross = offsets_of([len(few), 0])
    for i in few.tolist():
        keys = slice(max(0, i - 64), i + 1)
        one, many = offsets_of([1]), offsets_of([keys.stop - keys.start])
        want, _ = padded_attention(q[i : i + 1].double(), k[keys].double(), v[keys].double(), one, many)
        torch.testing.assert_close(local[i : i + 1].double(), want, atol=2e-6, rtol=0)
    out, lse = native(q, k, v, cu, cu)
    want, want_lse = padded_attention(q[few].double(), k.double(), v.double(), cross, cu)
    torch.testing.assert_close(out[few].double(), want, atol=2e-6, rtol=0)
    torch.testing.assert_close(lse[few].double(), want_lse, atol=1e-5, rtol=0)
    again, _ = native(q[few], k, v, cross, cu)
    assert torch.equal(again, out[few]), "the rows depend on the other queries"
