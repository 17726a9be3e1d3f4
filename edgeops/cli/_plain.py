# SPDX-License-Identifier: Apache-2.0
"""The command line of a machine without the `cli` extra: the diagnosis as plain text, nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from edgeops._common import message

from ._diagnosis import diagnose


def text(found: dict[str, dict[str, str]]) -> str:
    """The diagnosis as aligned lines.

    >>> print(text({"versions": {"edgeops": "0.1", "torch": "2.13"}}))
    versions
      edgeops  0.1
      torch    2.13
    """
    lines = []
    for part, facts in found.items():
        width = max(map(len, facts), default=0)
        lines += [part, *(f"  {name:<{width}}  {value}" for name, value in facts.items())]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Print the diagnosis for no arguments, `info` or `info --json`; return the exit code."""
    if list(arguments) in ([], ["info"]):
        print(text(diagnose()))
        return 0
    if list(arguments) == ["info", "--json"]:
        print(json.dumps(diagnose(), indent=2))
        return 0
    print(
        message(
            "edgeops",
            "commands other than info need the packages typer and rich",
            " ".join(arguments),
            "Install them with: pip install 'edgeops[cli]'",
        ),
        file=sys.stderr,
    )
    return 1
