# SPDX-License-Identifier: Apache-2.0
"""What is kept of targets in an optimizer's `state_dict`, and brought back from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeops._common import message
from edgeops.offload.pair import Pair
from edgeops.offload.targets import Target


def saved_targets(targets: Sequence[Target]) -> list[dict[str, Any]]:
    """Names, projectors and fits."""
    return [
        {
            "name": t.name, "shape": list(t.weight.shape), "dtype": str(t.weight.dtype), "pair": t.pair.state(),
            "due": t.due, "fit_bias": t.fit_bias, "skipped": t.skipped, "learned": t.learned,
        }
        for t in targets
    ]  # fmt: skip


def check_saved(who: str, targets: Sequence[Target], state_dict: dict[str, Any]) -> None:
    """Raise where a saved state is not of these targets.

    Raises:
        ValueError: it is of another optimizer, or of other weights, shapes or dtypes.
    """
    if "subspace" not in state_dict:
        raise ValueError(message(who, f"needs the state of an {who}", "one without 'subspace'", "Save it again."))
    have = [(t.name, list(t.weight.shape), str(t.weight.dtype)) for t in targets]
    given = [(t["name"], list(t["shape"]), t["dtype"]) for t in state_dict["subspace"]["targets"]]
    if have != given:
        odd = next((f"{g} where {h} is" for g, h in zip(given, have) if g != h), f"{len(given)} of them")
        rule = "the saved state must be of the same weights, shapes and dtypes"
        raise ValueError(message(who, rule, odd, "Build the optimizer as it was when it was saved."))


def restore_targets(targets: Sequence[Target], saved: Sequence[dict[str, Any]]) -> None:
    """Projectors and fits as they were."""
    for target, kept in zip(targets, saved, strict=True):
        target.set_pair(Pair.of(kept["pair"]).to(target.weight.device))
        target.due, target.fit_bias = kept["due"], kept["fit_bias"]
        target.skipped, target.learned = kept["skipped"], kept["learned"]
        if target.module is not None:
            target.module.learn = None
