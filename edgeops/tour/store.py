# SPDX-License-Identifier: Apache-2.0
"""Finished chapters on disk: one JSON file each, written at once or not at all.

A stored chapter is used again only if it came from the same question asked in the same circumstances: its key holds the
configuration of the tour and the machine, versions and commit. Anything else is measured anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeops.perf import Environment, replace_text

from .chapter import ChapterResult, TourConfig

FORMAT = 1


def run_key(chapter: str, config: TourConfig, environment: Environment) -> dict[str, Any]:
    """What has to be equal for a stored chapter to stand for a new run."""
    return {"format": FORMAT, "chapter": chapter, "config": asdict(config), "environment": asdict(environment)}


class ResultStore:
    """The `chapters` folder of a tour's output.

    Args:
        folder: created when the first chapter is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, chapter: str) -> Path:
        """Where the result of `chapter` is kept."""
        return self.folder / f"{chapter}.json"

    def save(self, key: Mapping[str, Any], result: ChapterResult, seconds: float) -> None:
        """Write one finished chapter atomically; `seconds` is the wall time it took."""
        data = {"key": dict(key), "seconds": seconds, "result": result.to_dict()}
        replace_text(self.path(key["chapter"]), json.dumps(data, indent=1, allow_nan=False) + "\n")

    def load(self, key: Mapping[str, Any]) -> tuple[ChapterResult, float] | None:
        """The stored result of the chapter with exactly this key and its seconds, or `None`.

        A file that cannot be read back counts as absent: the chapter then runs again and replaces it.
        """
        try:
            data = json.loads(self.path(key["chapter"]).read_text(encoding="utf-8"))
            if data["key"] != key:
                return None
            return ChapterResult.from_dict(data["result"]), float(data["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
