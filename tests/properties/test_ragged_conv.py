# SPDX-License-Identifier: Apache-2.0
"""Properties of ragged convolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgeops.ragged import ragged_conv1d
from tests.peers import offsets_of
from tests.strategies import floats, lengths, seeds


@dataclass(frozen=True)
class Layer:
    """A convolution and the lengths that it meets."""

    lengths: list[int]
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    padding: tuple[int, int]
    dilation: int
    groups: int

    def ours(self, x: Tensor | None = None, lens: list[int] | None = None) -> Tensor:
        """Of all sequences, or of others."""
        rows, cu = self.x if x is None else x, offsets_of(self.lengths if lens is None else lens)
        more = {"padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return ragged_conv1d(rows, cu, self.weight, self.bias, **more)  # type: ignore[arg-type]

    @property
    def grown(self) -> int:
        """Rows that a sequence gains."""
        return sum(self.padding) - self.dilation * (self.weight.shape[2] - 1)

    def alone(self, part: Tensor) -> Tensor:
        """Torch on one sequence, in float64."""
        if len(part) + self.grown <= 0:
            return part.new_zeros(0, len(self.weight), dtype=torch.float64)
        columns = F.pad(part.double().T[None], self.padding)
        bias = None if self.bias is None else self.bias.double()
        return F.conv1d(columns, self.weight.double(), bias, 1, 0, self.dilation, self.groups)[0].T


@st.composite
def layers(draw: st.DrawFn, dtype: torch.dtype | None = None) -> Layer:
    """Any sequences that are long enough, any padding, dilation and groups."""
    dtype = dtype or draw(floats())
    taps, dilation, groups = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = (draw(st.integers(0, 5)), draw(st.integers(0, 5)))
    least = max(0, dilation * (taps - 1) - sum(padding))
    lens = [n + least for n in draw(lengths(max_length=20))]
    width, out_width = groups * draw(st.integers(1, 9)), groups * draw(st.sampled_from([1, 3, 16, 17]))
    generator = draw(seeds())

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    bias = normal(out_width) if draw(st.booleans()) else None
    x, weight = normal(sum(lens), width), normal(out_width, width // groups, taps)
    return Layer(lens, x, weight, bias, padding, dilation, groups)


@given(layers())
def test_conv1d(layer: Layer) -> None:
    """Each sequence alone gives the same bits, and what torch gives."""
    out = layer.ours()
    eps = torch.finfo(layer.x.dtype).eps
    for part, result in zip(layer.x.split(layer.lengths), out.split([n + layer.grown for n in layer.lengths])):
        assert torch.equal(layer.ours(part, [len(part)]), result)
        torch.testing.assert_close(result.double(), layer.alone(part), rtol=2 * eps, atol=eps + 1e-5)


@given(layers(torch.float64))
def test_conv1d_gradients(layer: Layer) -> None:
    """Those of torch, sequence by sequence."""
    leaves = [layer.x.requires_grad_(), layer.weight.requires_grad_()]
    if layer.bias is not None:
        leaves.append(layer.bias.requires_grad_())
    out = layer.ours()
    grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    got = torch.autograd.grad(out, leaves, grad)
    parts = [layer.alone(part) for part in layer.x.split(layer.lengths)]
    if not any(len(part) for part in parts):
        assert not any(g.any() for g in got)
        return
    want = torch.autograd.grad(torch.cat(parts), leaves, grad, materialize_grads=True, allow_unused=True)
    for mine, theirs in zip(got, want):
        torch.testing.assert_close(mine, theirs)
