# SPDX-License-Identifier: Apache-2.0
"""Checks that an error has its four parts: who, the rule, what was received, what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def refused(kind: type[Exception], who: str, rule: str, got: str = ".+", advice: str = ".+") -> Iterator[None]:
    """Expect exactly `kind` with the text `who: rule; got ... . advice` (each part a regular expression)."""
    with pytest.raises(kind, match=rf"^{who}: [^;]*{rule}[^;]*; got [^;]*{got}[^;]*\. {advice}$") as caught:
        yield
    assert caught.type is kind, f"expected {kind.__name__} itself, got {caught.type.__name__}"
    assert "/" not in str(caught.value).replace("key/value", ""), f"a path leaks: {caught.value}"
