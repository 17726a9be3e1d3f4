# SPDX-License-Identifier: Apache-2.0
"""The `edgeops` command. One file per command or command group; see `_app.py` for how they are found.

Exit codes: 0 done, 1 the work failed, 2 wrong use.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code.

    Args:
        arguments: without the program's name; `None` = those of this process.

    Raises:
        SystemExit: always.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        import typer  # noqa: F401  (asked here so that a machine without the extra still gets its diagnosis)
    except ImportError:
        from ._plain import main as plain

        sys.exit(plain(given))
    from ._app import build

    build()(args=given, prog_name="edgeops")
