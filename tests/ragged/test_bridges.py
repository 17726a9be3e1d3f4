# SPDX-License-Identifier: Apache-2.0
"""To and from `torch.nested`, without copies."""

from __future__ import annotations

import pytest
import torch

from edgeops.ragged import RaggedLayout, from_nested, ragged_pool, to_nested
from tests.messages import refused


def test_round_trip_shares_memory() -> None:
    values = torch.randn(6, 4)
    layout = RaggedLayout.from_lengths([2, 0, 4])
    nested = to_nested(values, layout)
    assert [len(x) for x in nested.unbind()] == [2, 0, 4]
    back, again = from_nested(nested)
    assert back.data_ptr() == values.data_ptr()
    assert again == layout
    assert torch.equal(back, values)


def test_gradients_flow_both_ways() -> None:
    values = torch.randn(5, 2, requires_grad=True)
    layout = RaggedLayout.from_lengths([2, 3])
    back, _ = from_nested(to_nested(values, layout) * 2)
    ragged_pool(back, layout.offsets, "sum").sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, torch.full((5, 2), 2.0))


def test_nested_from_a_list() -> None:
    rows = [torch.randn(n, 3) for n in (1, 4, 2)]
    values, layout = from_nested(torch.nested.nested_tensor(rows, layout=torch.jagged))
    assert layout.lengths == (1, 4, 2)
    assert torch.equal(values, torch.cat(rows))


def test_refuses_other_layouts() -> None:
    with refused(
        TypeError, "RaggedLayout.from_nested", "needs a torch.nested tensor with layout=torch.jagged", "float32"
    ):
        from_nested(torch.zeros(3, 2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_refuses_strided_nested() -> None:
    strided = torch.nested.nested_tensor([torch.zeros(1, 2), torch.zeros(3, 2)])
    with refused(TypeError, "RaggedLayout.from_nested", "needs a torch.nested tensor", "a nested tensor of layout"):
        from_nested(strided)


def test_refuses_holes() -> None:
    padded = torch.randn(2, 5, 3)
    narrowed = torch.nested.narrow(padded, 1, torch.tensor([0, 1]), torch.tensor([2, 3]), layout=torch.jagged)
    with refused(ValueError, "RaggedLayout.from_nested", r"nested tensors with holes \(narrowed\) are not supported"):
        from_nested(narrowed)


def test_refuses_values_of_another_batch() -> None:
    with refused(ValueError, "to_nested", "values must have 3 rows to fit the layout", r"shape \(4, 2\)"):
        to_nested(torch.zeros(4, 2), RaggedLayout.from_lengths([1, 2]))
