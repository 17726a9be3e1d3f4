# SPDX-License-Identifier: Apache-2.0
"""`nn.TransformerEncoderLayer` and `nn.TransformerEncoder` on packed rows, for models that are being written.

CoRa (MLSys 2022), section 3.1: position-wise layers become dense layers on real tokens. `convert` changes a model that
exists; these classes are for one that is being written. Both run the same loop (`edgeops.ragged.convert`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgeops import _native
from edgeops._common import describe, message
from edgeops.ragged.convert._torch import EncoderAdapter, EncoderLayerAdapter, layer_reasons
from edgeops.ragged.layout import RaggedLayout

Activation = Any  # a name or a function of a tensor


class _DropIn:
    """What a written class does otherwise than a module whose class was changed: it is pickled by its own name."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return nn.Module.__reduce_ex__(self, protocol)

    def _get_name(self) -> str:
        return type(self).__name__


class RaggedTransformerEncoderLayer(_DropIn, EncoderLayerAdapter, nn.TransformerEncoderLayer):
    """`nn.TransformerEncoderLayer` that computes on real tokens only.

    Constructor arguments, parameters, `state_dict` keys and results for real tokens are those of the stock layer, which
    it derives from; files of either load into the other. A padded call packs, runs the layer, and unpacks. To pay for
    that once in a stack use `RaggedTransformerEncoder`, or pass packed rows with their layout. CoRa (MLSys 2022),
    section 7.2: the encoder layer.

    Args:
        d_model: width of the rows, a multiple of `nhead`.
        nhead: attention heads.
        dim_feedforward: width between the two linear layers.
        dropout: of attention weights and after each part, while training.
        activation: "relu", "gelu" or a function of a tensor.
        layer_norm_eps: added to the variance.
        batch_first: padded input is `[B, L, E]` instead of `[L, B, E]`.
        norm_first: normalise before attention and feed-forward instead of after.
        bias: whether linear layers and LayerNorm have one.
        device, dtype: of the parameters.

    Raises:
        ImportError: the native ops are not built.

    >>> layer = RaggedTransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    >>> padding = torch.tensor([[False, False, False], [False, True, True]])
    >>> layer(torch.randn(2, 3, 8), src_key_padding_mask=padding)[1, 1:].any()
    tensor(False)
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = torch.nn.functional.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _native.require(type(self).__name__)
        super().__init__(
            d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias,
            device, dtype,
        )  # fmt: skip

    @property
    def activation_relu_or_gelu(self) -> int:
        """0: tells a stock `nn.TransformerEncoder` round this layer not to hand it nested tensors."""
        return 0

    @activation_relu_or_gelu.setter
    def activation_relu_or_gelu(self, value: int) -> None:
        pass

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        layout: RaggedLayout | None = None,
    ) -> Tensor:
        """The stock call, or packed rows.

        Args:
            src: `[B, L, E]` (`[L, B, E]` without `batch_first`), `[L, E]`, a jagged nested tensor, or with `layout`
                packed rows `[T, E]`.
            src_mask: `[L, L]`, boolean (True = forbidden) or added to the scores.
            src_key_padding_mask: `[B, L]`, True (or -inf) = padding, anywhere in a sequence.
            is_causal: no look ahead; `src_mask` is then not read.
            layout: of packed rows; nothing is padded or packed then.

        Returns:
            Like `src`; padding positions are zero.

        Raises:
            ValueError: shapes do not fit.
            NotImplementedError: what packed rows cannot express, with all reasons.
        """
        if layout is not None:
            return _packed(self, src, src_mask, src_key_padding_mask, is_causal, layout)
        return self.run_padded(src, src_mask, src_key_padding_mask, is_causal)


class RaggedTransformerEncoder(_DropIn, EncoderAdapter, nn.TransformerEncoder):
    """`nn.TransformerEncoder` that packs once before its first layer and unpacks once after its last.

    Constructor arguments, parameters and `state_dict` keys are those of the stock class, which it derives from.

    Args:
        encoder_layer: a `RaggedTransformerEncoderLayer` or a stock layer; `num_layers` copies of it are made.
        num_layers: how many.
        norm: applied to the result, or `None`.
        enable_nested_tensor, mask_check: kept for the stock class; packed rows need neither.

    Raises:
        NotImplementedError: the layer is one that packed rows cannot run, with the reasons.
        ImportError: the native ops are not built.

    >>> encoder = RaggedTransformerEncoder(RaggedTransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    >>> layout = RaggedLayout.from_lengths([3, 1])
    >>> encoder(torch.randn(4, 8), layout=layout).shape
    torch.Size([4, 8])
    """

    def __init__(
        self,
        encoder_layer: nn.TransformerEncoderLayer,
        num_layers: int,
        norm: nn.Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        who = type(self).__name__
        _native.require(who)
        reasons = list(_why_not(encoder_layer))
        if reasons:
            got = f"{type(encoder_layer).__name__}: {'; '.join(reasons)}"
            raise NotImplementedError(message(who, "needs a layer that packed rows can run", got, "Use nn modules."))
        # the stock constructor explains at length why it will not use nested tensors, which is of no concern here
        super().__init__(encoder_layer, num_layers, norm, False, mask_check)
        self.enable_nested_tensor = enable_nested_tensor

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
        *,
        layout: RaggedLayout | None = None,
    ) -> Tensor:
        """As `RaggedTransformerEncoderLayer.forward`, through all layers; `mask` is its `src_mask`."""
        if layout is not None:
            return _packed(self, src, mask, src_key_padding_mask, is_causal, layout)
        return self.run_padded(src, mask, src_key_padding_mask, is_causal)


def _packed(
    module: RaggedTransformerEncoderLayer | RaggedTransformerEncoder,
    rows: Tensor,
    mask: Tensor | None,
    padding_mask: Tensor | None,
    is_causal: bool | None,
    layout: RaggedLayout,
) -> Tensor:
    if padding_mask is not None:
        rule = "src_key_padding_mask must be None with packed rows, which have no padding"
        raise ValueError(message(type(module).__name__, rule, describe(padding_mask), "Leave it out."))
    out, _ = module.encode_packed(rows, mask, None, is_causal, layout=layout)
    return out


def _why_not(layer: Any) -> Iterator[str]:
    if not isinstance(layer, nn.TransformerEncoderLayer):
        yield "it is not an nn.TransformerEncoderLayer"
        return
    if not isinstance(layer, RaggedTransformerEncoderLayer):
        yield from EncoderLayerAdapter.why_not(layer)
    elif type(layer).forward is not RaggedTransformerEncoderLayer.forward:
        yield "it has a forward of its own"
    else:
        yield from layer_reasons("", layer)
