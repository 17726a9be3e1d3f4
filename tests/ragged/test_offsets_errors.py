# SPDX-License-Identifier: Apache-2.0
"""Bad input to every op: a defined result or a four-part error, never a crash, never another sequence's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeops.ragged import ragged_attention, ragged_conv1d, ragged_instance_norm, ragged_pool, ragged_softmax
from tests.messages import refused
from tests.peers import offsets_of

DID_YOU = r"Did you pass lengths\? Use edgeops\.ragged\.offsets_from_lengths\."


def rows(total: int = 6, heads: int = 2, dim: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(total, heads, dim, generator=torch.Generator().manual_seed(total)).to(dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor | None = None, **options: Any) -> Any:
    return ragged_attention(q, k, v, cu_q, cu_q if cu_k is None else cu_k, 6, 6, **options)


def pack_op(cu: Tensor) -> Tensor:
    return torch.ops.edgeops.ragged_pack(torch.zeros(max(len(cu) - 1, 0) if cu.ndim else 0, 9, 2), cu, 6)


# op -> (who it is in messages, what it calls its offsets, a call that has 6 rows)
OPS: dict[str, tuple[str, str, Callable[[Tensor], Any]]] = {
    "attention, queries": (
        "ragged_attention",
        "cu_q",
        lambda cu: attend(rows(), rows(), rows(), cu, offsets_of([2, 4])),
    ),
    "attention, keys": ("ragged_attention", "cu_k", lambda cu: attend(rows(), rows(), rows(), offsets_of([2, 4]), cu)),
    "pool": ("ragged_pool", "offsets", lambda cu: ragged_pool(torch.zeros(6, 3), cu)),
    "conv": (
        "ragged_conv1d",
        "offsets",
        lambda cu: ragged_conv1d(torch.zeros(6, 3), cu, torch.zeros(2, 3, 3)),
    ),
    "norm": ("ragged_instance_norm", "offsets", lambda cu: ragged_instance_norm(torch.zeros(6, 3), cu)),
    "softmax": ("ragged_softmax", "offsets", lambda cu: ragged_softmax(torch.zeros(6, 3), cu)),
    "unpack": ("unpack", "offsets", lambda cu: torch.ops.edgeops.ragged_unpack(torch.zeros(6, 2), cu, 9)),
    "pack": ("pack", "offsets", pack_op),
}
BAD: dict[str, tuple[Any, type[Exception], str, str, str]] = {
    "decreasing": ([0, 4, 3, 6], ValueError, "must not decrease", "4 then 3 at position 1", DID_YOU),
    "negative step": ([0, -2, 6], ValueError, "must not decrease", "0 then -2 at position 0", DID_YOU),
    "overrunning": ([0, 2, 7], ValueError, "must end at the number of rows, 6", r"\[-1\] = 7", DID_YOU),
    "short": ([0, 2, 5], ValueError, "must end at the number of rows, 6", r"\[-1\] = 5", DID_YOU),
    "far beyond": ([0, 2, 2**62], ValueError, "must end at the number of rows, 6", str(2**62), DID_YOU),
    "lengths": ([2, 4], ValueError, "must start at 0", r"\[0\] = 2", DID_YOU),
    "not from 0": ([1, 6], ValueError, "must start at 0", r"\[0\] = 1", DID_YOU),
    "negative start": ([-1, 6], ValueError, "must start at 0", r"\[0\] = -1", DID_YOU),
    "float": ([0.0, 6.0], TypeError, "must be int32 or int64", "Float", r"Cast it with .*"),
    "int16": (
        torch.tensor([0, 6], dtype=torch.int16),
        TypeError,
        "must be int32 or int64",
        "Short",
        r"Cast it with .*",
    ),
    "bool": ([False, True], TypeError, "must be int32 or int64", "Bool", r"Cast it with .*"),
    "two dimensions": ([[0, 6]], ValueError, r"must have shape \[N \+ 1\]", r"shape \(1, 2\)", "For lengths use .*"),
    "scalar": (6, ValueError, r"must have shape \[N \+ 1\]", r"shape \(\)", "For lengths use .*"),
    "no element": (
        torch.zeros(0, dtype=torch.int64),
        ValueError,
        r"must have shape \[N \+ 1\]",
        r"shape \(0,\)",
        "For .*",
    ),
}


@pytest.mark.parametrize("op", list(OPS))
@pytest.mark.parametrize("bad", list(BAD))
def test_offsets(op: str, bad: str) -> None:
    (who, name, call), (values, kind, rule, got, advice) = OPS[op], BAD[bad]
    with refused(kind, who, rf"{name} {rule}", got, advice):
        call(torch.as_tensor(values))


@pytest.mark.parametrize("op", list(OPS))
def test_offsets_that_overrun_in_int32(op: str) -> None:
    who, name, call = OPS[op]
    with refused(ValueError, who, rf"{name} must end at the number of rows, 6", str(2**31 - 1), DID_YOU):
        call(torch.tensor([0, 2, 2**31 - 1], dtype=torch.int32))


def test_offsets_of_different_batches() -> None:
    with refused(ValueError, "ragged_attention", "cu_q and cu_k must describe the same number of sequences", "2 and 1"):
        attend(rows(), rows(), rows(), offsets_of([2, 4]), offsets_of([6]))


def test_padded_tensors_that_do_not_fit() -> None:
    with refused(ValueError, "pack", "offsets must describe 3 rows", "2 sequences"):
        torch.ops.edgeops.ragged_pack(torch.zeros(3, 9, 2), offsets_of([2, 4]), 6)
    with refused(ValueError, "pack", "sequences must fit the 3 columns", "length 4 at 1"):
        torch.ops.edgeops.ragged_pack(torch.zeros(2, 3, 2), offsets_of([2, 4]), 6)
    with refused(ValueError, "unpack", "sequences must fit the 3 columns", "length 4 at 1"):
        torch.ops.edgeops.ragged_unpack(torch.zeros(6, 2), offsets_of([2, 4]), 3)
    with refused(ValueError, "pack", r"padded must have shape \[B, L, \.\.\.\]", r"shape \(2,\)"):
        torch.ops.edgeops.ragged_pack(torch.zeros(2), offsets_of([2, 4]), 6)


@pytest.mark.parametrize("length", [-1, -(2**40)])
def test_negative_sizes(length: int) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        torch.ops.edgeops.ragged_unpack(torch.zeros(6, 2), offsets_of([2, 4]), length)
    with pytest.raises((RuntimeError, ValueError)):
        torch.ops.edgeops.ragged_pack(torch.zeros(2, 4, 2), offsets_of([2, 4]), length)


CU = offsets_of([2, 4])
Q = rows()
ATTENTION: dict[str, tuple[Callable[[], Any], type[Exception], str, str]] = {
    "integers": (lambda: attend(Q.long(), Q.long(), Q.long(), CU), TypeError, "q must be float32, float64", "Long"),
    "complex": (lambda: attend(*[Q.cfloat()] * 3, CU), TypeError, "q must be float32, float64", "ComplexFloat"),
    "dtypes": (lambda: attend(Q, Q.half(), Q, CU), TypeError, "q, k and v must have one dtype", "Float, Half, Float"),
    "two dimensions": (lambda: attend(Q[0], Q, Q, CU), ValueError, r"q, k and v must have shapes", r"shape \(2, 4\)"),
    "padded": (lambda: attend(*[Q[None]] * 3, CU), ValueError, r"q, k and v must have shapes", r"\(1, 6, 2, 4\)"),
    "rows of v": (lambda: attend(Q, Q, Q[:5], CU), ValueError, "k and v must have the same rows", r"\(5, 2, 4\)"),
    "heads of v": (lambda: attend(Q, Q, Q[:, :1], CU), ValueError, "k and v must have the same rows and heads", "1, 4"),
    "head sizes": (lambda: attend(Q, Q[..., :3], Q, CU), ValueError, "the same head size", "4 and 3"),
    "head counts": (
        lambda: attend(rows(heads=3), Q, Q, CU),
        ValueError,
        "must be a multiple of the heads of k",
        "3 and 2",
    ),
    "more key heads": (lambda: attend(Q, *[rows(heads=4)] * 2, CU), ValueError, "must be a multiple", "2 and 4"),
    "no key heads": (lambda: attend(Q, Q[:, :0], Q[:, :0], CU), ValueError, "must be a multiple", "2 and 0"),
    "window of one": (
        lambda: attend(Q, Q, Q, CU, window=(3,)),
        ValueError,
        r"window must be \(left, right\)",
        r"\(3,\)",
    ),
    "window of three": (lambda: attend(Q, Q, Q, CU, window=(1, 2, 3)), ValueError, "window must be", r"\(1, 2, 3\)"),
}


@pytest.mark.parametrize("case", list(ATTENTION))
def test_attention_arguments(case: str) -> None:
    call, kind, rule, got = ATTENTION[case]
    with refused(kind, "ragged_attention", rule, got):
        call()


@pytest.mark.parametrize(
    ("bias", "kind", "rule"),
    [
        (torch.zeros(2, 4, 4), ValueError, r"bias must have shape \[B\|1, Hq\|1, Mq\|1, Mk\|1\]"),
        (torch.zeros(3, 1, 4, 4), ValueError, r"bias must broadcast to \[2, 2, >=4, >=4\]"),
        (torch.zeros(1, 3, 4, 4), ValueError, r"bias must broadcast to \[2, 2, >=4, >=4\]"),
        (torch.zeros(1, 1, 3, 4), ValueError, r"bias must broadcast to \[2, 2, >=4, >=4\]"),
        (torch.zeros(1, 1, 4, 2), ValueError, r"bias must broadcast to \[2, 2, >=4, >=4\]"),
        (torch.zeros(0, 1, 4, 4), ValueError, r"bias must broadcast to \[2, 2, >=4, >=4\]"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.bool), TypeError, "bias must be a floating point tensor"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.int64), TypeError, "bias must be a floating point tensor"),
    ],
)
def test_bias(bias: Tensor, kind: type[Exception], rule: str) -> None:
    with refused(kind, "ragged_attention", rule):
        attend(Q, Q, Q, CU, bias=bias)


@pytest.mark.parametrize(
    "size",
    [
        10,
        2**31,
        2**62,
        2**63 - 1,
    ],
)
def test_windows_wider_than_any_sequence_are_no_window(size: int) -> None:
    assert torch.equal(attend(Q, Q, Q, CU, window=(size, size)), attend(Q, Q, Q, CU))


@pytest.mark.parametrize("size", [-5, -(2**63)])
def test_negative_windows_are_no_window(size: int) -> None:
    assert torch.equal(attend(Q, Q, Q, CU, window=(size, size)), attend(Q, Q, Q, CU))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("lengths", [[3, 2, 20], [3, 1, 2, 1, 600]])
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_a_bad_value_stays_in_its_sequence(which: str, lengths: list[int], poison: float) -> None:
    """Forward and backward: the other sequences' numbers are bitwise what they were."""
    cu, total = offsets_of(lengths), sum(lengths)
    inputs = {
        name: torch.randn(total, 2, 8, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("qkv")
    }

    def run() -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs.values()]
        out, lse = ragged_attention(*leaves, cu, cu, 600, 600, return_lse=True)
        return [out, lse, *torch.autograd.grad(out.sum() + lse.sum(), leaves)]

    clean = run()
    second = slice(3, 3 + lengths[1])
    inputs[which][second] = poison
    others = torch.ones(total, dtype=torch.bool)
    others[second] = False
    for before, after in zip(clean, run()):
        assert torch.equal(before[others], after[others])


def test_empty_sequences_give_zero_and_no_lse() -> None:
    q, k = rows(6), rows(3)
    out, lse = attend(q, k, k, offsets_of([0, 2, 3, 1, 0]), offsets_of([1, 0, 2, 0, 0]), return_lse=True)
    assert not out[:2].any()
    assert not out[5].any()
    assert (lse[:2] == -torch.inf).all()
    assert (lse[5] == -torch.inf).all()
    assert lse[2:5].isfinite().all()


def test_head_size_zero_averages_the_values() -> None:
    q, v = torch.zeros(6, 2, 0), rows()
    out = attend(q, q, v, CU)
    torch.testing.assert_close(out[:2], v[:2].mean(0).expand(2, -1, -1))
    assert attend(Q, Q, v[..., :0], CU).shape == (6, 2, 0)


def test_kernel_ops_never_drop_gradients_silently() -> None:
    """Backward through a kernel op, which knows no gradients, must say so."""
    q = rows().requires_grad_()
    out, _ = torch.ops.edgeops._ragged_attention_fwd(q, q, q, CU, CU, None, 1.0, False, -1, -1)
    with pytest.raises((RuntimeError, UserWarning), match=r"autograd|does not require grad"):
        out.sum().backward()
