# SPDX-License-Identifier: Apache-2.0
"""Everything a bug report needs: versions, machine, which fast paths are on and why others are off, optional packages.

Each part is gathered on its own. One that cannot be is reported as the reason, because a diagnosis that dies of the
disease is of no use. Needs neither typer nor rich.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from importlib import metadata

PARTS = ("versions", "machine", "fast paths", "extras")
_PACKAGES = ("edgeops", "torch", "numpy", "triton")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) or "not installed" for name in _PACKAGES}}


def _machine() -> dict[str, str]:
    from edgeops.perf import capture

    seen = capture()
    return {
        "system": seen.system,
        "cpu": seen.cpu,
        "instruction set": seen.isa,
        "cores": str(seen.cores),
        "torch threads": str(seen.threads),
        "memory": f"{seen.memory_gib} GiB",
        "gpu": seen.gpu or "none",
        "cuda of torch": seen.cuda or "none",
        "source commit": f"{seen.commit or 'no checkout'}{' with uncommitted changes' if seen.dirty else ''}",
    }


def _paths() -> dict[str, str]:
    from edgeops import native_status

    return dict(native_status())


def _extras() -> dict[str, str]:
    """Per extra of this distribution: installed, or the packages that are missing."""
    needs: dict[str, list[str]] = {}
    for line in metadata.requires("edgeops") or []:
        package = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", line)
        # an extra that refers to other extras of edgeops itself is covered by their own lines
        if package and extra and package[0] != "edgeops":
            needs.setdefault(extra[1], []).append(package[0])
    return {
        extra: f"missing {', '.join(absent)}: pip install 'edgeops[{extra}]'"
        if (absent := [p for p in packages if _version(p) is None])
        else "installed"
        for extra, packages in needs.items()
    }


_READERS: dict[str, Callable[[], dict[str, str]]] = dict(
    zip(PARTS, (_versions, _machine, _paths, _extras), strict=True)
)


def diagnose() -> dict[str, dict[str, str]]:
    """Part -> name -> what was found; `{"unknown": reason}` for a part that could not be gathered.

    >>> sorted(diagnose()) == sorted(PARTS)
    True
    """
    found = {}
    for part, read in _READERS.items():
        try:
            found[part] = read()
        except Exception as error:  # whatever is broken here is what the user wants to read about
            found[part] = {"unknown": f"{type(error).__name__}: {error}"}
    return found
