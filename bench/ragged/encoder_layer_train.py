# SPDX-License-Identifier: Apache-2.0
"""One training step of one encoder layer, padded input to updated weights (CoRa, MLSys 2022, section 7.2).

The layer, the input and the peers of `encoder_layer`, without dropout: forward, backward into the input and all
parameters from the same upstream gradient, and a step of SGD. The learning rate is so small that the weights stay what
they are while the step does its whole work. Packing and unpacking are inside every packed candidate; the peers' indices
and masks are made beforehand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.inputs import SHORT_LISTS
from bench.ragged.attention import list_cases
from bench.ragged.encoder_layer import (
    FEED,
    HEADS,
    LOOP,
    MODEL,
    OURS,
    PADDED,
    attend_loop,
    layer_flops,
    make_layer,
    packed_layer,
    padded_input,
    padded_layer,
    run_rows,
)
from bench.ragged.training import recording, with_gradients
from bench.registry import Built, Candidate, Case, Workload
from edgeops.ragged.convert import convert
from edgeops.ragged.layout import RaggedLayout

STOCK = "nn.TransformerEncoderLayer"
_RATE = 1e-12


class Step:
    """A training step: `forward(layer, x)` on a layer of its own, with its optimizer."""

    def __init__(
        self,
        layer: nn.TransformerEncoderLayer,
        x: Tensor,
        upstream: Tensor,
        forward: Callable[[nn.TransformerEncoderLayer, Tensor], Callable[[], Tensor]],
    ) -> None:
        self.layer = copy.deepcopy(layer).train()
        self.x = x.detach().clone().requires_grad_()
        self.upstream = upstream
        self.forward = forward(self.layer, self.x)
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=_RATE)

    def __call__(self) -> Tensor:
        with recording():
            self.optimizer.zero_grad()
            self.x.grad = None
            out = self.forward()
            out.backward(self.upstream)
            self.optimizer.step()
            return out.detach()

    def gradients(self) -> list[Tensor]:
        """Of the input and of the parameters, by the last call."""
        grads = [self.x.grad, *(p.grad for p in self.layer.parameters())]
        return [g for g in grads if g is not None]


def joined(out: Tensor, keep: Tensor, grads: Sequence[Tensor]) -> Tensor:
    """Output and gradients of real tokens in a row; sums over T tokens are divided by the square root of T."""
    rows = [out[keep], grads[0][keep]]
    return torch.cat([part.detach().flatten() for part in (*rows, *(g / len(rows[0]) ** 0.5 for g in grads[1:]))])


def _expected(
    layer: nn.TransformerEncoderLayer, x: Tensor, keep: Tensor, upstream: Tensor, layout: RaggedLayout
) -> Tensor:
    with recording():
        wide = copy.deepcopy(layer).double()
        rows = x[keep].double().requires_grad_()
        out = run_rows(wide, rows, attend_loop(list(layout.lengths)))
        grads = torch.autograd.grad(out, [rows, *wide.parameters()], upstream[keep].double())
        whole = out.new_zeros(2, *x.shape)
        whole[0, keep], whole[1, keep] = out.detach(), grads[0]
        return joined(whole[0], keep, [whole[1], *grads[1:]])


def _build(case: Case, device: torch.device) -> Built:
    layer = make_layer(device)
    layout = RaggedLayout.from_lengths(case.lengths, device=device)
    x, keep = padded_input(layout, device)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(x.shape, generator=generator).to(device) * keep[:, :, None]
    padding, lengths = ~keep, list(case.lengths)

    def stock(one: nn.TransformerEncoderLayer, x: Tensor) -> Callable[[], Tensor]:
        return lambda: one(x, src_key_padding_mask=padding)

    def ours(one: nn.TransformerEncoderLayer, x: Tensor) -> Callable[[], Tensor]:
        return stock(convert(one, inplace=True), x)  # type: ignore[arg-type]

    forms = {
        OURS: ours,
        LOOP: lambda one, x: packed_layer(one, x, keep, lengths),
        PADDED: lambda one, x: padded_layer(one, x, keep),
        STOCK: stock,
    }
    steps = {name: Step(layer, x, upstream, form) for name, form in forms.items()}

    def view(step: Step) -> Callable[[Tensor], Tensor]:
        return lambda out: joined(out, keep, step.gradients())

    return Built(
        candidates={name: Candidate(step, view=view(step)) for name, step in steps.items()},
        expected=lambda: _expected(layer, x, keep, upstream, layout),
        tolerance=2e-4,
        shapes={"B": len(lengths), "T": layout.total, "L": layout.max_len, "M": MODEL, "H": HEADS, "FF": FEED},
        flops=3 * layer_flops(case.lengths),
    )


WORKLOADS = (
    Workload(
        name="encoder_layer_train",
        ops=("ragged_attention", "ragged_pack", "ragged_unpack", "add_layer_norm", "bias_gelu"),
        summary="one training step of one encoder layer (512, 8x64, 2048), padded to padded, on the short length lists",
        ours=OURS,
        baseline=LOOP,
        cases=lambda suite: list_cases(suite, 32, SHORT_LISTS),
        build=with_gradients(_build),
    ),
)
