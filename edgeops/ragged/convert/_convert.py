# SPDX-License-Identifier: Apache-2.0
"""`convert`: find the encoders in a model, check all of them, then swap their classes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

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


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, type[Converted]]]:
    """Encoders in the tree, outermost ones only: the layers of an `nn.TransformerEncoder` belong to it."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside or isinstance(module, Converted):
            continue
        adapter = next((kind for kind in ADAPTERS if kind.recognises(module)), None)
        if adapter is not None:
            inside.update(id(child) for child in module.modules())
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
    if not isinstance(model, nn.Module):
        raise TypeError(message("convert", "model must be an nn.Module", describe(model), "Pass the model itself."))
    found = list(_candidates(model))
    if not found:
        if is_converted(model):
            return model
        raise NotImplementedError(
            message("convert", f"needs one of: {_SUPPORTED}", f"{type(model).__name__} without any", "Pack by hand.")
        )
    reasons = {name or "the model itself": list(adapter.why_not(module)) for name, module, adapter in found}
    refused = "".join(f"\n  {name}:" + "".join(f"\n    - {r}" for r in why) for name, why in reasons.items() if why)
    if refused:
        raise NotImplementedError(
            message("convert", "cannot convert some modules", refused + "\n", "Fix or pad these.")
        )
    if not inplace:
        model = _shared_copy(model)
        found = list(_candidates(model))
    for _, module, adapter in found:
        swap(module, adapter)
    return model
