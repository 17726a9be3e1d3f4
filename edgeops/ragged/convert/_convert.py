# SPDX-License-Identifier: Apache-2.0
"""`convert`: find the encoders in a model, check all of them, then swap their classes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from edgeops import _native
from edgeops._common import describe, message
from edgeops.ragged.convert._bert import BertAdapter
from edgeops.ragged.convert._distilbert import DistilBertAdapter
from edgeops.ragged.convert._swap import Converted, swap
from edgeops.ragged.convert._torch import EncoderAdapter, EncoderLayerAdapter
from edgeops.ragged.convert._vit import ViTAdapter

ADAPTERS: tuple[type[Converted], ...] = (
    BertAdapter,
    DistilBertAdapter,
    ViTAdapter,
    EncoderAdapter,
    EncoderLayerAdapter,
)
"""In order of preference; the first that recognises a module decides."""

_SUPPORTED = "BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, Data2Vec-text, DistilBERT, ViT, nn.TransformerEncoder(Layer)"

_BY_HAND = "Pack its tokens with edgeops.ragged.pack and call ragged_attention in its layers."
_SEPARATE = "Remove the cause, or convert the other parts of the model one by one."


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, type[Converted]]]:
    """Encoders in the tree, outermost ones only: the layers of an `nn.TransformerEncoder` belong to it."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        done = isinstance(module, Converted)
        adapter = None if done else next((kind for kind in ADAPTERS if kind.recognises(module)), None)
        if done or adapter is not None:
            inside.update(id(child) for child in module.modules())
        if adapter is not None:
            yield name, module, adapter


def is_converted(model: nn.Module) -> bool:
    """Whether some module of the tree runs on packed rows.

    >>> is_converted(nn.Linear(2, 2))
    False
    """
    return any(isinstance(module, Converted) for module in model.modules())


def _shared_copy(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    memo.update((id(b), b) for b in model.buffers())
    return copy.deepcopy(model, memo)


def convert(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Make the encoders inside a model compute on real tokens only.

    Each encoder removes the padding once, before its embeddings or first layer, and restores it once, after its last;
    in between, all layers share one layout. Call signature, output types, `state_dict` keys and the class (for
    `isinstance` and `save_pretrained`) stay the same; pickling, `copy.deepcopy`, `.to()` and training work.

    Converted are, wherever they stand in the tree: the Hugging Face models that share BERT's layers (BERT, RoBERTa,
    XLM-R, CamemBERT, ELECTRA, Data2Vec-text, DistilBERT; so also MiniLM, BGE, E5 and what sentence-transformers builds
    of them), `ViTModel`, `nn.TransformerEncoder` and free-standing `nn.TransformerEncoderLayer`.

    What differs from the unconverted model:

    * Hidden states of padding positions are zero, never NaN, whatever stands in the padding of the input. Sequences
      without a token give zeros.
    * Poolers that read the first position get the first real token, also where the padding stands in front.
    * A call that needs attention weights, a 3-D or 4-D mask or a cache raises `NotImplementedError` with all reasons.
    * Dropout while training draws from torch's generator over real tokens only: the same distribution, other draws.
      Dropout of attention weights needs a `ragged_attention` with `dropout_p`; without it such a call is refused, too.
    * Query, key and value projections become views of one tensor, so that inference multiplies once. Their names,
      shapes and gradients are unchanged. A plain `pickle` writes such a tensor once for each view (`torch.save` and
      safetensors do not).

    Text models also take sequences flattened into one row `[1, T]` with `cu_seq_lens_q`, as padding-free data collators
    make them. Use `encode_packed(model, ...)` to take hidden states or sentence embeddings without padding at all.

    Args:
        model: a module, in training or evaluation mode.
        inplace: change `model` itself. By default the result is a new tree of modules that shares all parameters and
            buffers with `model`, which stays as it was.

    Returns:
        The converted model.

    Raises:
        TypeError: `model` is not a module.
        ImportError: the native ops are not built.
        NotImplementedError: the model holds no encoder of a known kind, or one that cannot be converted, with the
            reasons for each module.

    >>> import torch
    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = convert(nn.TransformerEncoder(layer, 2)).eval()
    >>> padding = torch.tensor([[False, False, False], [False, True, True]])
    >>> model(torch.randn(2, 3, 8), src_key_padding_mask=padding).shape
    torch.Size([2, 3, 8])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(message("convert", "model must be an nn.Module", describe(model), "Pass the model itself."))
    _native.require("convert")
    found = list(_candidates(model))
    if not found:
        if is_converted(model):
            return model
        raise NotImplementedError(
            message("convert", f"needs one of: {_SUPPORTED}", f"{type(model).__name__} without any", _BY_HAND)
        )
    reasons = {name or "the model itself": list(adapter.why_not(module)) for name, module, adapter in found}
    refused = "".join(f"\n  {name}:" + "".join(f"\n    - {r}" for r in why) for name, why in reasons.items() if why)
    if refused:
        raise NotImplementedError(message("convert", "cannot convert some modules", refused + "\n", _SEPARATE))
    if not inplace:
        model = _shared_copy(model)
        found = list(_candidates(model))
    for _, module, adapter in found:
        swap(module, adapter)
    return model
