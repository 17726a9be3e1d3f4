# SPDX-License-Identifier: Apache-2.0
"""`varlen_attn` with the argument list of `torch.nn.attention.varlen.varlen_attn`, on every device and dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeops._common import message
from edgeops.ragged.attention import ragged_attention

_WHO = "varlen_attn"


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Any:
    """Variable-length attention: the signature of PyTorch's `varlen_attn`, where PyTorch's own needs a recent GPU.

    Args:
        query: `[Tq, Hq, D]`; float32, float64, float16 or bfloat16 on the CPU.
        key: `[Tk, Hk, D]`.
        value: `[Tk, Hk, Dv]`.
        cu_seq_q: `[N + 1]` offsets of the queries.
        cu_seq_k: `[N + 1]` offsets of the keys.
        max_q: longest query sequence.
        max_k: longest key sequence.
        return_aux: an `AuxRequest` (anything with an attribute `lse`); with `lse=True` the lse is returned too.
        scale: `1 / sqrt(D)` by default.
        window_size: `(left, right)`; (-1, -1) full, (-1, 0) causal, (W, 0) causal sliding window.
        enable_gqa: allow `Hk < Hq`.
        seqused_k: `[N]` number of valid keys of each sequence, at most its length; without gradient for the rest.
        block_table: paged caches are not supported.
        num_splits: accepted; the CPU result never depends on the batch.

    Returns:
        `[Tq, Hq, Dv]`, and with `return_aux.lse` also lse `[Tq, Hq]`.

    Raises:
        ValueError: head counts, offsets or `seqused_k` that do not fit.
        NotImplementedError: `block_table` is given, or `cu_seq_k` is `None`.

    >>> q = torch.randn(4, 2, 8)
    >>> cu = torch.tensor([0, 1, 4], dtype=torch.int32)
    >>> varlen_attn(q, q, q, cu, cu, 3, 3, window_size=(-1, 0)).shape
    torch.Size([4, 2, 8])
    """
    if block_table is not None or cu_seq_k is None:
        raise NotImplementedError(
            message(
                _WHO, "paged key/value caches are not supported", "a block_table", "Gather the pages, pass cu_seq_k."
            )
        )
    if not enable_gqa and query.shape[1] != key.shape[1]:
        got = f"{query.shape[1]} and {key.shape[1]}"
        raise ValueError(message(_WHO, "query and key must have the same number of heads", got, "Set enable_gqa=True."))
    if seqused_k is not None:
        key, value, cu_seq_k = _drop_unused(key, value, cu_seq_k, seqused_k)
    lse = bool(getattr(return_aux, "lse", False))
    return ragged_attention(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window=window_size, return_lse=lse
    )


def _drop_unused(key: Tensor, value: Tensor, cu_k: Tensor, used: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values cut to the first `used[b]` rows of each sequence."""
    lengths = cu_k.diff()
    if used.shape != lengths.shape or bool(((used < 0) | (used > lengths)).any()):
        rule = "seqused_k must have shape [N] and lie between 0 and the lengths of cu_seq_k"
        raise ValueError(message(_WHO, rule, str(used.tolist()), "Count the valid keys of each sequence."))
    position = torch.arange(key.shape[0], device=key.device)
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=key.device), lengths.long())
    keep = position - cu_k[:-1].long()[sequence] < used.long()[sequence]
    offsets = torch.zeros_like(cu_k)
    offsets[1:] = used.cumsum(0)
    return key[keep], value[keep], offsets
