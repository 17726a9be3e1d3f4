# SPDX-License-Identifier: Apache-2.0
"""The native runtime, or an error that says what to do when it is not built."""

from __future__ import annotations

from typing import Any

from edgeops._common.errors import message


def runtime() -> Any:
    """`edgeops._runtime.batching`."""
    try:
        from edgeops._runtime import batching
    except ImportError as error:
        rule, advice = "recording needs the native runtime", "Install edgeops from source with a C++ compiler."
        raise ImportError(message("edgeops.batching", rule, f"no edgeops._runtime ({error})", advice)) from error
    if not hasattr(batching.Value, "tensor"):
        from edgeops.batching._value import dress

        dress(batching.Value)
    return batching
