# SPDX-License-Identifier: Apache-2.0
"""Amounts as people write them: `4GB`, `12 GB/s`, `50TFLOPS`."""

from __future__ import annotations

import re

from edgeops._common import message

_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_FORM = re.compile(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([kmgt]i?)?(b/s|b|flops|flop/s)?\s*", re.IGNORECASE)
UNITS = {"B": ("b", ""), "B/s": ("b/s", "b", ""), "FLOPS": ("flops", "flop/s", "")}


def quantity(text: str | float, unit: str, who: str = "quantity") -> float:
    """A number in `unit` (`"B"`, `"B/s"` or `"FLOPS"`), which the text may leave out; numbers stay as they are.

    Raises:
        ValueError: another unit, not a number, or not above 0.

    >>> quantity("4GB", "B"), quantity("12 GB/s", "B/s"), quantity("1.5TFLOPS", "FLOPS"), quantity("2GiB", "B")
    (4000000000.0, 12000000000.0, 1500000000000.0, 2147483648.0)
    """
    found = _FORM.fullmatch(str(text))
    value = float(found[1]) * _PREFIXES[(found[2] or "").lower()] if found else 0.0
    if found is None or (found[3] or "").lower() not in UNITS[unit] or not 0 < value < float("inf"):
        example = {"B": "4GB", "B/s": "12GB/s", "FLOPS": "50TFLOPS"}[unit]
        raise ValueError(
            message(who, f"needs an amount in {unit} above 0", repr(text), f"Write for example {example}.")
        )
    return value


def short(value: float, unit: str) -> str:
    """A number for people, three digits.

    >>> short(2.61e9, "B"), short(950.0, "B"), short(12e9, "B/s")
    ('2.61 GB', '950 B', '12 GB/s')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
