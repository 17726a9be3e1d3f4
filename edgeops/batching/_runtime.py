# SPDX-License-Identifier: Apache-2.0
"""The native runtime, or an error that says what to do when it is not built."""

from __future__ import annotations

import functools
from typing import Any

from edgeops._common.errors import message


@functools.cache
def runtime() -> Any:
    """`edgeops._runtime.batching`, taken when it is first needed.

    Raises:
        ImportError: it is not built for this Python.
    """
    try:
        from edgeops._runtime import batching
    except ImportError as error:
        rule, advice = "graphs, schedules and cells need the native runtime", "`edgeops info` prints the whole picture."
        got = f"{error}; run: pip install --no-build-isolation -e . (or make test)"
        raise ImportError(message("edgeops.batching", rule, got, advice)) from error
    if not hasattr(batching.Value, "tensor"):
        from edgeops.batching._value import dress

        dress(batching.Value)
    return batching
