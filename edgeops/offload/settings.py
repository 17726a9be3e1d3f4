# SPDX-License-Identifier: Apache-2.0
"""The settings of a group of targets, and which values they may have."""

from __future__ import annotations

from typing import Any

from edgeops._common import message
from edgeops.offload.moments import CHANGES
from edgeops.offload.targets import PROJECTORS


def check_settings(who: str, group: dict[str, Any]) -> None:
    """Raise for settings that are out of range.

    Raises:
        ValueError: one of them is.
    """
    wire = group["wire_dtype"]
    rules = {
        "check_every": (group["check_every"] >= 1, "must be at least 1"),
        "alpha": (group["alpha"] is None or group["alpha"] > 0, "must be positive, or None"),
        "alpha_relative": (group["alpha_relative"] > 0, "must be positive"),
        "fit_steps": (group["fit_steps"] >= 0, "must not be negative"),
        "fit_lr": (group["fit_lr"] is None or group["fit_lr"] > 0, "must be positive, or None"),
        "fit_beta": (group["fit_beta"] >= 0, "must not be negative"),
        "max_norm": (group["max_norm"] is None or group["max_norm"] > 0, "must be positive, or None"),
        "wire_dtype": (wire is None or wire.is_floating_point, "must be a floating point dtype, or None"),
        "on_change": (group["on_change"] in CHANGES, f"must be one of {', '.join(CHANGES)}"),
        "projector": (group["projector"] in PROJECTORS, f"must be one of {', '.join(PROJECTORS)}"),
    }
    for key, (good, rule) in rules.items():
        if not good:
            raise ValueError(message(who, f"{key} {rule}", repr(group[key]), "See its documentation."))
