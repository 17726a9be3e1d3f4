# SPDX-License-Identifier: Apache-2.0
"""`pack` and `unpack`: every dtype and layout, padding that never leaks, gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgeops.ragged import RaggedLayout, pack, unpack
from tests.messages import refused

LENGTHS = [3, 0, 1, 5, 0]
MASK = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
LAYOUTS = {"left aligned": RaggedLayout.from_lengths(LENGTHS), "holes": RaggedLayout.from_padding_mask(MASK)}
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.bool, torch.complex64, torch.complex128),
]


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def layout(request: pytest.FixtureRequest) -> RaggedLayout:
    return request.param


def filled(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small numbers, all different where the dtype has room, none of them 0."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) % 120 + 1).view(shape).to(dtype)


@pytest.mark.parametrize("trailing", [(), (1,), (7,), (2, 3), (0,), (4, 0, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(layout: RaggedLayout, dtype: torch.dtype, trailing: tuple[int, ...]) -> None:
    padded = filled(5, 5, *trailing, dtype=dtype)
    mask = layout.key_padding_mask()
    packed = pack(padded, layout)
    assert packed.dtype == dtype
    assert torch.equal(packed, padded[mask])
    back = unpack(packed, layout)
    assert back.dtype == dtype
    assert torch.equal(back[mask], padded[mask])
    assert not back[~mask].any()


def test_padding_is_never_read(layout: RaggedLayout) -> None:
    """NaN in the padding shows nowhere, forward or backward."""
    mask = layout.key_padding_mask()
    padded = filled(5, 5, 3).masked_fill(~mask[:, :, None], torch.nan).requires_grad_()
    packed = pack(padded, layout)
    assert packed.isfinite().all()
    unpack(packed.square(), layout).sum().backward()
    assert padded.grad is not None
    assert torch.equal(padded.grad, (2 * padded).masked_fill(~mask[:, :, None], 0.0).detach())


def test_gradient_of_padding_places_is_ignored(layout: RaggedLayout) -> None:
    values = filled(layout.total, 3).requires_grad_()
    grad = filled(5, 5, 3)
    mask = layout.key_padding_mask()
    unpack(values, layout).backward(grad.masked_fill(~mask[:, :, None], torch.nan))
    assert values.grad is not None
    assert torch.equal(values.grad, grad[mask])


@pytest.mark.parametrize("value", [0.0, -1.5, torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_padding_value(layout: RaggedLayout, dtype: torch.dtype, value: float) -> None:
    back = unpack(filled(layout.total, 2, dtype=dtype), layout, padding_value=value)
    padding = back[~layout.key_padding_mask()]
    assert torch.equal(padding.nan_to_num(nan=7.0), torch.full_like(padding, value).nan_to_num(nan=7.0))


def test_padding_value_of_integers() -> None:
    layout = LAYOUTS["left aligned"]
    assert (unpack(filled(9, dtype=torch.int64), layout, padding_value=-100)[1] == -100).all()


def test_wider_than_needed() -> None:
    layout = RaggedLayout.from_lengths([1, 2])
    assert unpack(torch.tensor([1, 2, 3]), layout, length=4).tolist() == [[1, 0, 0, 0], [2, 3, 0, 0]]
    assert pack(torch.tensor([[1, 9, 9], [2, 3, 9]]), layout).tolist() == [1, 2, 3]
    wide = RaggedLayout.from_padding_mask(torch.tensor([[1, 0, 0], [1, 1, 0]]))
    assert unpack(torch.tensor([1, 2, 3]), wide).shape == (2, 3)


LAYING_OUT: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded": lambda x: x[:1, :1].expand_as(x),
    "expanded channels": lambda x: x[..., :1].expand_as(x),
    "every second": lambda x: x.repeat_interleave(2, 2)[..., ::2],
    "out of a NaN buffer": lambda x: torch.nn.functional.pad(x, (2, 1, 1, 3, 1, 1), value=torch.nan)[1:-1, 1:-3, 2:-1],
}


@pytest.mark.parametrize("lay_out", LAYING_OUT.values(), ids=LAYING_OUT.keys())
def test_layouts_of_input(layout: RaggedLayout, lay_out: Callable[[Tensor], Tensor]) -> None:
    padded = lay_out(filled(5, 5, 4))
    assert not padded.is_contiguous()
    assert torch.equal(pack(padded, layout), padded[layout.key_padding_mask()])
    rows = lay_out(filled(1, layout.total, 4))[0]
    assert torch.equal(unpack(rows, layout)[layout.key_padding_mask()], rows)


def test_expanded_gradient(layout: RaggedLayout) -> None:
    padded = filled(5, 5, 3).requires_grad_()
    pack(padded, layout).sum().backward()
    assert padded.grad is not None
    assert torch.equal(padded.grad, layout.key_padding_mask()[:, :, None].expand(5, 5, 3).float())


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]], ids=str)
def test_nothing(lengths: list[int]) -> None:
    layout = RaggedLayout.from_lengths(lengths)
    for columns in (0, 4):
        padded = torch.full((len(lengths), columns, 3), torch.nan, requires_grad=True)
        packed = pack(padded, layout)
        assert packed.shape == (0, 3)
        back = unpack(packed, layout, length=columns)
        assert torch.equal(back, torch.zeros(len(lengths), columns, 3))
        back.sum().backward()
        assert padded.grad is not None
        assert not padded.grad.any()


def test_gradcheck(layout: RaggedLayout) -> None:
    padded, values = filled(5, 5, 2, dtype=torch.float64), filled(layout.total, 2, dtype=torch.float64)
    check = torch.autograd.gradcheck
    assert check(lambda x: pack(x, layout), (padded.requires_grad_(),))
    assert check(lambda x: unpack(x, layout, padding_value=3.0), (values.requires_grad_(),))


def test_large_rows_on_two_threads(threads: Callable[[int], None]) -> None:
    threads(2)
    lengths = [300, 0, 17, 1, 299, 120]
    layout = RaggedLayout.from_lengths(lengths)
    padded = torch.randn(6, 300, 64)
    assert torch.equal(pack(padded, layout), padded[layout.key_padding_mask()])
    assert torch.equal(unpack(pack(padded, layout), layout), padded * layout.key_padding_mask()[:, :, None])


def test_refuses_other_batches() -> None:
    layout = RaggedLayout.from_lengths([1, 3])
    holes = RaggedLayout.from_padding_mask(torch.tensor([[0, 1, 1]]))
    with refused(ValueError, "pack", r"padded must have shape \[2, >=3, \.\.\.\] to fit the layout", r"shape \(2, 2\)"):
        pack(torch.zeros(2, 2), layout)
    with refused(ValueError, "pack", r"padded must have shape \[2, >=3, \.\.\.\]", r"shape \(3, 3\)"):
        pack(torch.zeros(3, 3), layout)
    with refused(ValueError, "pack", r"padded must have shape", r"shape \(4,\)"):
        pack(torch.zeros(4), layout)
    with refused(ValueError, "pack", "padded must have 3 columns, as the mask", r"shape \(1, 4\)"):
        pack(torch.zeros(1, 4), holes)
    with refused(ValueError, "unpack", "values must have 4 rows to fit the layout", r"shape \(5, 2\)"):
        unpack(torch.zeros(5, 2), layout)
    with refused(ValueError, "unpack", "values must have 4 rows", r"shape \(\)"):
        unpack(torch.tensor(1.0), layout)
    with refused(ValueError, "unpack", "length must be at least 3", "2"):
        unpack(torch.zeros(4), layout, length=2)
    with refused(ValueError, "unpack", "length must be 3", "4"):
        unpack(torch.zeros(2), holes, length=4)
