# SPDX-License-Identifier: Apache-2.0
"""`convert`, or the module itself while its family is not covered yet."""

from __future__ import annotations

from typing import Any

from edgeops.ragged.convert import convert as _convert


def convert(model: Any) -> Any:
    try:
        return _convert(model)
    except NotImplementedError:
        return model
