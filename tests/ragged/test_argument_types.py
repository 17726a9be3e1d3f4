# SPDX-License-Identifier: Apache-2.0
"""Arguments that are no tensors, tensors of no dimension, tensors without data: told in a message that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from edgeops.ragged import RaggedLayout, add_layer_norm, bias_gelu, pack, ragged_attention, ragged_pool, unpack
from tests.peers import offsets_of

ops = torch.ops.edgeops
CU = offsets_of([2, 4])
Q = torch.zeros(6, 2, 4)
X, V = torch.zeros(6, 3), torch.zeros(3)
LAYOUT = RaggedLayout.from_lengths([2, 4])
ONE: Any = torch.tensor(1.0)

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "offsets as a list": (lambda: ragged_attention(Q, Q, Q, [0, 2, 6], CU, 4, 4), "cu_q|list"),  # type: ignore[arg-type]
    "offsets missing": (lambda: ragged_attention(Q, Q, Q, None, CU, 4, 4), "cu_q|None"),  # type: ignore[arg-type]
    "no values": (lambda: ragged_attention(Q, Q, None, CU, CU, 4, 4), "v must be a tensor; got None"),  # type: ignore[arg-type]
    "no rows to pool": (lambda: ragged_pool(None, CU), "x must be a tensor; got None"),  # type: ignore[arg-type]
    "no bias": (lambda: bias_gelu(X, None), "bias must be a tensor|NoneType"),  # type: ignore[arg-type]
    "no residual": (lambda: add_layer_norm(X, None, V, V), "residual must be a tensor; got None"),  # type: ignore[arg-type]
    "no padded": (lambda: ops.ragged_pack(None, CU, 6), "padded must be a tensor; got None"),
    "no packed": (lambda: ops.ragged_unpack(None, CU, 4), "values must be a tensor; got None"),
    "pool offsets as a list": (lambda: ragged_pool(X, [0, 2, 6]), "offsets|list"),  # type: ignore[arg-type]
    "scale as text": (lambda: ragged_attention(Q, Q, Q, CU, CU, 4, 4, scale="x"), "scale|str"),  # type: ignore[arg-type]
    "window of text": (lambda: ragged_attention(Q, Q, Q, CU, CU, 4, 4, window="ab"), "window|str"),  # type: ignore[arg-type]
    "window of floats": (lambda: ragged_attention(Q, Q, Q, CU, CU, 4, 4, window=(1.5, 2)), "window|float"),  # type: ignore[arg-type]
    "scalar queries": (lambda: ragged_attention(ONE, ONE, ONE, CU, CU, 4, 4), r"q, k and v must have shapes"),
    "scalar rows": (lambda: ragged_pool(ONE, CU), r"x must have shape \[T, C\]"),
    "scalar gelu": (lambda: bias_gelu(ONE, ONE), r"x must have shape \[T, C\]"),
    "scalar norm": (lambda: add_layer_norm(ONE, ONE, ONE, ONE), r"x must have shape \[T, C\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused_with_a_message(name: str) -> None:
    call, text = WRONG[name]
    with pytest.raises((TypeError, ValueError, RuntimeError), match=text):
        call()


def test_padding_value_that_the_dtype_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"unpack: padding_value must be a whole number from 0 to 255 .* got -1"):
        unpack(torch.ones(6, dtype=torch.uint8), LAYOUT, padding_value=-1)
    with pytest.raises(ValueError, match=r"padding_value must be a whole number .* got 0.5"):
        unpack(torch.ones(6, dtype=torch.int64), LAYOUT, padding_value=0.5)
    with pytest.raises(ValueError, match=r"padding_value must be a whole number from 0 to 1"):
        unpack(torch.ones(6, dtype=torch.bool), LAYOUT, padding_value=2)


def test_meta_tensors_give_shapes() -> None:
    """Without data there are shapes, as for torch's own functions."""
    q, cu = Q.to("meta"), CU.to("meta")
    assert ragged_attention(q, q, q[..., :3], cu, cu, 4, 4).shape == (6, 2, 3)
    assert ragged_pool(X.to("meta"), cu).shape == (2, 3)
    assert bias_gelu(X.to("meta"), V.to("meta")).shape == (6, 3)
    assert add_layer_norm(*[X.to("meta")] * 2, *[V.to("meta")] * 2).shape == (6, 3)
    assert pack(torch.zeros(2, 4, 3, device="meta"), LAYOUT.to("meta")).shape == (6, 3)
    assert unpack(X.to("meta"), LAYOUT.to("meta")).shape == (2, 4, 3)


def test_inference_mode() -> None:
    with torch.inference_mode():
        out = ragged_attention(Q, Q, Q, CU, CU, 4, 4)
        assert out.is_inference()
        assert torch.equal(unpack(pack(unpack(X, LAYOUT), LAYOUT), LAYOUT), unpack(X, LAYOUT))


@pytest.mark.filterwarnings("ignore:.*is_fx_tracing.*")
def test_bits_that_say_negate_or_conjugate_are_obeyed() -> None:
    z = torch.randn(6, 3, dtype=torch.complex64)
    negative = z.conj().imag
    assert negative.is_neg()
    assert torch.equal(ragged_pool(negative, CU), ragged_pool(-z.imag, CU))
    assert torch.equal(unpack(z.conj(), LAYOUT), unpack(z.conj().resolve_conj(), LAYOUT))
    assert torch.equal(unpack(negative, LAYOUT), unpack(-z.imag, LAYOUT))
