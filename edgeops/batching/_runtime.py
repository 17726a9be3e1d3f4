# SPDX-License-Identifier: Apache-2.0
"""The native runtime, or an error that says what to do when it is not built."""

from __future__ import annotations

import functools
from typing import Any

from edgeops import _native


@functools.cache
def runtime() -> Any:
    """`edgeops._runtime.batching`, taken when it is first needed.

    Raises:
        ImportError: it is not built for this Python.
    """
    batching = _native.runtime("batching", "edgeops.batching", "graphs, schedules and cells need")
    if not hasattr(batching.Value, "tensor"):
        from edgeops.batching._value import dress

        dress(batching.Value)
    return batching
