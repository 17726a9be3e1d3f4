# SPDX-License-Identifier: Apache-2.0
"""Finds the chapters: every module of `edgeops.tour.chapters` whose name has no leading underscore."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import ModuleType

from edgeops._common import message

from . import chapters as _chapters
from .chapter import Chapter, require_chapter


def discover(package: ModuleType = _chapters) -> dict[str, Chapter]:
    """Import every chapter of `package` and return them by name, in alphabetical order of their files.

    Raises:
        TypeError: a chapter file without a proper `CHAPTER`.
        ValueError: two chapters of one name.

    >>> "ragged" in discover()
    True
    """
    found: dict[str, Chapter] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        chapter = require_chapter(getattr(module, "CHAPTER", None), module.__name__)
        if chapter.name in found:
            raise ValueError(
                message(
                    "tour", "chapter names must differ", f"{chapter.name!r} twice", f"Rename it in {module.__name__}."
                )
            )
        found[chapter.name] = chapter
    return found


def select(chapters: Mapping[str, Chapter], only: Iterable[str] = ()) -> list[Chapter]:
    """The chapters named in `only`, in the order of the tour; all of them when `only` is empty.

    Raises:
        ValueError: a name that no chapter has.

    >>> [chapter.name for chapter in select(discover(), ["ragged"])]
    ['ragged']
    """
    wanted = set(only)
    unknown = sorted(wanted - set(chapters))
    if unknown:
        raise ValueError(
            message(
                "tour", f"--only takes {', '.join(chapters)}", ", ".join(unknown), "Leave it out to run all chapters."
            )
        )
    return [chapter for name, chapter in chapters.items() if not wanted or name in wanted]
