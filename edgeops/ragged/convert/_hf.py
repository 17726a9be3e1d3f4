# SPDX-License-Identifier: Apache-2.0
"""What the converted Hugging Face models share: finding stock classes without an import, call arguments, outputs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from edgeops._common import describe, message
from edgeops.ragged.convert._padding import Padding
from edgeops.ragged.convert._swap import Converted


def loaded(path: str) -> ModuleType | None:
    """The submodule `transformers.models.<path>` if the user's program has imported it."""
    return sys.modules.get(f"transformers.models.{path}")


def unknown_signature(model: nn.Module, expected: tuple[str, ...]) -> Iterator[str]:
    """A reason when the stock forward of this transformers release takes other arguments than those we bind."""
    names = tuple(inspect.signature(type(model).forward).parameters)[1:]
    if names != (*expected, "kwargs"):
        yield f"its forward takes ({', '.join(names)}), not ({', '.join(expected)}): an unknown transformers release"


class HuggingFaceAdapter(Converted):
    """Call arguments and outputs of a `PreTrainedModel` base model."""

    config: Any
    training: bool

    def attentions(self) -> list[tuple[str, nn.Module, float]]:
        """(name, module, dropout probability) of every attention."""
        raise NotImplementedError

    def call_reasons(self, attention_mask: Tensor | None, given: dict[str, Any], kwargs: dict[str, Any]) -> list[str]:
        """Why this call cannot run on packed rows; `given` are arguments that must be `None`."""
        reasons = [f"{name} is given, which only a decoder uses" for name, value in given.items() if value is not None]
        wanted = kwargs.get("output_attentions")
        if getattr(self.config, "output_attentions", False) if wanted is None else wanted:
            reasons.append("output_attentions=True: attention weights are never formed; set it to False")
        if kwargs.get("head_mask") is not None:
            reasons.append("head_mask is given: heads cannot be switched off; prune them instead")
        if attention_mask is not None and attention_mask.ndim != 2:
            shape = tuple(attention_mask.shape)
            reasons.append(f"attention_mask has shape {shape}: only a padding mask [B, L] describes sequences")
        return reasons

    def attention_dropouts(self) -> list[float]:
        """One probability for each attention, 0 where it is not training."""
        return [p if attention.training else 0.0 for _, attention, p in self.attentions()]

    def selected_states(self, kwargs: dict[str, Any]) -> bool | list[int]:
        """`output_hidden_states` of the call or the config: a flag, or indices as newer releases allow."""
        wanted = kwargs.get("output_hidden_states")
        if wanted is None:
            wanted = getattr(self.config, "output_hidden_states", False)
        if isinstance(wanted, bool) or wanted is None:
            return bool(wanted)
        return [wanted] if isinstance(wanted, int) else list(wanted)


def mask_like(name: str, mask: Tensor | None, shape: tuple[int, int]) -> None:
    """Check that a 2-D mask fits the batch."""
    if mask is not None and tuple(mask.shape) != shape:
        raise ValueError(
            message(
                f"converted {name}",
                f"attention_mask must have the shape of the tokens, {shape}",
                describe(mask),
                "Pass one mask entry per token.",
            )
        )


def unpacked_states(
    collected: list[Tensor], padding: Padding, selected: bool | list[int], last: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Collected packed rows as the padded tuple of a model output; `last` replaces the final entry."""
    count = len(collected)
    keep = range(count) if isinstance(selected, bool) else [i % count for i in selected if -count <= i < count]
    states = [padding.unpack(x) if i in keep else None for i, x in enumerate(collected)]
    if last is not None and states[-1] is not None:
        states[-1] = last
    return tuple(states)


def finish(output: Any, kwargs: dict[str, Any], config: Any) -> Any:
    """The model output, or the tuple that `return_dict=False` asks for."""
    return output.to_tuple() if kwargs.get("return_dict", getattr(config, "return_dict", True)) is False else output
