# SPDX-License-Identifier: Apache-2.0
"""The native simulator, or an error that says what to do when it is not built."""

from __future__ import annotations

import functools
from typing import Any

from edgeops import _native


@functools.cache
def runtime() -> Any:
    """`edgeops._runtime.offload`, taken when it is first needed.

    Raises:
        ImportError: it is not built for this Python.
    """
    return _native.runtime("offload", "edgeops.offload", "the simulator needs")
