# SPDX-License-Identifier: Apache-2.0
"""Error messages in four parts: who, the rule, what was received, what to do."""

from __future__ import annotations

import torch


def message(who: str, rule: str, got: str, advice: str) -> str:
    """Compose an error message.

    >>> message("pack", "needs a [B, L, ...] tensor", "shape (3,)", "Add the batch dimension.")
    'pack: needs a [B, L, ...] tensor; got shape (3,). Add the batch dimension.'
    """
    return f"{who}: {rule}; got {got}. {advice}"


def describe(value: object) -> str:
    """Say what a value is in a few words, for the "got" part of a message.

    >>> describe(torch.zeros(2, 3))
    'float32 tensor of shape (2, 3) on cpu'
    >>> describe("x")
    "str 'x'"
    """
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device.type}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def missing_extra(who: str, package: str, extra: str) -> ImportError:
    """The error for an optional package that is not installed: names the extra that brings it.

    >>> str(missing_extra("report", "jinja2", "cli"))
    "report: needs the package 'jinja2'; got no such package. Install it with: pip install 'edgeops[cli]'"
    """
    return ImportError(
        message(
            who, f"needs the package '{package}'", "no such package", f"Install it with: pip install 'edgeops[{extra}]'"
        )
    )
