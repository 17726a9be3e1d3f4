# SPDX-License-Identifier: Apache-2.0
"""Dropout of attention weights: the kernels follow the counter-based mask of the twins, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeops.ragged import ragged_attention
from edgeops.ragged._reference import ragged_attention_bwd_reference, ragged_attention_fwd_reference
from tests.peers import offsets_of

ops = torch.ops.edgeops
LENGTHS_Q, LENGTHS_K = [13, 0, 50, 1, 300], [13, 9, 50, 0, 530]
BIAS = {
    "none": None,
    "whole": (5, 4, 301, 532),
    "by head": (1, 4, 300, 530),
    "by key": (5, 1, 1, 530),
    "one": (1, 1, 1, 1),
}
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def call(dtype: torch.dtype, form: str, causal: bool, window: tuple[int, int], p: float) -> tuple[Any, ...]:
    """Arguments of the forward kernel op: grouped heads, head sizes that fill no vector, two key tiles."""
    cu_q, cu_k = offsets_of(LENGTHS_Q), offsets_of(LENGTHS_K)
    q = normal(int(cu_q[-1]), 4, 20, dtype=dtype)
    k, v = normal(int(cu_k[-1]), 2, 20, dtype=dtype, seed=1), normal(int(cu_k[-1]), 2, 33, dtype=dtype, seed=2)
    shape = BIAS[form]
    bias = None if shape is None else normal(*shape, dtype=dtype, seed=3)
    return q, k, v, cu_q, cu_k, bias, 0.2, causal, *window, p, torch.tensor(2**40 + 12345)


def exact(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("form", BIAS)
@pytest.mark.parametrize(("causal", "window"), [(False, (-1, -1)), (True, (-1, -1)), (False, (7, 20))])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_against_the_twins(dtype: torch.dtype, form: str, causal: bool, window: tuple[int, int], p: float) -> None:
    args = call(dtype, form, causal, window, p)
    out, lse = ops._ragged_attention_fwd(*args)
    want_out, want_lse = ragged_attention_fwd_reference(*exact(args))
    grad_out = normal(*out.shape, dtype=dtype, seed=4)
    grad_lse = normal(*lse.shape, dtype=lse.dtype, seed=5).masked_fill(lse == -torch.inf, 0.0)
    got = ops._ragged_attention_bwd(grad_out, grad_lse, *args[:3], out, lse, *args[3:])
    want = ragged_attention_bwd_reference(
        grad_out.double(), grad_lse.double(), *exact(args)[:3], want_out, want_lse, *exact(args)[3:]
    )
    for name, one, other in zip(("out", "dq", "dk", "dv", "dbias"), (out, *got), (want_out, *want), strict=True):
        assert one.shape == other.shape
        if one.numel():
            error = (one.double() - other).abs().max() / other.abs().max()
            assert error < TOLERANCE[dtype], f"{name}: {error:.1e}"


def test_seed_and_generator() -> None:
    q, cu = normal(40, 2, 8), offsets_of([30, 10])

    def run(generator: torch.Generator | None = None) -> Tensor:
        out: Tensor = ragged_attention(q, q, q, cu, cu, 30, 30, dropout_p=0.5, generator=generator)
        return out

    first, second = (run(torch.Generator().manual_seed(seed)) for seed in (7, 8))
    assert torch.equal(first, run(torch.Generator().manual_seed(7)))
    assert not torch.equal(first, second)
    state = torch.Generator().manual_seed(7)
    assert not torch.equal(run(state), run(state)), "a generator moves on"
    torch.manual_seed(3)
    default = run()
    torch.manual_seed(3)
    assert torch.equal(default, run())


@pytest.mark.parametrize("seed", [0, -(2**63), 2**63 - 1, -1])
def test_seed_as_a_number_and_as_a_tensor(seed: int) -> None:
    q, cu = normal(40, 2, 8), offsets_of([30, 10])

    def run(seed: int | Tensor) -> Tensor:
        out: Tensor = ragged_attention(q, q, q, cu, cu, 30, 30, dropout_p=0.5, seed=seed)
        return out

    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(run(seed), run(torch.tensor(seed)))
    assert torch.equal(state, torch.get_rng_state()), "a given seed draws nothing"
    assert not torch.equal(run(seed), run(7))
    want, _ = ragged_attention_fwd_reference(q, q, q, cu, cu, scale=8**-0.5, dropout_p=0.5, seed=seed)
    torch.testing.assert_close(run(seed), want)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"seed": 2**63}, "seed must fit int64"),
        ({"seed": torch.tensor([1])}, "seed must be a 0-dim int64 tensor on the device of q"),
        ({"seed": torch.tensor(1.0)}, "seed must be a 0-dim int64 tensor on the device of q"),
        ({"seed": torch.tensor(1, dtype=torch.int32)}, "seed must be a 0-dim int64 tensor on the device of q"),
        ({"seed": 1, "generator": torch.Generator()}, "takes a seed or a generator; got both"),
    ],
)
def test_seeds_that_are_none(options: dict[str, Any], rule: str) -> None:
    q, cu = normal(4, 1, 8), offsets_of([4])
    with pytest.raises(ValueError, match=f"ragged_attention: {rule}"):
        ragged_attention(q, q, q, cu, cu, 4, 4, dropout_p=0.5, **options)


def test_the_op_asks_for_a_seed() -> None:
    q, cu = normal(4, 1, 8), offsets_of([4])
    with pytest.raises(ValueError, match="ragged_attention: dropout needs a seed; got None"):
        ops.ragged_attention(q, q, q, cu, cu, 4, 4, dropout_p=0.5)
    with pytest.raises(ValueError, match="ragged_attention: dropout needs a seed; got None"):
        ragged_attention_fwd_reference(q, q, q, cu, cu, dropout_p=0.5)
    assert torch.equal(
        ops.ragged_attention(q, q, q, cu, cu, 4, 4), ops.ragged_attention(q, q, q, cu, cu, 4, 4, seed=None)
    )


@pytest.mark.parametrize(("randomness", "differ"), [("different", True), ("same", False)])
def test_vmap_draws_as_it_is_told(randomness: str, differ: bool) -> None:
    x, cu = normal(12, 2, 4).expand(3, 12, 2, 4).contiguous(), offsets_of([5, 7])

    def loss(x: Tensor) -> Tensor:
        out: Tensor = ragged_attention(x, x, x, cu, cu, 7, 7, dropout_p=0.5)
        return out.square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), randomness=randomness)(x)
    assert torch.equal(grads[0], grads[1]) != differ


def test_no_dropout_draws_no_number() -> None:
    q, cu = normal(4, 1, 8), offsets_of([4])
    torch.manual_seed(3)
    state = torch.get_rng_state()
    ragged_attention(q, q, q, cu, cu, 4, 4)
    assert torch.equal(state, torch.get_rng_state())


def test_mean_is_kept() -> None:
    q, cu = normal(64, 4, 8), offsets_of([64])
    plain = ragged_attention(q, q, q, cu, cu, 64, 64)
    runs = [
        ragged_attention(q, q, q, cu, cu, 64, 64, dropout_p=0.4, generator=torch.Generator().manual_seed(i))
        for i in range(400)
    ]
    stacked = torch.stack(runs)
    sigma = stacked.std(0) / len(runs) ** 0.5
    assert ((stacked.mean(0) - plain).abs() < 5.5 * sigma).all()


def test_gradcheck_with_a_fixed_seed() -> None:
    cu = offsets_of([3, 0, 4])
    leaves = [normal(7, 2, 3, seed=i).requires_grad_() for i in range(3)]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = ops.ragged_attention(q, k, v, cu, cu, 4, 4, dropout_p=0.4, seed=torch.tensor(11))
        return out

    assert torch.autograd.gradcheck(run, leaves)


def test_dropout_with_checkpointing_gives_the_same_gradients() -> None:
    x, cu = normal(12, 2, 4).requires_grad_(), offsets_of([5, 7])

    def run(x: Tensor) -> Tensor:
        out: Tensor = ragged_attention(x, x, x, cu, cu, 7, 7, dropout_p=0.5)
        return out

    torch.manual_seed(0)
    (plain,) = torch.autograd.grad(run(x).square().sum(), x)
    torch.manual_seed(0)
    kept = torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False)
    assert torch.equal(plain, torch.autograd.grad(kept.square().sum(), x)[0])


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_probability_out_of_range(p: float) -> None:
    q, cu = normal(4, 1, 8), offsets_of([4])
    with pytest.raises(ValueError, match=r"ragged_attention: dropout_p must be at least 0 and below 1; got"):
        ragged_attention(q, q, q, cu, cu, 4, 4, dropout_p=p)
