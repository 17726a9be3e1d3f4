# SPDX-License-Identifier: Apache-2.0
"""The native simulator, or an error that says what to do when it is not built."""

from __future__ import annotations

import functools
from typing import Any

from edgeops._common import message


@functools.cache
def runtime() -> Any:
    """`edgeops._runtime.offload`, taken when it is first needed.

    Raises:
        ImportError: it is not built for this Python.
    """
    try:
        from edgeops._runtime import offload
    except ImportError as error:
        rule, advice = "the simulator needs the native runtime", "`edgeops info` prints the whole picture."
        got = f"{error}; run: pip install --no-build-isolation -e . (or make test)"
        raise ImportError(message("edgeops.offload", rule, got, advice)) from error
    return offload
